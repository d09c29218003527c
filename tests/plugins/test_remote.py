"""A folder at a URL gives the rows of the same folder on this machine, whatever faults its server has."""

from __future__ import annotations

import functools
import logging
import multiprocessing
import os
import pickle
import zlib
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote_from_bytes, unquote_to_bytes

import numpy as np
import pytest

import layertap
from layertap_plugins.sources.folder import FolderSource
from layertap_plugins.sources.remote import data_of
from tests.pipeline.test_pipeline import contents, run
from tests.plugins.servers import Handler, folder, in_front_of, serving

PATIENCE = {"timeout": 0.4, "retries": 9}


def source(url, **params):
    return {"type": "folder", "path": url, **PATIENCE, **params}


def records(url, **params):
    return list(FolderSource.of(**{**PATIENCE, "path": str(url), **params}).records())


def reason(call):
    with pytest.raises(layertap.ImageError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return caught.value.reason


@pytest.fixture(scope="module")
def s3():
    """The port of a local S3."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()[1]
    server.stop()


@pytest.fixture
def credentials(monkeypatch):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def bucket(s3, credentials, request, photos):
    """fsspec's view of a bucket with the photographs below `photos/`, its name, and the options to reach it."""
    import fsspec

    options = {"endpoint_url": f"http://127.0.0.1:{s3}"}
    name = f"bucket-{zlib.crc32(request.node.nodeid.encode())}"
    filesystem = fsspec.filesystem("s3", **options, skip_instance_cache=True)
    filesystem.mkdir(name)
    for path in sorted(photos.rglob("*.jpg")):
        filesystem.pipe_file(f"{name}/photos/{path.relative_to(photos).as_posix()}", path.read_bytes())
    return filesystem, name, options


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_rows_over_http_are_those_of_the_folder_whatever_breaks(photos, tmp_path, share):
    run(photos, tmp_path / "local")
    with serving(folder(photos), share=share) as server:
        report = run(photos, tmp_path / "remote", source=source(server.url), workers=8)
    assert (report.kept, report.failed) == (20, 0)
    assert contents(tmp_path / "remote") == contents(tmp_path / "local")
    assert set(server.faults) == ({"reset", "stall", "short"} if share else set())


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_rows_from_s3_are_those_of_the_folder_whatever_breaks(photos, tmp_path, s3, bucket, share):
    run(photos, tmp_path / "local")
    _, name, _ = bucket
    with serving(in_front_of(s3), share=share) as server:
        at = source(f"s3://{name}/photos/", storage_options={"endpoint_url": server.url})
        report = run(photos, tmp_path / "remote", source=at, workers=8)
    assert (report.kept, report.failed) == (20, 0)
    assert contents(tmp_path / "remote") == contents(tmp_path / "local")
    assert set(server.faults) == ({"reset", "stall", "short"} if share else set())


def test_images_that_no_attempt_fetches_fail_as_network_or_timeout_and_can_be_retried(photos, tmp_path):
    with serving(folder(photos), share=1.0) as server:
        hurried = source(server.url, timeout=0.2, retries=0)
        report = run(photos, tmp_path / "out", source=hurried, workers=8, max_failures=20)
        assert report.kept == 0
        assert set(report.reasons) == {"network", "timeout"}
        server.share = 0.0
        again = layertap.run(
            {
                "model": "tiny",
                "taps": ["features.0", "classifier"],
                "source": hurried,
                "sink": {"type": "npy", "path": str(tmp_path / "out")},
                "device": "cpu",
                "batch_size": 4,
                "observers": [],
                "max_failures": 20,
            },
            plugins=[str(os.path.join(os.path.dirname(__file__), "../tiny.py"))],
            retry_failed=True,
        )
    assert (again.kept, again.failed) == (20, 0)
    run(photos, tmp_path / "local")
    assert contents(tmp_path / "out") == contents(tmp_path / "local")


ODD = [
    "a b.jpg",
    "100%.jpg",
    "q?a=1.jpg",
    "h#1.jpg",
    "amp&copy.jpg",
    "é.jpg",
    "c/z.jpg",
    "c-a.jpg",
    "c0.jpg",
    "p+q.jpg",
]


class Raw(Handler):
    """A folder whose names are bytes, as on other web servers: the standard library's quotes them as text."""

    def answer(self):
        path = os.path.join(os.fsencode(self.directory), unquote_to_bytes(self.path).strip(b"/"))
        if not os.path.isdir(path):
            with open(path, "rb") as file:
                body = file.read()
            return 200, {"Content-Length": str(len(body))}, body
        names = [name + b"/" * os.path.isdir(os.path.join(path, name)) for name in os.listdir(path)]
        body = "".join(f'<a href="{quote_from_bytes(name)}">x</a>' for name in names).encode()
        return 200, {"Content-Type": "text/html", "Content-Length": str(len(body))}, body


def test_names_that_would_get_one_id_get_the_same_two_as_in_the_folder(tmp_path):
    for name in (b"\xff.jpg", b"%FF.jpg", b"d\xff/a.jpg", b"d%FF/a.jpg", b"a%20b.jpg"):
        path = os.path.join(os.fsencode(tmp_path), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(name)
    local = {record.id: (record.meta, record.data.read_bytes()) for record in records(tmp_path)}
    assert len(local) == 5
    with serving(functools.partial(Raw, directory=str(tmp_path))) as server:
        assert {record.id: (record.meta, record.data()) for record in records(server.url)} == local


def test_ids_labels_and_order_are_those_of_the_folder(tmp_path, bucket):
    for name in [*ODD, ".hidden.jpg", ".cache/x.jpg", "c/.d/x.jpg", "notes.txt"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    local = {record.id: (record.meta, record.data.read_bytes()) for record in records(tmp_path)}
    with serving(folder(tmp_path)) as server:
        over_http = {record.id: (record.meta, record.data()) for record in records(server.url)}
        deeper = [record.id for record in records(f"{server.url}/c")]
    assert over_http == local
    assert list(over_http) == list(local)
    assert deeper == ["z.jpg"]
    filesystem, name, options = bucket
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        filesystem.pipe_file(f"{name}/odd/{path.relative_to(tmp_path).as_posix()}", path.read_bytes())
    from_s3 = {r.id: (r.meta, r.data()) for r in records(f"s3://{name}/odd", storage_options=options)}
    assert from_s3 == local
    assert list(from_s3) == list(local)


def test_keys_with_empty_parts_and_many_pages_are_all_listed(bucket):
    filesystem, name, options = bucket
    keys = sorted([f"many/{number}.jpg" for number in range(20)] + ["many//0.jpg"])
    for key in keys:
        filesystem.call_s3("put_object", Bucket=name, Key=key, Body=key.encode())
    filesystem.call_s3("put_object", Bucket=name, Key="many/", Body=b"")
    pages = {**options, "s3_additional_kwargs": {"MaxKeys": 3}}
    found = records(f"s3://{name}/many/", storage_options=pages)
    assert [f"many/{record.id}" for record in found] == keys
    assert found[0].data() == b"many//0.jpg"


def test_one_image_at_a_url_is_taken_whatever_its_name(photos, bucket):
    filesystem, name, options = bucket
    filesystem.pipe_file(f"{name}/photos/.one", (photos / "cats/01.jpg").read_bytes())
    (record,) = records(f"s3://{name}/photos/.one", storage_options=options)
    assert (record.id, record.meta, record.data()) == (".one", {"label": None}, (photos / "cats/01.jpg").read_bytes())
    with serving(folder(photos)) as server:
        (record,) = records(f"{server.url}/cats/01.jpg")
        assert (record.id, record.data()) == ("01.jpg", (photos / "cats/01.jpg").read_bytes())
        assert record.data.stamp


def test_an_object_that_changed_or_went_has_its_reason(bucket):
    filesystem, name, options = bucket
    first, second, third = records(f"s3://{name}/photos/", storage_options=options)[:3]
    assert first.data.stamp != second.data.stamp
    filesystem.pipe_file(first.data.path, b"x" * first.data.size)
    filesystem.rm(second.data.path)
    assert reason(first.data) == "changed"
    assert reason(second.data) == "not_found"
    assert third.data()
    assert data_of(f"s3://{first.data.path}", options)() == b"x" * first.data.size


def test_a_page_that_changed_has_its_reason(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"first")
    with serving(folder(tmp_path)) as server:
        (record,) = records(f"{server.url}/a.jpg")
        assert record.data() == b"first"
        (tmp_path / "a.jpg").write_bytes(b"second one")
        assert reason(record.data) == "changed"


class Answers(Handler):
    """One status or fault per path."""

    def answer(self):
        name = self.path.strip("/")
        if name.isdigit():
            return int(name), {"Content-Length": "3"}, b"abc"
        if name == "large":
            return 200, {"Content-Length": str(2**40)}, b"abc"
        if name == "later" and self.server.asked.get(self.path, 0) < 3:
            return 503, {"Content-Length": "0"}, b""
        if name == "around":
            return 302, {"Location": "/around", "Content-Length": "0"}, b""
        if name == "away":
            return 302, {"Location": "file:///etc/passwd", "Content-Length": "0"}, b""
        return 200, {"Content-Length": "2"}, b"ok"


@pytest.mark.parametrize(
    ("path", "code", "asked"),
    [
        ("404", "not_found", 1),
        ("410", "not_found", 1),
        ("401", "permission", 1),
        ("403", "permission", 1),
        ("400", "network", 1),
        ("206", "network", 3),
        ("429", "network", 3),
        ("500", "network", 3),
        ("large", "file_too_large", 1),
        ("around", "network", 10),
        ("away", "network", 1),
    ],
)
def test_each_answer_has_its_reason_and_only_temporary_ones_are_retried(path, code, asked):
    from layertap.images.reading import read
    from layertap.records import ImageRecord, Planned

    with serving(Answers) as server:
        data = data_of(f"{server.url}/{path}", timeout=0.05, retries=2)
        assert reason(lambda: read(Planned(ImageRecord(path, data)))) == code
        assert server.asked[f"/{path}"] == asked


def test_a_server_that_asks_for_patience_is_asked_again():
    with serving(Answers) as server:
        assert data_of(f"{server.url}/later", timeout=0.05, retries=5)() == b"ok"
        assert server.asked["/later"] == 4


def test_headers_of_the_user_are_sent_and_nothing_compressed_is_asked_for():
    with serving(Answers) as server:
        data_of(f"{server.url}/x", {"headers": {"X-Here": "yes"}})()
        assert (server.headers_seen[-1]["X-Here"], server.headers_seen[-1]["Accept-Encoding"]) == ("yes", "identity")


class Dripping(Handler):
    """Sends an endless file, one byte at a time."""

    def do_GET(self):
        self.send_response_only(200)
        self.end_headers()
        while not self.server.over.wait(0.01):
            self.wfile.write(b"x")
        self.close_connection = True


def test_a_very_slow_server_does_not_block_a_thread_for_ever():
    with serving(Dripping) as server:
        assert reason(data_of(f"{server.url}/x", timeout=0.2, retries=0)) == "timeout"


def test_threads_and_processes_fetch_side_by_side(photos, bucket):
    _, name, options = bucket
    local = [(photos / record.id).read_bytes() for record in records(photos)]
    with serving(folder(photos)) as server:
        for url, method in ((server.url, "spawn"), (f"s3://{name}/photos/", "fork")):
            found = records(url, storage_options=options if url.startswith("s3") else {})
            with ThreadPoolExecutor(8) as pool:
                assert list(pool.map(fetch, [record.data for record in found * 3])) == local * 3
            data = [pickle.loads(pickle.dumps(record.data)) for record in found]
            with multiprocessing.get_context(method).Pool(2) as pool:
                assert pool.map(fetch, data) == local


def fetch(data):
    return data()


def test_any_other_filesystem_of_fsspec_is_walked_in_the_same_order(photos):
    import fsspec

    filesystem = fsspec.filesystem("memory")
    local = {record.id: record.data.read_bytes() for record in records(photos)}
    filesystem.pipe({f"/walk/{name}": data for name, data in local.items()})
    filesystem.pipe({"/walk/.cache/x.jpg": b"x", "/walk/note.txt": b"x"})
    try:
        found = {record.id: record.data for record in records("memory://walk")}
        assert {name: data() for name, data in found.items()} == local
        assert list(found) == list(local)
        filesystem.pipe_file("/walk/cats/01.jpg", b"another")
        assert reason(found["cats/01.jpg"]) == "changed"
        (one,) = records("memory://walk/cats/01.jpg")
        assert (one.id, one.data()) == ("01.jpg", b"another")
    finally:
        filesystem.rm("/walk", recursive=True)


def test_a_local_url_is_a_local_path(photos):
    assert records(f"file://{photos}") == records(photos)
    assert data_of("a/b.jpg") == data_of("file://a/b.jpg")


def test_the_manifest_shows_where_the_images_came_from(photos, tmp_path):
    with serving(folder(photos)) as server:
        run(photos, tmp_path / "out", source=source(server.url, storage_options={"encoded": True}), limit=4)
    config = layertap.open(tmp_path / "out").manifest["config"]
    assert config["source"]["path"] == server.url
    assert config["source"]["storage_options"] == {"encoded": True}
    assert np.isfinite(layertap.open(tmp_path / "out")["classifier"][:]).all()
