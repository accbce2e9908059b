"""Tensors by name from a weight file. Such a file is data: it is looked at first, and nothing in it runs.

`.safetensors` is mapped into memory. `.pth`, `.pt` and `.bin` are pickles: they are read weights-only, with
`argparse.Namespace` (the settings in fairseq files) as the one class allowed beside tensors and plain values.
A refused file is never tried in another way. Large ones are converted once to safetensors in our cache.
Types are kept as stored; the models choose theirs.

The safetensors that we write carry the sha256 of the file in their metadata (counted with zeros in its
place): the format itself has no checksum, and one flipped bit would be read as another number.
"""

import argparse
import hashlib
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ribozyme.errors import CheckpointError
from ribozyme.files import AtomicFile, cache_folder, digest

MAX_HEADER = 16 * 2**20
"""Bytes of a safetensors header; published ones have 20 kB."""
MAX_PICKLE = 64 * 2**20
"""Bytes of a pickle without its tensors."""
MAX_TENSORS = 50_000
MAX_GROWTH = 4
"""Tensors may share their numbers (tied weights); all together may claim this many times the file."""
CONVERT_FROM = 16 * 2**20
"""Pickles from this size on are converted once; smaller ones are read in no time."""
CONVERTED = "converted-2"
"""Folder in the cache; a new number when the conversion changes."""

SEAL, UNSEALED = b'"sha256":"', "0" * 64

STATE_DICT_KEYS = ("model", "state_dict", "model_state_dict")
DTYPES = frozenset(
    {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool}
    | {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8}
)

Tensors = dict[str, Tensor]
Settings = dict[str, Any]


def read_tensors(path: Path) -> tuple[Tensors, Settings]:
    """All tensors of a weight file by their names, and the settings stored with them, if any.

    Raises
    ------
    CheckpointError : damaged, cut off, or with more in it than tensors and plain settings.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be opened ({error.strerror})") from error
    if size == 0:
        raise _damaged(path, "it is empty")
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if size < CONVERT_FROM:
        return _read_pickle(path, start)
    return _read_converted(path, start)


def read_safetensors(path: Path) -> tuple[Tensors, Settings]:
    """Tensors mapped from a .safetensors file, and our settings from its metadata; a seal is checked."""
    metadata = _safetensors_metadata(path)
    if "sha256" in metadata and sha256_but_seal(path) != metadata["sha256"]:
        raise _damaged(path, "it is not what was written (sha256)")
    try:
        settings = json.loads(metadata.get("settings", "{}"))
        return load_file(path), settings if isinstance(settings, dict) else {}
    except Exception as error:  # the library has no single error type
        raise _damaged(path, str(error)) from error


def add_tensors(whole: Any, tensors: Tensors) -> None:
    """Names, types, shapes and numbers of tensors into a digest of `hashlib`."""
    for name, tensor in sorted(tensors.items()):
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        whole.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


def write_safetensors(path: Path, tensors: Tensors, **metadata: str) -> None:
    """Write tensors, each with numbers of its own, and seal the file: a bit that changes later is noticed.

    The same tensors and metadata make the same file.
    """
    apart = {name: tensor.detach().cpu() for name, tensor in _apart(tensors).items()}
    save_file(apart, path, metadata={"format": "pt", **metadata, "sha256": UNSEALED})
    with path.open("rb+") as file:
        header = _in_order(file.read(int.from_bytes(file.read(8), "little")))
        file.seek(8)
        file.write(header)
        file.flush()
        seal = sha256_but_seal(path).encode()
        file.seek(8 + header.index(SEAL) + len(SEAL))
        file.write(seal)


def _in_order(header: bytes) -> bytes:
    """A header with its metadata by name; the library writes them in an order drawn anew each time."""
    table = json.loads(header)
    table["__metadata__"] = dict(sorted(table["__metadata__"].items()))
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    return text.ljust(len(header)) if len(text) <= len(header) else header


def sha256_but_seal(path: Path) -> str:
    """The sha256 of a file, with zeros where its seal is."""
    with path.open("rb") as file:
        length = file.read(8)
        header = file.read(int.from_bytes(length, "little"))
        before, mark, after = header.partition(SEAL)
        whole = hashlib.sha256(length + before + mark + (UNSEALED.encode() + after[64:] if mark else b""))
        for block in iter(lambda: file.read(2**22), b""):
            whole.update(block)
    return whole.hexdigest()


def _safetensors_metadata(path: Path) -> dict[str, str]:
    """The `__metadata__` of a header, which is looked at here: the library would take a name twice."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER:
            raise _damaged(path, f"its header claims {length:,} bytes, more than {MAX_HEADER:,}")
        text = file.read(length)
    if len(text) < length:
        raise _damaged(path, f"it ends inside its header, which claims {length:,} bytes")
    try:
        header = json.loads(text, object_pairs_hook=_without_twins)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its header cannot be read: {error}") from error
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        raise _damaged(path, f"its header is not a table of at most {MAX_TENSORS:,} tensors")
    metadata = header.get("__metadata__") or {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _damaged(path, "its metadata are not text")
    return metadata


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a name stands there twice")
    return table


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path}: damaged or cut off: {reason}", hint="fetch the file again")


