"""What a record holds comes as bytes or an image, or its own code says why it does not."""

from __future__ import annotations

import errno
import io
import os
import socket
from pathlib import Path

import pytest
from PIL import Image

from layertap.errors import ConfigError, ImageError, PluginError
from layertap.images.limits import MAX_IMAGE_BYTES
from layertap.images.reading import GONE, read, stamp_of
from layertap.records import ImageRecord, Planned
from layertap_plugins.sources import files

PHOTO = Image.new("RGB", (8, 6), (200, 100, 50))


def jpeg():
    file = io.BytesIO()
    PHOTO.save(file, "JPEG")
    return file.getvalue()


JPEG = jpeg()


def refused(planned):
    with pytest.raises(ImageError) as caught:
        read(planned)
    return caught.value.reason


def reason_of_reading(data):
    return refused(Planned(ImageRecord("an image", data)))


def test_read_passes_bytes_and_images():
    assert read(Planned(ImageRecord("a", JPEG))) is JPEG
    assert read(Planned(ImageRecord("a", PHOTO))) is PHOTO
    assert read(Planned(ImageRecord("a", lambda: JPEG))) is JPEG
    assert read(Planned(ImageRecord("a", lambda: PHOTO))) is PHOTO


def test_read_gives_the_bytes_of_a_file_and_of_a_link_to_one(tmp_path):
    path, link = tmp_path / "a.jpg", tmp_path / "b.jpg"
    path.write_bytes(JPEG)
    link.symlink_to(path)
    assert read(Planned(ImageRecord("a", path))) == read(Planned(ImageRecord("b", link))) == JPEG


def test_a_file_that_cannot_be_read_gets_its_reason(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "fifo.jpg")
    with open(tmp_path / "sparse.jpg", "wb") as sparse:
        sparse.write(JPEG)
        sparse.truncate(MAX_IMAGE_BYTES + 1)
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(tmp_path, os.O_RDONLY)  # a socket's path has to be short
        server.bind(f"/proc/self/fd/{here}/socket.jpg" if os.path.isdir("/proc/self/fd") else "socket.jpg")
        os.close(here)
        reasons = {path.stem: reason_of_reading(path) for path in tmp_path.iterdir()}
    assert reasons == {
        "empty": "empty",
        "dangling": "not_found",
        "loop": "not_found",
        "zero": "not_regular",
        "folder": "not_regular",
        "fifo": "not_regular",
        "socket": "not_regular",
        "sparse": "file_too_large",
    }
    assert reason_of_reading(tmp_path / "missing.jpg") == "not_found"
    assert reason_of_reading(tmp_path / "empty.jpg" / "below.jpg") == "not_found"
    assert reason_of_reading(tmp_path / ("x" * 5_000)) == "path_too_long"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_gets_its_reason(tmp_path):
    (tmp_path / "a.jpg").write_bytes(JPEG)
    (tmp_path / "a.jpg").chmod(0)
    assert reason_of_reading(tmp_path / "a.jpg") == "permission"


def test_a_file_that_is_not_the_planned_one_is_refused(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(JPEG)
    record = ImageRecord("a", path)
    planned = Planned(record, stamp_of(record))
    assert read(planned) == JPEG
    os.utime(path, ns=(1, 1))
    assert refused(planned) == "changed"
    path.write_bytes(JPEG[:-1])
    assert refused(planned) == "changed"
    path.unlink()
    assert refused(planned) == "vanished"
    path.mkdir()
    assert refused(planned) == "not_regular"


def test_a_file_that_was_not_there_is_no_other_file_when_it_comes(tmp_path):
    record = ImageRecord("a", tmp_path / "a.jpg")
    planned = Planned(record, stamp_of(record))
    assert planned.stamp == GONE
    assert refused(planned) == "not_found"
    record.data.write_bytes(JPEG)
    assert refused(planned) == "changed"


def test_reading_leaves_no_descriptor_open(tmp_path):
    (tmp_path / "a.jpg").write_bytes(JPEG)
    for path in (tmp_path / "a.jpg", tmp_path, Path("/dev/null")):
        first = os.dup(0)
        os.close(first)
        try:
            read(Planned(ImageRecord("a", path)))
        except ImageError as error:
            assert error.reason == "not_regular"  # noqa: PT017
        second = os.dup(0)
        os.close(second)
        assert first == second


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (FileNotFoundError(errno.ENOENT, "gone"), "not_found"),
        (PermissionError(errno.EACCES, "no"), "permission"),
        (OSError("no number"), "io_error"),
        (TimeoutError("slow"), "io_error"),
        (MemoryError(), "out_of_memory"),
        (ValueError("a bug"), "error"),
        (ImageError("of_its_own"), "of_its_own"),
    ],
)
def test_what_a_callable_raises_becomes_a_reason(raised, reason):
    def data():
        raise raised

    assert reason_of_reading(data) == reason


