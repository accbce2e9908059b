"""A model's name becomes files on this machine.

1. a model in the package;
2. a folder or file that exists;
3. a name of the registry, fetched from its hub id, at the revision that its line pins or else the newest;
   checked by size and sha256 where its line has them, else by the sha256 that the hub has of large files;
4. `org/name[@revision]`, any repository of the hub.

Fetching is huggingface_hub's: `HF_HOME`, `HF_TOKEN`, `HF_ENDPOINT` and `HF_HUB_OFFLINE` are its variables,
respected here and never set. Only the files that a model needs are fetched.
"""

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files as package_files
from pathlib import Path, PurePosixPath
from typing import Any

from ribozyme.errors import HubError
from ribozyme.files import digest
from ribozyme.registry import MODELS, WEIGHT_FILES, WEIGHT_SUFFIXES, File, Model

BESIDE = ("config.json", "args.json", "vocab*", "tokenizer_config.json", "special_tokens_map.json")
"""Files that may belong to the weights of a repository that is not in the registry."""
NOT_WEIGHTS = ("training_args.bin", "optimizer.*", "scheduler.*", "rng_state*", "scaler.*")
HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")
SHA256 = re.compile(r"[0-9a-f]{64}")

log = logging.getLogger("ribozyme")


@dataclass(frozen=True, slots=True)
class Resolved:
    """Where the weights are (a file, or a folder that holds them), and the line of the registry, if any."""

    path: Path
    model: Model | None = None


def resolve(name: str | Path) -> Resolved:
    """Find, and fetch if need be, the weights that `name` stands for.

    Raises
    ------
    HubError : nothing has that name, or its files cannot be had or are not what was published.
    """
    text = str(name)
    model = next((m for m in MODELS if m.name == text), None)
    if model is not None and model.hub is None:
        return Resolved(_embedded(model), model)
    path = Path(text).expanduser()
    if _is_local(path, model):
        return Resolved(path)
    if model is not None:
        return Resolved(_fetch_model(model), model)
    match = HUB_ID.fullmatch(text)
    if match is None or path.suffix in WEIGHT_SUFFIXES or ".." in text:
        raise _unknown(text)
    return Resolved(_fetch_repository(match["repo"], match["revision"]))


def cached_files(model: Model) -> dict[str, Path | None]:
    """The files of a model, with where they are on this machine (None: not yet)."""
    if model.hub is None:
        folder = _folder_in_package(model)
        return {path.name: path for path in sorted(folder.iterdir())} if folder.is_dir() else {}
    from huggingface_hub import try_to_load_from_cache

    repo, revision = _repo_and_revision(model)
    found = {f.name: try_to_load_from_cache(repo, f.name, revision=revision) for f in model.files}
    return {name: Path(path) if isinstance(path, str) else None for name, path in found.items()}


def _folder_in_package(model: Model) -> Path:
    return Path(str(package_files("ribozyme"))) / "weights" / model.name


def _embedded(model: Model) -> Path:
    folder = _folder_in_package(model)
    if not folder.is_dir():
        raise HubError(
            f"{model.name}: the weights are missing from this installation of ribozyme",
            hint="install it again: pip install --force-reinstall --no-deps ribozyme",
        )
    return folder


def _is_local(path: Path, model: Model | None) -> bool:
    """A name of the registry is a folder's only if there are weights in it: a clone of `scgpt` has none."""
    try:
        if model is not None and path.is_dir():
            return any(one.suffix in WEIGHT_SUFFIXES for one in path.iterdir())
        return path.exists()
    except OSError:
        return False


# --------------------------------------------------------------------------------------------- fetching


def _fetch_model(model: Model) -> Path:
    """The first file of a registry line (its weights), with the others beside it."""
    from huggingface_hub import hf_hub_download

    repo, revision = _repo_and_revision(model)
    if model.non_commercial:
        _tell_licence(model.name, model.licence)
    paths = []
    for file in model.files:
        _check_name(repo, file.name)
        try:
            fetched = hf_hub_download(repo, file.name, revision=revision, library_name="ribozyme")
        except Exception as error:  # requests or httpx, by the version of huggingface_hub
            raise _cannot_fetch(repo, error, model, file.name) from error
        paths.append(Path(fetched))
        _verify(repo, paths[-1], file)
    return paths[0]


def _fetch_repository(repo: str, revision: str | None) -> Path:
    """A folder with the weights of any repository, and what lies beside them."""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    known = next((m for m in MODELS if m.hub and _repo_and_revision(m)[0] == repo), None)
    try:
        info = HfApi(library_name="ribozyme").model_info(repo, revision=revision)
    except HfHubHTTPError as error:
        raise _cannot_fetch(repo, error, known) from error
    except Exception as error:  # offline, or no connection: what is here already may do
        try:
            folder = Path(snapshot_download(repo, revision=revision, local_files_only=True))
        except Exception:
            raise _cannot_fetch(repo, error, known) from error
        _verify_all(repo, folder, _choose(repo, [p.name for p in folder.iterdir()]))
        return folder
    licence = next((t.removeprefix("license:") for t in info.tags or () if t.startswith("license:")), "")
    if "nc" in licence.lower().split("-"):
        _tell_licence(repo, licence)
    chosen = _choose(repo, [sibling.rfilename for sibling in info.siblings or ()])
    folders = set()
    for name in chosen:  # by the name of the revision, so that it is found again without a network
        try:
            fetched = hf_hub_download(repo, name, revision=revision, library_name="ribozyme")
        except Exception as error:
            raise _cannot_fetch(repo, error, known, name) from error
        folders.add(Path(fetched).parent)
    folder = folders.pop()
    if folders:
        raise HubError(f"{repo!r} was changed on the hub while it was fetched", hint="load it again")
    _verify_all(repo, folder, chosen)
    return folder


