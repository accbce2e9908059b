"""Weight files: what is read, what is refused, and that nothing else can happen."""

import argparse
import io
import json
import os
import pickle
import random
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ribozyme import tensors
from ribozyme.errors import CheckpointError
from ribozyme.tensors import read_tensors, write_safetensors


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("RIBOZYME_CACHE", str(folder))
    return folder


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "layers.0.weight": torch.randn(5, 3, generator=generator),
        "layers.0.bias": torch.randn(5, generator=generator).bfloat16(),
        "count": torch.arange(4),
        "scale": torch.tensor(2.5, dtype=torch.float16),
    }


def fairseq(**more) -> dict:
    """The layout of a training file: settings, weights, and what we do not want."""
    args = argparse.Namespace(layers=12, arch="roberta", rate=[1e-4], device=torch.device("cpu"))
    return {"args": args, "model": state(), "last_optimizer_state": {"state": {0: torch.ones(9)}}} | more


def saved(path: Path, content: object, *, zipped: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(wanted) or set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
        assert not found[name].requires_grad


# ------------------------------------------------------------------------------------------ what is read


def test_a_safetensors_file_is_read_as_stored(tmp_path):
    save_file(state(), tmp_path / "a.safetensors")
    found, settings = read_tensors(tmp_path / "a.safetensors")
    assert_same(found, state())
    assert settings == {}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize(
    ("content", "settings"),
    [
        (state(), {}),
        ({"state_dict": state(), "epoch": 3}, {}),
        ({"model_state_dict": state()}, {}),
        (fairseq(), {"layers": 12, "arch": "roberta", "rate": [1e-4]}),
        ({"model": state(), "args": {"layers": 2}}, {"layers": 2}),
        ({"model": state(), "cfg": {"model": argparse.Namespace(layers=3)}}, {"layers": 3}),
        ({"model": state(), "args": None, "cfg": {"model": {"layers": 4}}}, {"layers": 4}),
        ({k: torch.nn.Parameter(v, requires_grad=False) for k, v in state().items()}, {}),
    ],
    ids=["bare", "state_dict", "model_state_dict", "fairseq", "args-dict", "cfg", "cfg-dict", "parameters"],
)
def test_pickles_are_read_bare_or_nested_with_their_plain_settings(tmp_path, zipped, content, settings):
    found, told = read_tensors(saved(tmp_path / "a.pth", content, zipped=zipped))
    assert_same(found, state())
    assert told == settings


def test_trained_parameters_come_without_gradients(tmp_path):
    path = saved(tmp_path / "a.pt", {"w": torch.nn.Parameter(torch.ones(2))})
    assert not read_tensors(path)[0]["w"].requires_grad


# ------------------------------------------------------------------------------------------- conversion


@pytest.fixture
def convert_all(monkeypatch):
    monkeypatch.setattr(tensors, "CONVERT_FROM", 0)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_large_pickle_is_converted_once_and_gives_the_same_again(
    tmp_path, cache, convert_all, monkeypatch, zipped
):
    tied = state() | {"twin": torch.ones(3, 4)}
    tied["twin.transposed"] = tied["twin"].T
    path = saved(tmp_path / "a.pth", fairseq(model=tied), zipped=zipped)
    first, settings = read_tensors(path)
    (copy,) = (cache / tensors.CONVERTED).iterdir()
    assert copy.stat().st_size < 2000  # without the optimizer
    monkeypatch.setattr(torch, "load", None)
    again, told = read_tensors(path)
    assert_same(first, tied)
    assert_same(again, tied)
    assert told == settings == {"layers": 12, "arch": "roberta", "rate": [1e-4]}


def test_a_copy_of_the_file_elsewhere_uses_the_same_conversion(tmp_path, convert_all, monkeypatch):
    path = saved(tmp_path / "a.pth", state())
    read_tensors(path)
    shutil.copy(path, tmp_path / "b.bin")
    monkeypatch.setattr(torch, "load", None)
    assert_same(read_tensors(tmp_path / "b.bin")[0], state())


def test_a_changed_file_is_converted_anew(tmp_path, convert_all):
    path = saved(tmp_path / "a.pth", state(0))
    read_tensors(path)
    saved(path, state(1))
    os.utime(path, ns=(1, 1))
    assert_same(read_tensors(path)[0], state(1))


def test_a_damaged_conversion_is_made_again(tmp_path, cache, convert_all):
    path = saved(tmp_path / "a.pth", state())
    read_tensors(path)
    (copy,) = (cache / tensors.CONVERTED).iterdir()
    copy.write_bytes(copy.read_bytes()[:-9])
    assert_same(read_tensors(path)[0], state())


@pytest.mark.parametrize("what", ["a file in its place", "full disk"])
def test_a_cache_that_cannot_be_written_never_fails_a_load(tmp_path, cache, convert_all, monkeypatch, what):
    if what == "full disk":
        monkeypatch.setattr(tensors, "save_file", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "full")))
    else:
        cache.write_text("not a folder")
    path = saved(tmp_path / "a.pth", fairseq())
    for _ in range(2):
        found, settings = read_tensors(path)
        assert_same(found, state())
        assert settings["layers"] == 12
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_file_that_changes_while_it_is_read_is_not_kept(tmp_path, cache, convert_all, monkeypatch):
    path = saved(tmp_path / "a.pth", state(0))
    read = tensors._read_pickle

    def swapped(path, start):
        found = read(path, start)
        saved(path, {"another": torch.ones(50)})
        return found

    monkeypatch.setattr(tensors, "_read_pickle", swapped)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        read_tensors(path)
    assert not list(cache.rglob("*.safetensors"))


