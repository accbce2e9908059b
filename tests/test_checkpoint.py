"""Key maps between published layouts and ours, and folders of weights."""

import json
import os
import stat
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ribozyme.checkpoint import Checkpoint, Fuse, KeyMap, open_checkpoint, read_json, shapes_of, write_folder
from ribozyme.errors import CheckpointError
from ribozyme.files import AtomicFile, AtomicFolder, digest

MAP = KeyMap(
    strip=("encoder.", "module.encoder."),
    rename={
        "embed.weight": "tokens.weight",
        "layers.{i}.attn.{p}_proj.{w}": "blocks.{i}.attention.{p}.{w}",
        "layers.{i}.fc.{w}": "blocks.{i}.up.{w}",
    },
    fuse={
        "blocks.{i}.attention.qkv.{w}": Fuse(
            ("blocks.{i}.attention.q.{w}", "blocks.{i}.attention.k.{w}", "blocks.{i}.attention.v.{w}"),
            (2, 1, 1),
        )
    },
    tied={"head.weight": "tokens.weight"},
    ignore={"contact.*": "never trained"},
)


def ours(depth: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"tokens.weight": (5, 4)}
    for i in range(depth):
        shapes |= {f"blocks.{i}.attention.qkv.weight": (8, 4), f"blocks.{i}.attention.qkv.bias": (8,)}
        shapes |= {f"blocks.{i}.up.weight": (6, 4)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def shapes(state: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def checkpoint(tensors: dict[str, torch.Tensor]) -> Checkpoint:
    return Checkpoint(Path("published.pth"), tensors)


def refused(tensors: dict[str, torch.Tensor], fragment: str) -> None:
    with pytest.raises(CheckpointError, match=fragment) as caught:
        MAP.apply(checkpoint(tensors), shapes(ours()))
    assert "published.pth" in str(caught.value)


# -------------------------------------------------------------------------------------------- key maps


@given(depth=st.integers(0, 12), seed=st.integers(0, 99))
def test_what_is_written_in_a_published_layout_comes_back_the_same(depth, seed):
    state = ours(depth, seed)
    back = MAP.apply(checkpoint(MAP.invert(state)), shapes(state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_fused_tensors_are_published_in_parts_of_the_given_ratio():
    published = MAP.invert(ours(1))
    sizes = [len(published[f"encoder.layers.0.attn.{p}_proj.weight"]) for p in "qkv"]
    assert sizes == [4, 2, 2]
    assert "encoder.embed.weight" in published


@pytest.mark.parametrize("prefix", ["encoder.", "module.encoder.", ""])
def test_any_of_the_prefixes_is_taken_off(prefix):
    state = ours()
    published = {prefix + name.removeprefix("encoder."): t for name, t in MAP.invert(state).items()}
    assert MAP.apply(checkpoint(published), shapes(state)).keys() == state.keys()


def test_a_pattern_with_a_number_does_not_match_a_word():
    refused(MAP.invert(ours()) | {"encoder.layers.x.fc.weight": torch.ones(1)}, "1 unused: encoder.layers.x")


def test_missing_tensors_are_named_with_the_part_that_is_missing():
    published = MAP.invert(ours())
    del published["encoder.layers.1.fc.weight"], published["encoder.layers.0.attn.k_proj.bias"]
    refused(published, r"2 missing: .*blocks\.0\.attention\.k\.bias.*blocks\.1\.up\.weight")


def test_unused_tensors_are_named_and_counted():
    extra = {f"encoder.layers.{i}.gate": torch.ones(1) for i in range(9)}
    refused(MAP.invert(ours()) | extra, r"9 unused: encoder\.layers\.0\.gate, .* and 3 more")


def test_a_layer_more_than_the_model_has_is_unused():
    refused(MAP.invert(ours(3)), "unused: blocks.2")


def test_misshapen_tensors_are_named_with_both_shapes():
    published = MAP.invert(ours()) | {"encoder.embed.weight": torch.ones(7, 4)}
    refused(published, r"1 of another shape: tokens\.weight is \(7, 4\), not \(5, 4\)")


def test_parts_that_do_not_fit_each_other_are_one_clear_error():
    for odd in (torch.ones(2, 3), torch.tensor(1.0)):
        refused(MAP.invert(ours()) | {"encoder.layers.0.attn.k_proj.weight": odd}, "do not fit")


def test_two_tensors_for_one_name_are_an_error():
    published = MAP.invert(ours())
    refused(published | {"module.encoder.embed.weight": torch.ones(5, 4)}, "two tensors for 'tokens.weight'")


def test_a_tied_twin_must_be_equal_and_may_stand_alone():
    state = ours()
    published = MAP.invert(state)
    twin = published["encoder.embed.weight"]
    assert MAP.apply(checkpoint(published | {"encoder.head.weight": twin.clone()}), shapes(state))
    refused(
        published | {"encoder.head.weight": twin + 1}, "'encoder.head.weight' should equal 'tokens.weight'"
    )
    alone = {name: t for name, t in published.items() if "embed" not in name} | {"head.weight": twin}
    assert torch.equal(MAP.apply(checkpoint(alone), shapes(state))["tokens.weight"], twin)


def test_what_is_known_and_not_wanted_is_left_out():
    state = ours()
    published = MAP.invert(state) | {"encoder.contact.bias": torch.ones(1)}
    assert MAP.apply(checkpoint(published), shapes(state)).keys() == state.keys()


def test_a_tensor_without_a_place_in_a_layout_is_an_error_when_writing():
    with pytest.raises(CheckpointError, match=r"no place for 'new\.weight'"):
        MAP.invert({"new.weight": torch.ones(1)})


# --------------------------------------------------------------------------------------------- folders


def test_a_written_folder_is_read_back_with_its_settings(tmp_path):
    module = torch.nn.Linear(3, 2)
    write_folder(tmp_path / "run" / "last", module.state_dict(), {"dim": 3, "rate": 1e-4, "name": "β"})
    found = open_checkpoint(tmp_path / "run" / "last")
    assert found.config == {"dim": 3, "rate": 1e-4, "name": "β"}
    assert shapes(found.tensors) == shapes_of(module)
    assert torch.equal(found.tensors["weight"], module.weight)
    assert found.side_file("config.json") == tmp_path / "run" / "last" / "config.json"
    assert found.side_file("vocab.txt") is None
    assert sorted(p.name for p in (tmp_path / "run" / "last").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_a_file_with_a_usual_name_takes_the_settings_beside_it(tmp_path):
    write_folder(tmp_path, {"w": torch.ones(1)}, {"dim": 3})
    assert open_checkpoint(tmp_path / "model.safetensors").config == {"dim": 3}


def test_a_file_with_another_name_does_not_take_the_settings_of_a_neighbour(tmp_path):
    (tmp_path / "config.json").write_text('{"dim": 3}')
    torch.save({"w": torch.ones(1)}, tmp_path / "mine.pth")
    assert open_checkpoint(tmp_path / "mine.pth").config == {}


def test_a_folder_with_one_weight_file_of_any_name_is_enough(tmp_path):
    torch.save({"w": torch.ones(1)}, tmp_path / "RNA-FM_pretrained.pth")
    (tmp_path / "args.json").write_text('{"layers": 3}')
    found = open_checkpoint(tmp_path)
    assert found.path == tmp_path / "RNA-FM_pretrained.pth"
    assert found.config == {"layers": 3}


def test_folders_without_or_with_several_weight_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no weight file(.|\n)*expected one of model.safetensors"):
        open_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").mkdir()  # a folder named like a file
    with pytest.raises(CheckpointError, match="no weight file"):
        open_checkpoint(tmp_path)
    for name in ("a.pth", "b.pth"):
        torch.save({"w": torch.ones(1)}, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"2 weight files \(a.pth, b.pth\)(.|\n)*name the file itself"):
        open_checkpoint(tmp_path)


def test_what_is_not_there_is_named(tmp_path):
    (tmp_path / "broken.pth").symlink_to(tmp_path / "gone.pth")
    for path in (tmp_path / "absent", tmp_path / "absent.pth", tmp_path / "broken.pth"):
        with pytest.raises(CheckpointError, match="no such file or folder"):
            open_checkpoint(path)


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"[" * 200_000, "not valid JSON"),
        (b'{"dim": 1' + b"0" * 5000 + b"}", "not valid JSON"),
        (b"[1]", "holds a list, not an object"),
        (b"null", "holds a NoneType, not an object"),
    ],
)
def test_bad_settings_files_are_named(tmp_path, text, fragment):
    path = tmp_path / "config.json"
    path.write_bytes(text)
    with pytest.raises(CheckpointError, match=fragment) as caught:
        read_json(path)
    assert str(path) in str(caught.value)


def test_settings_may_hold_what_transformers_writes(tmp_path):
    (tmp_path / "config.json").write_text('\ufeff{"a": NaN, "b": Infinity}', encoding="utf-8")
    assert read_json(tmp_path / "config.json")["b"] == float("inf")
    with pytest.raises(CheckpointError, match="cannot be opened"):
        read_json(tmp_path / "absent.json")


def test_a_settings_file_of_absurd_size_is_not_read(tmp_path):
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**31)
    with pytest.raises(CheckpointError, match="too large for a settings file"):
        read_json(tmp_path / "config.json")


# ---------------------------------------------------------------------------------------- atomic files


def test_a_file_appears_whole_and_readable_by_others(tmp_path):
    path = tmp_path / "out.txt"
    with AtomicFile(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", [AtomicFile, AtomicFolder])
@pytest.mark.parametrize("fails", ["body", "fsync", "replace", "chmod"])
def test_a_failure_at_any_step_leaves_the_old_one_and_nothing_else(tmp_path, monkeypatch, kind, fails):
    path = tmp_path / "out"
    write = {AtomicFile: lambda p, t: p.write_text(t), AtomicFolder: lambda p, t: (p / "part").write_text(t)}
    with kind(path) as temporary:
        write[kind](temporary, "old")

    def failing(*_, **__):
        raise OSError(28, "No space left on device")

    if fails in ("fsync", "replace"):
        monkeypatch.setattr(os, fails, failing)
    if fails == "chmod":
        monkeypatch.setattr(Path, "chmod", failing)
    with pytest.raises((OSError, KeyError)), kind(path) as temporary:  # noqa: PT012, the exit fails too
        write[kind](temporary, "new")
        if fails == "body":
            raise KeyError
    monkeypatch.undo()
    assert (path if kind is AtomicFile else path / "part").read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_whose_last_step_fails_is_put_back(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    replace = os.replace

    def fails_for_the_new_one(source, target):
        if Path(target).name == "out" and not str(source).endswith(".old.tmp"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails_for_the_new_one)
    with pytest.raises(OSError, match="No space"), AtomicFolder(tmp_path / "out") as temporary:
        (temporary / "new").touch()
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "old"]


def test_a_folder_replaces_an_old_one_whole(tmp_path):
    for text in ("old", "new"):
        with AtomicFolder(tmp_path / "out") as temporary:
            (temporary / text).write_text(text)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


# --------------------------------------------------------------------------------------------- digests


def test_a_digest_is_counted_once_and_again_after_a_change(tmp_path, monkeypatch):
    monkeypatch.setenv("RIBOZYME_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest(path) == known
    (note,) = (tmp_path / "cache" / "digests").iterdir()
    remembered = json.loads(note.read_text()) | {"sha256": "remembered"}
    note.write_text(json.dumps(remembered))
    assert digest(path) == "remembered"
    for damaged in ("", "[]", "{}", '{"mark": 3}'):
        note.write_text(damaged)
        assert digest(path) == known
    path.write_bytes(b"abcd")
    assert digest(path) != known


def test_a_digest_needs_no_cache(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("in the way")
    monkeypatch.setenv("RIBOZYME_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a").write_bytes(b"abc")
    assert digest(tmp_path / "a").startswith("ba7816bf")
