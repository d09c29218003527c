"""Unreachable sources are reported before anything is written, and no secret gets into the manifest."""

from __future__ import annotations

import subprocess
import sys

import pydantic
import pytest

import layertap
from layertap_plugins.sources.folder import FolderSource
from layertap_plugins.sources.remote import data_of
from tests.pipeline.test_pipeline import run
from tests.plugins.servers import Handler, serving
from tests.plugins.test_remote import bucket, credentials, s3  # noqa: F401  (fixtures)


@pytest.mark.parametrize(
    "options",
    [
        {"key": "AKIA", "secret": "hunter2"},
        {"client_kwargs": {"aws_secret_access_key": "hunter2"}},
        {"headers": {"Authorization": "Bearer hunter2"}},
        {"headers": {"X-Api-Key": "hunter2"}},
        {"token": "/home/me/hunter2.json"},
        {"token": {"private_key": "hunter2"}},
        {"account_key": "hunter2"},
        {"connection_string": "AccountKey=hunter2"},
        {"sas_token": "hunter2"},
        {"password": 31337},
        {"client_kwargs": {"proxy": "http://me:hunter2@proxy"}},
        {"client_kwargs": [{"cookies": {"a": "hunter2"}}]},
    ],
)
def test_options_that_look_like_secrets_are_refused_unsaid(tmp_path, options):
    source = {"type": "folder", "path": "s3://bucket/", "storage_options": options}
    with pytest.raises(layertap.ConfigError, match="environment variables or credential files") as caught:
        run(tmp_path, tmp_path / "out", source=source)
    assert "hunter2" not in str(caught.value)
    assert "31337" not in str(caught.value)
    assert "storage_options" in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "path",
    ["https://me:hunter2@host/a.jpg", "https://host/a.jpg?X-Amz-Signature=hunter2", "https://host/a?sig=hunter2&x=1"],
)
def test_a_secret_in_the_url_is_refused_unsaid(tmp_path, path):
    with pytest.raises(layertap.ConfigError, match="secret") as caught:
        run(tmp_path, tmp_path / "out", source={"type": "folder", "path": path})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"anon": True, "endpoint_url": "http://localhost:9000", "requester_pays": True},
        {"token": "anon"},
        {"token": "google_default", "project": "p"},
        {"headers": {"User-Agent": "layertap"}, "client_kwargs": {"trust_env": True}},
        {"profile": "work", "config_kwargs": {"max_pool_connections": 8}},
    ],
)
def test_plain_options_are_taken(options):
    assert FolderSource.of(path="s3://bucket/", storage_options=options).params.storage_options == options


def test_only_plain_data_is_taken():
    with pytest.raises(pydantic.ValidationError, match="plain data"):
        FolderSource.of(path="s3://bucket/", storage_options={"session": object()})
    with pytest.raises(layertap.ConfigError, match="local path"):
        list(FolderSource.of(path="images/", storage_options={"anon": True}).records())


class Empty(Handler):
    """A server with only a page that lists nothing."""

    def answer(self):
        if self.path.rstrip("/") == "/empty":
            return 200, {"Content-Type": "text/html", "Content-Length": "2"}, b"<>"
        if self.path.rstrip("/") == "/raw":
            return 200, {"Content-Type": "application/json", "Content-Length": "2"}, b"[]"
        return 403, {"Content-Length": "0"}, b""


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("s3://no-such-bucket/photos/", "no such bucket"),
        ("s3://{bucket}/nothing/", "no images"),
        ("s3://", "does not name a bucket"),
        ("s3://Bad_Bucket!/", "Invalid bucket name"),
        ("s4://bucket/", "unknown protocol 's4'"),
        ("reference://x", "is not supported"),
        ("simplecache::s3://bucket/", "is not supported"),
        ("memory://nothing", "no such bucket, folder or file"),
        ("http://127.0.0.1:1/", "check the address"),
        ("http://no-such-host.invalid/a/", "check the address"),
        ("{url}/empty/", "does not list its contents"),
        ("{url}/raw/", "does not list its contents"),
        ("{url}/closed/", "check the credentials"),
    ],
)
def test_unreadable_sources_are_reported_in_one_line_before_anything_is_written(bucket, tmp_path, path, said):  # noqa: F811
    _, name, options = bucket
    with serving(Empty) as server:
        at = path.format(bucket=name, url=server.url)
        source = {"type": "folder", "path": at, "timeout": 0.2, "retries": 1}
        if path.startswith("s3"):
            source["storage_options"] = options
        with pytest.raises(layertap.ConfigError, match=said) as caught:
            run(tmp_path, tmp_path / "out", source=source)
    assert "\n" not in str(caught.value)
    assert caught.value.code == 2
    assert not (tmp_path / "out").exists()


def test_missing_credentials_are_reported(bucket, monkeypatch, tmp_path):  # noqa: F811
    _, name, options = bucket
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    # These options differ from those of the other tests, which have already found their credentials.
    source = {"type": "folder", "path": f"s3://{name}/photos/", "storage_options": {**options, "use_ssl": False}}
    with pytest.raises(layertap.ConfigError, match=r"credentials; check .*anon: true"):
        run(tmp_path, tmp_path / "out", source=source)


@pytest.mark.parametrize(
    ("url", "hidden", "extra"),
    [
        ("s3://b/x", "fsspec", "s3"),
        ("s3://b/x", "s3fs", "s3"),
        ("gs://b/x", "gcsfs", "gcs"),
        ("https://h/x", "aiohttp", "remote"),
        ("memory://x", "fsspec", "remote"),
        ("zip://::s3://b/x.zip", "s3fs", "s3"),
    ],
)
def test_a_missing_package_is_reported_with_its_extra(url, hidden, extra):
    program = f"""
import sys
sys.modules[{hidden!r}] = None
import layertap
from layertap_plugins.sources.folder import FolderSource
try:
    list(FolderSource.of(path={url!r}).records())
except layertap.ConfigError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert f"needs the package {hidden!r}: pip install 'layertap[{extra}]'" in said.stdout


def test_a_local_folder_needs_none_of_it(photos):
    program = f"""
import sys
from layertap_plugins.sources.folder import FolderSource
assert len(list(FolderSource.of(path={str(photos)!r}).records())) == 20
assert not {{"fsspec", "aiohttp", "asyncio", "s3fs", "ssl"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize("location", ["nope://x/y", "zip://a.jpg::b.zip", "reference://x"])
def test_data_of_refuses_what_it_cannot_open(location):
    with pytest.raises(layertap.ConfigError):
        data_of(location)