# --------------------------------------------------------------------------------------- what is refused


def refused(path: Path, fragment: str) -> None:
    with pytest.raises(CheckpointError, match=fragment) as caught:
        read_tensors(path)
    assert str(path) in str(caught.value)


class Payload:
    """What an attacker pickles: `os.system` when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("kind", ["torch zip", "torch legacy", "plain pickle"])
def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path, kind):
    witness = tmp_path / "ran"
    content = state() | {"extra": Payload(witness)}
    path = tmp_path / "evil.pth"
    if kind == "plain pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        saved(path, content, zipped=kind == "torch zip")
    refused(path, "refused")
    assert not witness.exists()


def test_a_refused_file_is_not_tried_in_another_way(tmp_path, monkeypatch):
    asked = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: asked.append(k) or load(*a, **k))
    refused(saved(tmp_path / "evil.pth", {"w": Payload(tmp_path / "ran")}), "refused")
    assert [kwargs["weights_only"] for kwargs in asked] == [True]


def test_only_the_one_class_is_allowed_and_only_while_reading(tmp_path):
    refused(saved(tmp_path / "a.pth", state() | {"when": Path("x")}), "more than tensors and settings")
    read_tensors(saved(tmp_path / "b.pth", fairseq()))
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.bin", "a.safetensors"])
def test_empty_and_cut_off_files_say_so(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"")
    refused(path, "it is empty")
    save_file(state(), path) if name.endswith(".safetensors") else saved(path, state())
    whole = path.read_bytes()
    for keep in (1, 7, 8, 9, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:keep])
        refused(path, "damaged")


@pytest.mark.parametrize("keep", [1, 100, 500])
def test_a_cut_off_legacy_pickle_says_so(tmp_path, keep):
    path = saved(tmp_path / "a.pth", state(), zipped=False)
    path.write_bytes(path.read_bytes()[:keep])
    refused(path, "damaged")


@pytest.mark.parametrize("content", [[torch.ones(2)], torch.ones(2), 5, None, "text", {1, 2}])
def test_content_that_is_no_dictionary_is_named(tmp_path, content):
    refused(saved(tmp_path / "a.pth", content), f"holds a {type(content).__name__}|refused")


@pytest.mark.parametrize("value", [3, "text", None, [torch.ones(1)], {"w": torch.ones(1)}])
def test_a_state_dict_value_that_is_no_tensor_is_named(tmp_path, value):
    for content in (state() | {"odd": value}, {"model": state() | {"odd": value}}):
        refused(saved(tmp_path / "a.pth", content), f"'odd' is a {type(value).__name__}, not a tensor")
    refused(saved(tmp_path / "b.pth", {7: torch.ones(1)}), "a tensor is called 7, which is not text")


@pytest.mark.parametrize(
    "tensor",
    [torch.eye(2).to_sparse(), torch.ones(2, device="meta"), torch.ones(2, dtype=torch.complex64)],
    ids=["sparse", "meta", "complex"],
)
def test_tensors_of_no_plain_numbers_are_named(tmp_path, tensor):
    refused(saved(tmp_path / "a.pth", {"odd": tensor}), "'odd' is|refused")


def test_a_tensor_that_claims_more_than_its_storage_is_refused_before_anything_is_allocated(tmp_path):
    path = saved(tmp_path / "a.pth", {"huge": torch.zeros(1).expand(100_000, 100_000)})
    assert path.stat().st_size < 3000
    refused(path, "'huge' claims 40,000,000,000 bytes")


def test_many_views_of_one_storage_are_refused(tmp_path):
    block = torch.zeros(1000)
    refused(saved(tmp_path / "a.pth", {str(k): block[0:] for k in range(900)}), "far more than the file has")


def rewritten(path: Path, change) -> Path:
    """The archive with its members (name to bytes, compression) changed."""
    with zipfile.ZipFile(path) as archive:
        members = {one.filename: archive.read(one) for one in archive.infolist()}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content, kind in change(members):
            archive.writestr(zipfile.ZipInfo(name), content, compress_type=kind)
    path.write_bytes(out.getvalue())
    return path


def test_a_compressed_archive_is_refused_as_a_bomb(tmp_path):
    path = saved(tmp_path / "a.pth", {"w": torch.zeros(200_000)})
    deflated = zipfile.ZIP_DEFLATED
    refused(rewritten(path, lambda m: [(n, c, deflated) for n, c in m.items()]), "compressed inside")


def test_an_archive_with_a_huge_pickle_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tensors, "MAX_PICKLE", 100)
    refused(saved(tmp_path / "a.pth", state()), "bytes beside its tensors")


def test_an_archive_that_claims_more_than_it_holds_is_refused(tmp_path):
    path = saved(tmp_path / "a.pth", {"w": torch.zeros(100)})
    content = bytearray(path.read_bytes())
    entry = content.rfind(b"PK\x01\x02")
    struct.pack_into("<II", content, entry + 20, 2**30, 2**30)
    path.write_bytes(bytes(content))
    refused(path, "claims to hold more|damaged")


@pytest.mark.parametrize("numbers", [10**6, 10**12, 2**62])
def test_a_storage_that_claims_more_numbers_than_it_has_is_refused(tmp_path, numbers):
    path = saved(tmp_path / "a.pth", {"w": torch.zeros(100)})
    forged = b"\x8a\x08" + struct.pack("<q", numbers)  # LONG1 instead of BININT1 100

    def change(members):
        for name, content in members.items():
            yield name, content.replace(b"Kd", forged) if name.endswith("data.pkl") else content, 0

    refused(rewritten(path, change), "refused|claims")


def header(path: Path, text: bytes, length: int | None = None, data: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


ENTRY = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'


@pytest.mark.parametrize(
    ("text", "length", "fragment"),
    [
        (b"{}", 2**62, "its header claims"),
        (b"{}", 10**6, "it ends inside its header"),
        (b"{", None, "its header cannot be read"),
        (b"[1]", None, "not a table"),
        (b"\xff\xfe", None, "its header cannot be read"),
        (b"[" * 100_000, None, "its header cannot be read"),
        (b'{"a":' + ENTRY + b',"a":' + ENTRY + b"}", None, "a name stands there twice"),
        (b'{"__metadata__":{"x":1},"a":' + ENTRY + b"}", None, "metadata are not text"),
        (b'{"__metadata__":{"settings":"{"},"a":' + ENTRY + b"}", None, "damaged"),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', None, "damaged"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', None, "damaged"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,-4]}}', None, "damaged"),
        (b'{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}', None, "damaged"),
        (b'{"a":{"dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,4]}}', None, "damaged"),
        (b'{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,4]}}', None, "damaged"),
        (b'{"a":' + ENTRY + b',"b":' + ENTRY + b"}", None, "damaged"),
    ],
)
def test_bad_safetensors_headers_are_refused(tmp_path, text, length, fragment):
    refused(header(tmp_path / "a.safetensors", text, length, b"\0" * 4), fragment)


def test_a_header_of_a_million_tensors_is_refused(tmp_path):
    one = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    text = json.dumps({str(k): one for k in range(tensors.MAX_TENSORS + 1)}).encode()
    refused(header(tmp_path / "a.safetensors", text), "not a table of at most")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named(tmp_path):
    path = saved(tmp_path / "a.pth", state())
    path.chmod(0)
    refused(path, "cannot be opened")


def test_a_link_in_a_circle_is_named(tmp_path):
    path = tmp_path / "a.pth"
    path.symlink_to(path)
    refused(path, "cannot be opened")


# ------------------------------------------------------------------------------------------------- fuzz


def mutant(whole: bytes, rng: random.Random) -> bytes:
    """A file with one to eight changes: bytes set, runs cut out, doubled or zeroed."""
    content = bytearray(whole)
    for _ in range(rng.randint(1, 8)):
        at, length = rng.randrange(len(content)), rng.randint(1, 64)
        match rng.randrange(5):
            case 0:
                content[at] = rng.randrange(256)
            case 1:
                content[at] ^= 1 << rng.randrange(8)
            case 2:
                del content[at : at + length]
            case 3:
                content[at:at] = content[at : at + length]
            case 4:
                content[at : at + 8] = struct.pack("<Q", rng.choice([0, 2**31, 2**63 - 1, 2**64 - 1]))
        content = content or bytearray(b"\0")
    return bytes(content)


def originals(folder: Path) -> list[Path]:
    folder.mkdir()
    save_file(state(), folder / "a.safetensors", metadata={"settings": "{}"})
    return [
        folder / "a.safetensors",
        saved(folder / "zip.pth", fairseq()),
        saved(folder / "old.pth", fairseq(), zipped=False),
    ]


def fuzz(folder: Path, seed: int, count: int) -> int:
    """Read `count` mutants of each kind; anything but tensors or a CheckpointError comes out as it is."""
    rng = random.Random(seed)
    refusals = 0
    for path in originals(folder / "originals"):
        whole = path.read_bytes()
        target = folder / f"mutant{path.suffix}"
        for _ in range(count):
            target.write_bytes(mutant(whole, rng))
            try:
                found, _ = read_tensors(target)
                for tensor in found.values():
                    tensor.double().sum()
            except CheckpointError:
                refusals += 1
    return refusals


def run_fuzz_in_a_child(tmp_path: Path, seed: int, count: int) -> None:
    """A crash of the interpreter must be a finding, not the end of the tests."""
    script = f"""
