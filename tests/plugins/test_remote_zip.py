"""Images in a zip archive give the rows of the unpacked ones; hostile members fail one by one, and write nothing."""

from __future__ import annotations

import os
import stat
import struct
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest

import layertap
from layertap_plugins.sources.folder import FolderSource
from tests.pipeline.test_pipeline import contents, run
from tests.plugins.servers import folder, serving
from tests.plugins.test_remote import PATIENCE, bucket, credentials, reason, s3  # noqa: F401  (fixtures)


@pytest.fixture
def archive(photos, tmp_path):
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for number, photo in enumerate(sorted(photos.rglob("*.jpg"), reverse=True)):
            kind = zipfile.ZIP_STORED if number % 2 else zipfile.ZIP_DEFLATED
            file.write(photo, f"in/{photo.relative_to(photos).as_posix()}", kind)
        file.writestr("in/.hidden/x.jpg", b"x")
        file.writestr("in/notes.txt", b"x")
        file.writestr("other.jpg", b"x")
    return path


def records(location, **params):
    return list(FolderSource.of(path=location, **{**PATIENCE, **params}).records())


def test_rows_from_a_zip_are_those_of_the_folder(photos, archive, tmp_path):
    run(photos, tmp_path / "local")
    report = run(photos, tmp_path / "zipped", source={"type": "folder", "path": f"zip://in::{archive}"}, workers=4)
    assert (report.kept, report.failed) == (20, 0)
    assert contents(tmp_path / "zipped") == contents(tmp_path / "local")


def test_a_part_of_an_archive_or_one_image_of_it(photos, archive):
    assert [r.id for r in records(f"zip://::{archive}")][-2:] == ["in/dogs/18.jpg", "other.jpg"]
    assert {r.id for r in records(f"zip://in/cats/::file://{archive}")} == {p.name for p in (photos / "cats").iterdir()}
    (one,) = records(f"zip://in/cats/01.jpg::{archive}")
    assert (one.id, one.data()) == ("01.jpg", (photos / "cats/01.jpg").read_bytes())


def test_an_archive_at_a_url_is_read_in_pieces_on_many_threads(photos, archive, bucket):  # noqa: F811
    filesystem, name, options = bucket
    filesystem.put_file(str(archive), f"{name}/photos.zip")
    found = records(f"zip://in::s3://{name}/photos.zip", storage_options=options)
    with ThreadPoolExecutor(8) as pool:
        data = list(pool.map(lambda record: record.data(), found))
    assert data == [(photos / record.id).read_bytes() for record in found]


def test_a_web_server_without_range_requests_is_reported(archive):
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("large.bin", os.urandom(2**21))
    with (
        serving(folder(archive.parent)) as server,
        pytest.raises(layertap.ConfigError, match="range requests") as caught,
    ):
        records(f"zip://in::{server.url}/photos.zip")
    assert "\n" not in str(caught.value)


def test_an_archive_that_changed_fails_its_images(archive):
    (record,) = records(f"zip://in/cats/01.jpg::{archive}")
    os.utime(archive, ns=(1, 1))
    assert reason(record.data) == "changed"


def hostile(path):
    """Harmful members, each under a name that says what it does, and a good one."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file.writestr("good.jpg", b"good")
        file.writestr("../up.jpg", b"x")
        file.writestr("a/../../up.jpg", b"x")
        file.writestr("a\\..\\up.jpg", b"x")
        file.writestr("/absolute.jpg", b"x")
        file.writestr("C:/drive.jpg", b"x")
        file.writestr("twice.jpg", b"one")
        file.writestr("twice.jpg", b"two")
        file.writestr("bomb.jpg", b"\0" * 2**25)
        file.writestr("slow.jpg", b"x" * 99, zipfile.ZIP_BZIP2)
        link = zipfile.ZipInfo("link.jpg")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(link, b"/etc/passwd")
        pipe = zipfile.ZipInfo("pipe.jpg")
        pipe.external_attr = (stat.S_IFIFO | 0o666) << 16
        file.writestr(pipe, b"")
        file.writestr("lies.jpg", os.urandom(500))
        file.writestr("damaged.jpg", b"d" * 500)
        file.writestr("locked.jpg", b"x")
        file.writestr("large.jpg", b"x")
        file.writestr("empty.jpg", b"")
    data = bytearray(path.read_bytes())
    at = {name: data.rindex(name.encode()) - 46 for name in ("lies.jpg", "locked.jpg", "large.jpg", "damaged.jpg")}
    data[at["lies.jpg"] + 24 : at["lies.jpg"] + 28] = struct.pack("<I", 400)
    data[at["damaged.jpg"] + 16] ^= 1
    data[at["locked.jpg"] + 8] |= 1
    data[at["large.jpg"] + 20 : at["large.jpg"] + 28] = struct.pack("<II", 2**29, 2**29 + 1)
    path.write_bytes(data)


def test_a_hostile_archive_fails_by_the_member_and_writes_nothing(tmp_path):
    (tmp_path / "inside").mkdir()
    hostile(tmp_path / "inside/bad.zip")
    found = {r.id: r.data for r in records(f"zip://::{tmp_path}/inside/bad.zip", include=["*"])}
    assert found.pop("good.jpg")() == b"good"
    assert found.pop("empty.jpg")() == b""
    lasting = ("../up.jpg", "a/../../up.jpg", "a\\..\\up.jpg", "/absolute.jpg", "C:/drive.jpg", "twice.jpg", "bomb.jpg")
    assert {name: reason(data) for name, data in found.items()} == {
        **dict.fromkeys((*lasting, "slow.jpg", "link.jpg", "pipe.jpg", "locked.jpg"), "unsafe_member"),
        "lies.jpg": "corrupt",
        "damaged.jpg": "corrupt",
        "large.jpg": "file_too_large",
    }
    assert [path.name for path in tmp_path.rglob("*")] == ["inside", "bad.zip"]


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("zip://x", "write zip://::photos.zip"),
        ("zip://a::zip://b::c.zip", "inside other archives are not supported"),
        ("zip://::{}/none.zip", "No such file"),
        ("zip://::{}/text.zip", "not an archive"),
        ("zip://nowhere::{}/photos.zip", "no images"),
    ],
)
def test_an_unusable_archive_is_reported_in_one_line(archive, tmp_path, location, said):
    (tmp_path / "text.zip").write_text("not an archive")
    with pytest.raises(layertap.ConfigError, match=said) as caught:
        records(location.format(tmp_path))
    assert "\n" not in str(caught.value)