# ---------------------------------------------------------------------------------------------- pickles


def _read_pickle(path: Path, start: bytes) -> tuple[Tensors, Settings]:
    archive = start.startswith(b"PK\x03\x04")  # else the format of torch before 1.6, which cannot be mapped
    if archive:
        _check_archive(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except Exception as error:  # torch raises ten kinds
        raise CheckpointError(
            f"{path}: refused: damaged, or holds more than tensors and settings ({_first_line(error)})",
            hint="fetch it again, or ask its author for safetensors; code in weights is never run",
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a dictionary of tensors")
    settings = _settings(content)
    state = next((content[k] for k in STATE_DICT_KEYS if isinstance(content.get(k), dict)), content)
    _check_state(path, state)
    return {name: tensor.detach() for name, tensor in state.items()}, settings


def _check_archive(path: Path) -> None:
    """The members of a torch archive lie in it uncompressed, so none can be larger than the file.

    Each has a checksum, which torch does not look at.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(path, archive.infolist())
            wrong = archive.testzip()
    except CheckpointError:
        raise
    except Exception as error:  # zipfile raises several kinds on damaged files
        raise _damaged(path, str(error)) from error
    if wrong is not None:
        raise _damaged(path, f"the checksum of {wrong!r} in it is wrong")


def _check_members(path: Path, members: list[zipfile.ZipInfo]) -> None:
    if any(one.compress_type != zipfile.ZIP_STORED for one in members):
        raise CheckpointError(f"{path}: refused: compressed inside, which torch never writes")
    if len(members) > MAX_TENSORS or sum(one.file_size for one in members) > path.stat().st_size:
        raise CheckpointError(f"{path}: refused: claims to hold more than its size")
    if any(one.filename.endswith(".pkl") and one.file_size > MAX_PICKLE for one in members):
        raise CheckpointError(f"{path}: refused: more than {MAX_PICKLE:,} bytes beside its tensors")


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:160]}" if text else type(error).__name__


def _settings(content: dict[Any, Any]) -> Settings:
    """`args` of a training file, or `cfg.model`; only what JSON can hold."""
    cfg = content.get("cfg")
    for found in (content.get("args"), cfg.get("model") if isinstance(cfg, dict) else None):
        table = vars(found) if isinstance(found, argparse.Namespace) else found
        if isinstance(table, dict):
            return {str(key): value for key, value in table.items() if _is_plain(value)}
    return {}


def _is_plain(value: Any, depth: int = 0) -> bool:
    if isinstance(value, (list, tuple)):
        return depth < 8 and all(_is_plain(one, depth + 1) for one in value)
    if isinstance(value, dict):
        return depth < 8 and all(isinstance(k, str) and _is_plain(v, depth + 1) for k, v in value.items())
    return value is None or type(value) in {bool, int, float, str}


def _check_state(path: Path, state: dict[Any, Any]) -> None:
    total = 0
    for name, value in state.items():
        if not isinstance(name, str):
            raise CheckpointError(f"{path}: a tensor is called {name!r:.80}, which is not text")
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path}: {name[:80]!r} is a {type(value).__name__}, not a tensor",
                hint="expected is a state dict, bare or under " + ", ".join(STATE_DICT_KEYS),
            )
        if value.layout is not torch.strided or value.device.type != "cpu" or value.dtype not in DTYPES:
            raise CheckpointError(
                f"{path}: {name!r} is {value.dtype}, {value.layout}, on {value.device}: no plain numbers"
            )
        size = math.prod(value.shape) * value.element_size()
        if size > value.untyped_storage().nbytes():
            raise CheckpointError(f"{path}: {name!r} claims {size:,} bytes, more than are there for it")
        total += size
    if total > MAX_GROWTH * path.stat().st_size:
        raise CheckpointError(f"{path}: its tensors claim {total:,} bytes, far more than the file has")


# ------------------------------------------------------------------------------------------- conversion


def _read_converted(path: Path, start: bytes) -> tuple[Tensors, Settings]:
    """From the cache, by the digest of the source; made there first if need be."""
    sha256 = digest(path)
    copy = cache_folder() / CONVERTED / f"{sha256}.safetensors"
    if copy.is_file():
        try:
            return read_safetensors(copy)
        except CheckpointError:
            pass  # damaged: make it again
    tensors, settings = _read_pickle(path, start)
    if digest(path) != sha256:
        raise CheckpointError(f"{path}: was changed while it was read", hint="load it again")
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        with AtomicFile(copy) as temporary:
            write_safetensors(temporary, tensors, source=path.name, settings=json.dumps(settings))
    except (OSError, SafetensorError):
        return tensors, settings  # the cache cannot be written: the same again next time
    return read_safetensors(copy)


def _apart(tensors: Tensors) -> Tensors:
    """Each tensor with numbers of its own, as safetensors wants them."""
    seen: set[int] = set()
    out: Tensors = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        out[name] = tensor.clone().contiguous() if place in seen else tensor.contiguous()
        seen.add(place)
    return out
