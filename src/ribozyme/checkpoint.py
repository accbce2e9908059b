"""Weights are data: tensors with names, read from safetensors or weights-only pickles, mapped by a table.

`open_checkpoint` reads a file or folder into a `Checkpoint`; a `KeyMap` is the table between a published
layout and our names. Nothing from a checkpoint is ever executed, nothing is filled in, nothing is dropped
without a stated reason.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ribozyme.errors import CheckpointError
from ribozyme.files import AtomicFile as AtomicFile
from ribozyme.registry import WEIGHT_FILES, WEIGHT_SUFFIXES
from ribozyme.tensors import read_tensors, write_safetensors

MAX_JSON_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Tensors by their published names, with the settings that lie beside them.

    path : the weight file, for messages
    tensors : published name to tensor
    config : config.json or args.json of the folder, or the `args` inside a fairseq file, or {}
    folder : where vocab.txt, vocab.json or tokenizer_config.json may lie
    """

    path: Path
    tensors: dict[str, Tensor]
    config: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    def side_file(self, name: str) -> Path | None:
        """A file beside the weights, if it exists."""
        path = None if self.folder is None else self.folder / name
        return path if path is not None and path.is_file() else None


@dataclass(frozen=True, slots=True)
class Fuse:
    """Several published tensors that we keep as one, joined along their rows in this order."""

    parts: tuple[str, ...]
    ratio: tuple[int, ...]  # how the rows divide, to take them apart again


