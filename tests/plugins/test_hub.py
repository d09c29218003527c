"""Files in the cache are used unchanged; files that cannot be fetched are reported at once, with the ways out."""

from __future__ import annotations

import hashlib
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from layertap import WeightsError
from tests.published import COMMIT, empty_hub, one_line, publish

pytest.importorskip("huggingface_hub", reason="needs `pip install 'layertap[timm]'` or another extra of the hub")

from layertap_plugins.models import hub


@pytest.fixture
def cache(tmp_path, monkeypatch):
    with empty_hub(tmp_path / "hub", monkeypatch) as folder:
        yield folder


class Hub(BaseHTTPRequestHandler):
    """A hub's answers for the files of owner/name, as far as its client uses them."""

    files: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str]] = []

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.wfile.write(self.answer())

    def answer(self):
        self.asked.append(f"{self.command} {self.path}")
        content = self.files.get(self.path.removeprefix("/owner/name/resolve/"), None)
        self.send_response(404 if content is None else 200)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(content or b"").hexdigest()}"')
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        return content or b""

    def log_message(self, *_):
        pass


@pytest.fixture
def online(cache, monkeypatch):
    """A hub on this machine, with a file in its newest commit and one in another revision."""
    Hub.files = {"main/pytorch_model.bin": b"weights", f"{COMMIT}/config.json": b"{}", "other/config.json": b'{"a": 1}'}
    Hub.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Hub
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_file_that_the_cache_lacks_is_fetched_once_and_the_rest_is_of_its_commit(cache, online):
    repository = hub.Repository("owner/name")
    path = hub.weights_file(repository)
    assert (path.name, path.read_bytes(), repository.revision) == ("pytorch_model.bin", b"weights", COMMIT)
    assert path.is_relative_to(cache)
    assert repository.find("config.json").read_bytes() == b"{}"
    asked = len(online.asked)
    assert hub.weights_file(hub.Repository("owner/name")) == path
    assert len(online.asked) == asked


def test_a_revision_is_fetched_by_its_name_and_a_missing_file_is_none(online):
    assert hub.Repository("owner/name@other").find("config.json").read_bytes() == b'{"a": 1}'
    assert hub.Repository("owner/name").find("nothing.json", "nowhere.json") is None
    with pytest.raises(WeightsError, match="has no weights"):
        hub.weights_file(hub.Repository("owner/name@other"))


def test_a_file_in_the_cache_is_found_and_fixes_the_commit(cache):
    (publish(cache, "owner/name") / "model.safetensors").write_bytes(b"weights")
    repository = hub.Repository("owner/name")
    assert repository.find("model.safetensors").read_bytes() == b"weights"
    assert (repository.label, repository.revision) == ("owner/name", COMMIT)


def test_the_first_of_several_files_that_the_cache_has_is_taken(cache):
    (publish(cache, "owner/name") / "pytorch_model.bin").write_bytes(b"weights")
    assert hub.weights_file(hub.Repository("owner/name")).name == "pytorch_model.bin"


def test_a_commit_can_be_named(cache):
    (publish(cache, "owner/name") / "config.json").write_text("{}")
    assert hub.Repository(f"owner/name@{COMMIT}").find("config.json")
    with pytest.raises(WeightsError, match="cannot be fetched"):
        hub.Repository(f"owner/name@{'f' * 40}").find("config.json")


def test_what_the_cache_knows_to_be_missing_is_not_asked_for(cache):
    snapshot = publish(cache, "owner/name")
    known = snapshot.parents[1] / ".no_exist" / COMMIT
    known.mkdir(parents=True)
    (known / "config.json").touch()
    assert hub.Repository("owner/name").find("config.json") is None
    with pytest.raises(WeightsError, match="cannot be fetched"):
        hub.Repository("owner/name").find("config.json", "other.json")


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("model.safetensors", "model.weights=PATH of a file you have, or model.weights=random"),
        ("config.json", "folder"),
    ],
)
def test_a_hub_that_cannot_be_reached_ends_at_once_with_the_ways_out(cache, name, cure):
    started = time.monotonic()
    with pytest.raises(WeightsError) as error:
        hub.Repository("owner/name").find(name)
    assert time.monotonic() - started < 15  # the libraries would retry for longer
    for part in (name, "owner/name", str(cache), cure):
        assert part in str(error.value)
    assert one_line(error)


def test_offline_mode_is_named_in_the_error(cache, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="offline"):
        hub.Repository("owner/name").find("model.safetensors")


@pytest.mark.parametrize(
    "reference", ["name", "a/b/c", "../x", "a/..", "a b/c", "a/b@", "a/b@../c", "a/b@x/../y", "/a", "a/"]
)
def test_a_reference_that_is_not_a_repository_is_refused(cache, reference):
    with pytest.raises(WeightsError, match=r"is not OWNER/NAME|is not a revision"):
        hub.Repository(reference)


def test_a_folder_gives_its_files(tmp_path):
    (tmp_path / "model.safetensors").touch()
    folder = hub.Folder(tmp_path)
    assert folder.find("none.bin", "model.safetensors") == tmp_path / "model.safetensors"
    assert (folder.find("none.bin"), folder.revision) == (None, None)
    with pytest.raises(WeightsError, match="is not a folder"):
        hub.Folder(tmp_path / "none")
    with pytest.raises(WeightsError, match="has no weights"):
        hub.weights_file(hub.Folder(tmp_path), "other.pth")


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff\xfe", b"{", b"[" * 100_000, b"1" * 5_000])
def test_a_file_that_holds_no_json_object_is_named(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(WeightsError, match=r"config\.json") as error:
        hub.read_json(tmp_path / "config.json")
    assert one_line(error)