def _choose(repo: str, names: Iterable[str]) -> list[str]:
    """One weight file, safetensors before pickles, and the files that may belong to it."""
    names = sorted(names)
    for name in names:
        _check_name(repo, name)
    top = [n for n in names if "/" not in n and not any(fnmatchcase(n, p) for p in NOT_WEIGHTS)]
    safe = [n for n in top if n.endswith(".safetensors")]
    weights = safe or [n for n in top if n.endswith(WEIGHT_SUFFIXES)]
    usual = [n for n in WEIGHT_FILES if n in weights]
    chosen = usual[:1] or weights
    if len(chosen) != 1:
        what = f"{len(chosen)} weight files ({', '.join(chosen[:6])})" if chosen else "no weight file"
        here = [m.name for m in MODELS if m.hub and _repo_and_revision(m)[0] == repo]
        raise HubError(
            f"the hub repository {repo!r} has {what}",
            hint=f"load it by name: {', '.join(here)}" if here else "fetch one and load it by its path",
        )
    return [*chosen, *(n for n in top if any(fnmatchcase(n, p) for p in BESIDE) and n not in chosen)]


def _repo_and_revision(model: Model) -> tuple[str, str | None]:
    repo, _, revision = (model.hub or "").partition("@")
    return repo, revision or None


def _check_name(repo: str, name: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name:
        raise HubError(f"the hub repository {repo!r} has a file {name!r}, which points outside; refused")


def _verify_all(repo: str, folder: Path, names: Iterable[str]) -> None:
    for name in names:
        _verify(repo, folder / name, File(name))


def _verify(repo: str, path: Path, file: File) -> None:
    """Compare with the registry; else with the hub's own sha256, after which it names large files."""
    blob = path.resolve().name
    promised = file.sha256 or (blob if SHA256.fullmatch(blob) else None)
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        wrong = f"has {size:,} bytes, the published one {file.size:,}"
    elif promised is not None and (found := digest(path)) != promised:
        wrong = f"has the sha256 {found[:12]}..., the published one {promised[:12]}..."
    else:
        return
    raise HubError(
        f"{file.name} of {repo!r} {wrong}; it is not used",
        hint=f"delete {path.resolve()} and load again",
    )


@cache  # once a process
def _tell_licence(what: str, licence: str) -> None:
    log.warning("%s: the licence of these weights (%s) forbids commercial use", what, licence)


# ----------------------------------------------------------------------------------------------- errors


def _unknown(text: str) -> HubError:
    close = get_close_matches(text.lower(), [m.name for m in MODELS], n=2)
    names = f"names are {', '.join(m.name for m in MODELS)}; or give a path or hub id, org/name[@revision]"
    return HubError(
        f"{text!r} is no model, file or folder known here",
        hint=f"did you mean {' or '.join(close)}?" if close else names,
    )


def _cannot_fetch(repo: str, error: Exception, model: Model | None, file: str | None = None) -> HubError:
    from huggingface_hub import constants

    reason, asked = _reason(error, file)
    hints = []
    if asked or (model is not None and model.gated):
        page = f"{constants.ENDPOINT}/{repo}"
        hints.append(f"access must be asked for at {page}; then set HF_TOKEN or run `hf auth login`")
    hints.append("files that you have are loaded by their path, load('path/to/folder')")
    if model is not None:
        mini = next((m.name for m in MODELS if m.family == model.family and m.hub is None), None)
        hints += [f"{mini} lies in the package and needs no network"] if mini else []
    what = f"{model.name} ({repo}, licence {model.licence})" if model is not None else repo
    return HubError(f"{what}: {reason}", hint="; ".join(hints))


def _reason(error: Exception, file: str | None) -> tuple[str, bool]:
    """What went wrong in a few words, and whether access is the trouble."""
    from huggingface_hub import errors

    status: Any = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return "the hub refuses access (the repository is gated)", True
    if isinstance(error, errors.RepositoryNotFoundError) or status == 401:
        return "the hub knows no such repository, or it is private and needs a token", True
    if isinstance(error, errors.RevisionNotFoundError):
        return "the repository has no such revision", False
    if isinstance(error, errors.LocalEntryNotFoundError):
        return f"{file} is not in the local cache, and the hub is offline or not reached", False
    if isinstance(error, errors.EntryNotFoundError):
        return f"the repository has no file {file!r}", False
    what = file or "the list of files"
    return f"{what} cannot be fetched ({type(error).__name__}: {str(error)[:200]})", False