def test_what_a_callable_gives_is_checked():
    assert reason_of_reading(lambda: b"") == "empty"
    assert reason_of_reading(lambda: "text") == "error"
    assert reason_of_reading(b"") == "empty"


def test_other_errors_of_layertap_pass_through_a_callable():
    def data():
        raise ConfigError("the index is missing")

    with pytest.raises(ConfigError):
        read(Planned(ImageRecord("a", data)))


class Stamped:
    """A callable that reads from something which may change."""

    def __init__(self, stamp):
        self.stamp = stamp

    def __call__(self):
        return JPEG


def test_a_callable_with_a_stamp_is_the_planned_one_or_refused():
    record = ImageRecord("a", Stamped("v1"))
    assert stamp_of(record) == "v1"
    assert read(Planned(record, "v1")) == read(Planned(record)) == JPEG
    assert refused(Planned(ImageRecord("a", Stamped("v2")), "v1")) == "changed"
    assert refused(Planned(ImageRecord("a", Stamped(None)), "v1")) == "changed"

    def refuse():
        raise ImageError("outside_root")

    assert refused(Planned(ImageRecord("a", refuse), "v1")) == "outside_root"


def test_what_has_no_stamp_has_none():
    assert [stamp_of(ImageRecord("a", data)) for data in (JPEG, PHOTO, lambda: JPEG, Stamped(None))] == [None] * 4


@pytest.mark.parametrize("stamp", [7, b"v1", "two\nlines", "\udcff"])
def test_a_stamp_that_is_no_line_of_text_is_refused(stamp):
    with pytest.raises(PluginError, match="the data of 'a' has the stamp"):
        stamp_of(ImageRecord("a", Stamped(stamp)))


def rewriting(monkeypatch, path, data, looks):
    """After so many looks at an open file, another process writes to the one at `path`."""
    look, left = os.fstat, iter(range(looks - 1, -1, -1))

    def once(descriptor):
        facts = look(descriptor)
        if next(left):
            return facts
        monkeypatch.setattr(os, "fstat", look)
        path.write_bytes(data)
        os.utime(path, ns=(1, 1))
        return facts

    monkeypatch.setattr(os, "fstat", once)


@pytest.mark.parametrize("change", [lambda data: data[::-1], lambda data: data[:10], lambda data: data * 2])
@pytest.mark.parametrize("planned", [True, False])
def test_a_file_that_is_rewritten_while_it_is_read_has_changed(tmp_path, monkeypatch, change, planned):
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg())
    record = ImageRecord("a.jpg", path)
    stamp = stamp_of(record) if planned else None
    rewriting(monkeypatch, path, change(jpeg()), looks=2)
    assert refused(Planned(record, stamp)) == "changed"


def test_an_archive_that_is_rewritten_while_it_is_read_has_changed(tmp_path, monkeypatch):
    path = tmp_path / "a.tar"
    path.write_bytes(jpeg())
    piece = files.Piece(str(path), 0, len(jpeg()), files.stamped(str(path)))
    assert piece() == jpeg()
    rewriting(monkeypatch, path, jpeg()[::-1], looks=1)
    assert refused(Planned(ImageRecord("a", piece))) == "changed"
