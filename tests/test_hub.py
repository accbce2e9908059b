"""Names become files; the hub is a server on loopback that speaks as much of its language as is needed."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ribozyme import hub, registry
from ribozyme.errors import HubError
from ribozyme.hub import resolve

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PINNED = "cuhkaih/rnafm"
PINNED_COMMIT = "91d4a46d28d8054a7b429955e8fc0c253ba0afd6"


@dataclass
class FakeHub:
    """What the server has, what it should do wrong, and what it was asked for."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: dict[str, int] = field(default_factory=dict)  # repository to the status it answers
    cut: dict[str, int] = field(default_factory=dict)  # file to how often it is cut off in the middle
    tags: tuple[str, ...] = ()
    asked: list[str] = field(default_factory=list)
    address: str = ""

    def commit(self, repo: str) -> str:
        return PINNED_COMMIT if repo == PINNED else COMMIT


def handler(shared: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, *, body):
            shared.asked.append(f"{self.command} {self.path}")
            listing = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", self.path)
            resolved = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
            if not listing and not resolved:
                return self.refuse(404, "EntryNotFound")
            repo = (listing or resolved)[1]
            if repo in shared.gated:
                return self.refuse(shared.gated[repo], "GatedRepo")
            if repo not in shared.repositories:
                return self.refuse(401, "RepoNotFound")
            revision = (listing or resolved)[2] or "main"
            if revision not in ("main", shared.commit(repo)):
                return self.refuse(404, "RevisionNotFound")
            if listing:
                return self.listing(repo, shared.repositories[repo])
            if resolved[3] not in shared.repositories[repo]:
                return self.refuse(404, "EntryNotFound")
            return self.file(repo, resolved[3], shared.repositories[repo][resolved[3]], body)

        def refuse(self, status, code):
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def listing(self, repo, files):
            siblings = [{"rfilename": name} for name in files]
            facts = {"id": repo, "sha": shared.commit(repo), "siblings": siblings, "tags": shared.tags}
            text = json.dumps(facts).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def file(self, repo, name, content, body):
            start = int((self.headers.get("Range") or "bytes=0-")[6:].rstrip("-") or 0)
            part = content[start:]
            self.send_response(206 if start else 200)
            self.send_header("X-Repo-Commit", shared.commit(repo))
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Linked-Size", str(len(content)))
            self.send_header("Content-Length", str(len(part)))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            if not body:
                return
            if shared.cut.get(name, 0) > 0:
                shared.cut[name] -= 1
                self.wfile.write(part[: len(part) // 2])
                self.close_connection = True
                return
            self.wfile.write(part)

    return Handler


@pytest.fixture
def server():
    shared = FakeHub()
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler(shared))
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    shared.address = f"http://127.0.0.1:{http.server_port}"
    yield shared
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture
def ask(server, tmp_path):
    """Resolve names in a fresh process, with the environment that a user would set."""

    def run(*names: str, setup: str = "", **environment: str) -> list[dict[str, str]]:
        script = f"""
import json, sys
from ribozyme import hub
from ribozyme.errors import HubError
{setup}
for name in sys.argv[1:]:
    try:
        found = hub.resolve(name)
        print(json.dumps({{"path": str(found.path), "model": found.model and found.model.name}}))
    except HubError as error:
        print(json.dumps({{"error": str(error)}}))
"""
        wanted = {"HF_ENDPOINT": server.address, "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "127.0.0.1"}
        wanted |= {"RIBOZYME_CACHE": str(tmp_path / "cache"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        inherited = {
            k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()
        }
        done = subprocess.run(
            [sys.executable, "-c", script, *names],
            env=inherited | wanted | environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        run.stderr = done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def with_digest_of(content: bytes, size: int | None = None) -> str:
    """Code that makes the registry's `rnafm` expect this content."""
    sha256 = hashlib.sha256(content).hexdigest()
    return f"""
from dataclasses import replace
from ribozyme.registry import File
file = File("RNA-FM_pretrained.pth", "{sha256}", {size if size is not None else len(content)})
hub.MODELS = tuple(replace(m, files=(file,)) if m.name == "rnafm" else m for m in hub.MODELS)
"""


WEIGHTS = b"weights " * 40_000


def test_a_registry_name_is_fetched_at_its_pinned_revision_once_and_then_found_offline(server, ask):
    server.repositories[PINNED] = {"RNA-FM_pretrained.pth": WEIGHTS, "mRNA-FM_pretrained.pth": b"other"}
    setup = with_digest_of(WEIGHTS)
    (first,) = ask("rnafm", setup=setup)
    assert Path(first["path"]).read_bytes() == WEIGHTS
    assert first["model"] == "rnafm"
    assert PINNED_COMMIT in first["path"]
    fetched = [asked for asked in server.asked if "/resolve/" in asked]
    assert fetched
    assert all(PINNED_COMMIT in asked and "mRNA" not in asked for asked in fetched)
    server.asked.clear()
    assert ask("rnafm", setup=setup, HF_HUB_OFFLINE="1") == [first]
    assert ask("rnafm", setup=setup) == [first]  # a pinned file that is here needs no question
    assert not any("rnafm" in asked for asked in server.asked)


def test_any_repository_is_fetched_by_its_id_safetensors_first_and_then_found_offline(server, ask):
    files = {"model.safetensors": WEIGHTS, "config.json": b"{}", "vocab.json": b"{}", "README.md": b"x"}
    unwanted = {"pytorch_model.bin": b"x", "training_args.bin": b"x", "sub/model.safetensors": b"x"}
    server.repositories["org/some-model"] = files | unwanted
    server.tags = ("license:cc-by-nc-sa-4.0",)
    (found,) = ask("org/some-model")
    folder = Path(found["path"])
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors", "vocab.json"]
    assert ask.stderr.count("forbids commercial use") == 1
    server.repositories.clear()
    assert ask("org/some-model", HF_HUB_OFFLINE="1") == [found]
    (by_revision,) = ask(f"org/some-model@{COMMIT}", HF_HUB_OFFLINE="1")
    assert by_revision == found


def test_a_pickle_is_fetched_only_where_there_is_nothing_better(server, ask):
    server.repositories["org/pickled"] = {"best_model.pt": WEIGHTS, "args.json": b"{}", "vocab.json": b"{}"}
    (found,) = ask("org/pickled")
    names = sorted(p.name for p in Path(found["path"]).iterdir())
    assert names == ["args.json", "best_model.pt", "vocab.json"]


def test_several_weights_are_named_instead_of_fetched(server, ask):
    server.repositories[PINNED] = {"RNA-FM_pretrained.pth": b"x", "mRNA-FM_pretrained.pth": b"x"}
    server.repositories["org/none"] = {"README.md": b"x"}
    several, none = ask(PINNED, "org/none")
    assert "2 weight files (RNA-FM_pretrained.pth, mRNA-FM_pretrained.pth)" in several["error"]
    assert "load it by name: rnafm, mrnafm" in several["error"]
    assert "no weight file" in none["error"]
    assert not any("resolve" in asked for asked in server.asked)


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_repository_says_licence_access_local_path_and_the_small_model(server, ask, status):
    server.gated["helical-ai/helix-mRNA"] = status
    by_name, by_id = ask("helix-mrna", "helical-ai/helix-mRNA")
    for answer in (by_name, by_id):
        assert "helical-ai/helix-mRNA" in answer["error"]
        assert "CC-BY-NC-SA-4.0" in answer["error"]
        assert f"access must be asked for at {server.address}/helical-ai/helix-mRNA" in answer["error"]
        assert "HF_TOKEN" in answer["error"]
        assert "load('path/to/folder')" in answer["error"]
        assert "helix-mrna-mini lies in the package" in answer["error"]
    assert ask.stderr.count("forbids commercial use") == 1


def test_what_the_hub_lacks_is_named(server, ask):
    server.repositories[PINNED] = {"something-else": b"x"}
    file, repository, revision = ask("rnafm", "org/absent", f"{PINNED}@v9")
    assert "has no file 'RNA-FM_pretrained.pth'" in file["error"]
    assert "rnafm-mini" in file["error"]
    assert "knows no such repository" in repository["error"]
    assert "no such revision" in revision["error"]


def test_without_network_and_cache_the_error_says_so(server, ask):
    by_name, by_id = ask("rnafm", "org/some-model", HF_HUB_OFFLINE="1")
    assert "RNA-FM_pretrained.pth is not in the local cache, and the hub is offline" in by_name["error"]
    assert "rnafm-mini lies in the package and needs no network" in by_name["error"]
    (unreached,) = ask("org/some-model", HF_ENDPOINT="http://127.0.0.1:1")
    for answer in (by_id, unreached):
        assert "the list of files cannot be fetched" in answer["error"]
        assert "load('path/to/folder')" in answer["error"]


@pytest.mark.slow  # huggingface_hub itself tries for 23 seconds
def test_a_hub_that_does_not_answer_is_an_error_in_the_end(ask):
    (answer,) = ask("rnafm", HF_ENDPOINT="http://127.0.0.1:1")
    assert "offline or not reached" in answer["error"]


@pytest.mark.parametrize(
    ("setup", "wrong"),
    [
        (with_digest_of(b"what was published", len(WEIGHTS)), "has the sha256"),
        (with_digest_of(WEIGHTS, 7), f"has {len(WEIGHTS):,} bytes, the published one 7"),
    ],
)
def test_a_file_that_is_not_the_published_one_is_never_used(server, ask, setup, wrong):
    server.repositories[PINNED] = {"RNA-FM_pretrained.pth": WEIGHTS}
    for answer in ask("rnafm", "rnafm", setup=setup):
        assert wrong in answer["error"]
        assert "it is not used" in answer["error"]
        assert "delete " in answer["error"]


def test_a_file_that_changes_in_the_cache_is_noticed_by_the_hubs_own_digest(server, ask):
    server.repositories["org/some-model"] = {"model.safetensors": WEIGHTS}
    (found,) = ask("org/some-model")
    weights = (Path(found["path"]) / "model.safetensors").resolve()
    weights.write_bytes(WEIGHTS[:-1] + b"?")
    for environment in ({}, {"HF_HUB_OFFLINE": "1"}):
        (answer,) = ask("org/some-model", **environment)
        assert "has the sha256" in answer["error"]


def test_an_interrupted_download_is_taken_up_again(server, ask):
    server.repositories[PINNED] = {"RNA-FM_pretrained.pth": WEIGHTS}
    server.cut["RNA-FM_pretrained.pth"] = 1
    setup = with_digest_of(WEIGHTS)
    (found,) = ask("rnafm", setup=setup)
    if "error" in found:  # a huggingface_hub that does not resume by itself: the next call does
        (found,) = ask("rnafm", setup=setup)
    assert Path(found["path"]).read_bytes() == WEIGHTS


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/model.safetensors", "a\\..\\b.safetensors"])
def test_file_names_that_point_outside_are_refused(server, ask, name):
    server.repositories["org/evil"] = {name: b"x", "model.safetensors": b"x"}
    (answer,) = ask("org/evil")
    assert "points outside" in answer["error"]
    assert not any("resolve" in asked for asked in server.asked)


def test_folders_and_files_come_before_the_registry(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / "mine.safetensors"
    weights.write_bytes(b"x")
    (tmp_path / "scgpt").mkdir()
    (tmp_path / "scgpt" / "best_model.pt").write_bytes(b"x")
    assert resolve("mine.safetensors").path == Path("mine.safetensors")
    assert resolve(weights).path == weights
    assert resolve("scgpt") == hub.Resolved(Path("scgpt"), None)


def test_a_folder_without_weights_does_not_hide_a_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scgpt").mkdir()  # such as a clone of the published code
    monkeypatch.setattr(hub, "_fetch_model", lambda model: Path("fetched") / model.name)
    assert resolve("scgpt").path == Path("fetched/scgpt")


def test_a_model_in_the_package_needs_no_network(tmp_path, monkeypatch):
    folder = tmp_path / "weights" / "rnafm-mini"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"x")
    monkeypatch.setattr(hub, "package_files", lambda _: tmp_path)
    found = resolve("rnafm-mini")
    assert found.path == folder
    assert found.model is not None
    assert hub.cached_files(found.model) == {"model.safetensors": folder / "model.safetensors"}


def test_an_installation_without_its_weights_says_how_to_mend_it(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "package_files", lambda _: tmp_path)
    with pytest.raises(HubError, match=r"missing from this installation(.|\n)*pip install"):
        resolve("rnafm-mini")


@pytest.mark.parametrize(
    ("name", "fragment"),
    [
        ("rna-fm", "did you mean rnafm"),
        ("scGTP", "did you mean scgpt"),
        ("zzz", "names are helix-mrna, mamba2-mrna"),
        ("./absent/folder", "no model, file or folder"),
        ("absent/file.pth", "no model, file or folder"),
        ("org/../etc", "no model, file or folder"),
        ("org/model@../x", "no model, file or folder"),
        ("", "no model, file or folder"),
    ],
)
def test_a_name_that_means_nothing_gets_a_close_match_or_the_list(name, fragment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HubError, match=re.escape(fragment)):
        resolve(name) if name else resolve("nothing\0there")


def test_files_that_are_not_here_yet_are_listed_as_such(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model = next(m for m in registry.MODELS if m.name == "scgpt")
    assert hub.cached_files(model) == {"best_model.pt": None, "args.json": None, "vocab.json": None}