@dataclass(frozen=True, slots=True)
class KeyMap:
    """A published layout as data. In patterns `{i}` is a number, any other `{name}` a word without dots.

    strip : prefixes; of those that a name has, the first in this order is taken off. The first of all is
        put back when writing.
    rename : published pattern (after strip) to our pattern
    fuse : our name to the parts it is joined from (names after `rename`)
    tied : published pattern to the name of ours that it must equal, or an error
    ignore : published pattern (shell wildcards) to the reason why we do not want it
    """

    rename: Mapping[str, str]
    strip: tuple[str, ...] = ()
    fuse: Mapping[str, Fuse] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)
    ignore: Mapping[str, str] = field(default_factory=dict)

    def apply(self, checkpoint: Checkpoint, expected: Mapping[str, Iterable[int]]) -> dict[str, Tensor]:
        """Our state dict from a published one; `expected` is our names with their shapes.

        Raises
        ------
        CheckpointError : names every tensor that is missing, unused, misshapen or differently tied.
        """
        found: dict[str, Tensor] = {}
        twins: dict[str, tuple[str, Tensor]] = {}
        unused: list[str] = []
        for published, tensor in checkpoint.tensors.items():
            name = self._stripped(published)
            if (ours := _rewrite(name, self.rename)) is not None:
                if ours in found:
                    raise CheckpointError(
                        f"{checkpoint.path}: two tensors for {ours!r}, one is {published!r}"
                    )
                found[ours] = tensor
            elif (ours := _rewrite(name, self.tied)) is not None:
                twins[published] = (ours, tensor)
            elif not any(fnmatchcase(name, pattern) for pattern in self.ignore):
                unused.append(published)
        for ours, (parts, _) in ((k, v) for wanted in expected for k, v in self._fused(wanted)):
            pieces = [found[part] for part in parts if part in found and found[part].dim()]
            if len(pieces) == len(parts) and len({piece.shape[1:] for piece in pieces}) == 1:
                found[ours] = torch.cat([found.pop(part) for part in parts])
        for published, (ours, tensor) in twins.items():
            if ours not in found:
                found[ours] = tensor
            elif not torch.equal(found[ours], tensor):
                raise CheckpointError(f"{checkpoint.path}: {published!r} should equal {ours!r} and does not")
        self._check(checkpoint.path, found, expected, unused)
        return found

    def names(self, published: Iterable[str]) -> dict[str, str]:
        """Our name (a part of `fuse` under its own) to each published name that `rename` knows."""
        pairs = ((_rewrite(self._stripped(name), self.rename), name) for name in published)
        return {ours: name for ours, name in pairs if ours is not None}

    def invert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The published layout of our state dict (without tied twins)."""
        back = {ours: published for published, ours in self.rename.items()}
        prefix = self.strip[0] if self.strip else ""
        out: dict[str, Tensor] = {}
        for name, tensor in state.items():
            pieces = [(name, tensor)]
            for _, (parts, ratio) in self._fused(name):
                unit = tensor.shape[0] // sum(ratio)
                pieces = list(zip(parts, tensor.split([unit * r for r in ratio])))
            for part, rows in pieces:
                published = _rewrite(part, back)
                if published is None:
                    raise CheckpointError(f"this layout has no place for {part!r}")
                out[prefix + published] = rows.contiguous()
        return out

    def _stripped(self, name: str) -> str:
        return next((name[len(p) :] for p in self.strip if name.startswith(p)), name)

    def _fused(self, name: str) -> list[tuple[str, tuple[tuple[str, ...], tuple[int, ...]]]]:
        for pattern, fuse in self.fuse.items():
            if (match := _compiled(pattern).fullmatch(name)) is not None:
                parts = tuple(part.format(**match.groupdict()) for part in fuse.parts)
                return [(name, (parts, fuse.ratio))]
        return []

    def _absent(self, name: str, found: Mapping[str, Tensor]) -> list[str]:
        """What of a missing tensor is missing: it, or parts that it is joined from."""
        parts = [part for _, (parts, _) in self._fused(name) for part in parts]
        return [part for part in parts if part not in found] or [name]

    def _check(
        self,
        path: Path,
        found: Mapping[str, Tensor],
        expected: Mapping[str, Iterable[int]],
        unused: list[str],
    ) -> None:
        shapes = {name: tuple(shape) for name, shape in expected.items()}
        misshapen = [
            f"{n} is {tuple(found[n].shape)}, not {s}"
            for n, s in shapes.items()
            if n in found and found[n].shape != s
        ]
        problems = {
            "missing": [part for n in shapes if n not in found for part in self._absent(n, found)],
            "unused": unused + [n for n in found if n not in shapes],
            "of another shape": misshapen,
        }
        told = [f"{len(names)} {kind}: {_some(names)}" for kind, names in problems.items() if names]
        if told:
            raise CheckpointError(
                f"{path}: the tensors do not fit the model; " + "; ".join(told),
                hint="the file is incomplete or of another model; compare its config with `ribozyme info`",
            )


def _some(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", pattern)
    names = [
        rf"(?P<{p}>{r'[0-9]+' if p == 'i' else r'[^.]+'})" if k % 2 else re.escape(p)
        for k, p in enumerate(parts)
    ]
    return re.compile("".join(names))


def _rewrite(name: str, table: Mapping[str, str]) -> str | None:
    if name in table:
        return table[name]
    for pattern, replacement in table.items():
        if "{" in pattern and (match := _compiled(pattern).fullmatch(name)) is not None:
            return replacement.format(**match.groupdict())
    return None


def shapes_of(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """The names and shapes that a checkpoint must bring for `module`."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def open_checkpoint(path: Path) -> Checkpoint:
    """Read a weight file, or a folder that holds one, without executing anything in it.

    A `config.json` or `args.json` beside it belongs to it if the folder was named or the file is called as in
    `WEIGHT_FILES`; settings inside a fairseq file count where there is none.

    Raises
    ------
    CheckpointError : no weight file, a damaged one, or one with more in it than tensors and plain settings.
    """
    weights = _weight_file(path) if path.is_dir() else path
    if not weights.is_file():
        raise CheckpointError(f"{path}: there is no such file or folder")
    folder = weights.parent
    config: dict[str, Any] = {}
    if path.is_dir() or path.name in WEIGHT_FILES:
        beside = (folder / name for name in ("config.json", "args.json"))
        config = next((read_json(one) for one in beside if one.is_file()), {})
    tensors, inside = read_tensors(weights)
    return Checkpoint(weights, tensors, config or inside, folder)


def _weight_file(folder: Path) -> Path:
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    loose = sorted(p for p in folder.iterdir() if p.suffix in WEIGHT_SUFFIXES and p.is_file())
    if len(loose) == 1:
        return loose[0]
    what = "no weight file" if not loose else f"{len(loose)} weight files ({_some([p.name for p in loose])})"
    raise CheckpointError(
        f"{folder}: {what}", hint=f"expected one of {', '.join(WEIGHT_FILES)}, or name the file itself"
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of reasonable size (`Infinity` and NaN are read as transformers writes them).

    Raises
    ------
    CheckpointError : too large, not JSON, or not an object.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path}: {path.stat().st_size:,} bytes is too large for a settings file")
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be opened ({error.strerror})") from error
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not an object")
    return content


def write_folder(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write `model.safetensors` and `config.json`; each appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    with AtomicFile(folder / "model.safetensors") as temporary:
        write_safetensors(temporary, dict(tensors))
    with AtomicFile(folder / "config.json") as temporary:
        temporary.write_text(json.dumps(dict(config), indent=2) + "\n", encoding="utf-8")