import importlib.util, resource, sys, warnings
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30, 12 * 2**30))
warnings.simplefilter("error")
spec = importlib.util.spec_from_file_location("fuzzing", {__file__!r})
fuzzing = importlib.util.module_from_spec(spec)
sys.modules["fuzzing"] = fuzzing
spec.loader.exec_module(fuzzing)
print(fuzzing.fuzz(Path({str(tmp_path)!r}), {seed}, {count}))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) > count  # most are refused


def test_mutants_are_read_or_refused_and_nothing_else(tmp_path):
    run_fuzz_in_a_child(tmp_path, seed=0, count=150)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_thousands_of_mutants_are_read_or_refused_and_nothing_else(tmp_path, seed):
    run_fuzz_in_a_child(tmp_path, seed, count=1500)


# ------------------------------------------------------------------------------------------ flipped bits


@pytest.mark.parametrize("times", [20, pytest.param(400, marks=pytest.mark.slow)])
def test_a_flipped_bit_in_what_we_wrote_is_noticed(tmp_path, times):
    path, rng = tmp_path / "model.safetensors", np.random.default_rng(0)
    write_safetensors(path, {"a": torch.randn(8, 8), "b": torch.arange(3)}, settings='{"layers": 2}')
    whole = path.read_bytes()
    assert read_tensors(path)[1] == {"layers": 2}
    key = range(
        whole.index(b'"sha256"'), whole.index(b'"sha256"') + 8
    )  # without it there is no seal, and no harm
    for place in rng.choice([k for k in range(8 * len(whole)) if k // 8 not in key], times, replace=False):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError, match="damaged"):
            read_tensors(path)


@pytest.mark.parametrize("times", [20, pytest.param(400, marks=pytest.mark.slow)])
def test_a_flipped_bit_in_a_tensor_of_a_torch_archive_is_noticed(tmp_path, times):
    path, rng = tmp_path / "model.pth", np.random.default_rng(0)
    numbers = torch.randn(64, 64)
    torch.save({"a": numbers}, path)
    whole = path.read_bytes()
    begin = whole.index(numbers.numpy().tobytes())
    for place in rng.choice(8 * 4 * numbers.numel(), times, replace=False):
        flipped = bytearray(whole)
        flipped[begin + place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError, match="checksum"):
            read_tensors(path)


def test_the_same_tensors_and_metadata_make_the_same_file(tmp_path):
    tensors, more = (
        {"b": torch.arange(5.0), "a": torch.ones(2, 3)},
        {"settings": '{"name": "\u00e9\\n"}', "z": "1"},
    )
    for k in range(8):
        write_safetensors(tmp_path / f"{k}.safetensors", tensors, **more)
    assert len({one.read_bytes() for one in tmp_path.iterdir()}) == 1
    found, settings = read_tensors(tmp_path / "0.safetensors")
    assert settings == {"name": "\u00e9\n"}
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
