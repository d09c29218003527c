"""From a record to its encoded bytes, or to the image if its source gives one.

Only regular files are read. A file that has changed since the run was planned is refused by its size and time, and so
is whatever a callable reads from, if it has a stamp.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from PIL import Image

from layertap.errors import ImageError, LayertapError, PluginError
from layertap.images.failure_codes import refusal
from layertap.images.files import file_stamp, open_regular
from layertap.images.limits import MAX_IMAGE_BYTES
from layertap.records import ImageRecord, Planned

GONE = "gone"
"""The stamp of a file that was not there."""

_ERRNOS = {
    errno.ENOENT: "not_found",
    errno.ENOTDIR: "not_found",
    errno.ELOOP: "not_found",
    errno.EACCES: "permission",
    errno.EPERM: "permission",
    errno.ENXIO: "not_regular",  # a socket, or a device without a driver
    errno.ENODEV: "not_regular",
    errno.ENAMETOOLONG: "path_too_long",
    errno.ENOMEM: "out_of_memory",
}


def stamp_of(record: ImageRecord) -> str | None:
    """What identifies the version of a file without reading it: size and modification time, or a callable's `stamp`.

    None for other data. Raises `PluginError` if a stamp is not text.
    """
    if not isinstance(record.data, Path):
        return _given(record)
    try:
        return file_stamp(record.data.stat())
    except (OSError, ValueError):
        return GONE


def read(planned: Planned) -> bytes | Image.Image:
    """The record's encoded bytes, or the image if its source gives one. Raises `ImageError`."""
    data: object = planned.record.data
    try:
        if isinstance(data, Path):
            data = _read_file(data, planned.stamp)
        elif callable(data):
            given = _given(planned.record)
            if given is not None and planned.stamp not in (None, given):
                raise refusal("changed")
            data = data()
            # A callable that only refuses has raised its reason by now, such as a link out of the folder.
            if planned.stamp not in (None, given):
                raise refusal("changed")
    except LayertapError:
        raise
    except OSError as error:
        reason = _ERRNOS.get(error.errno or 0, "io_error")
        was_there = planned.stamp not in (None, GONE)
        raise refusal("vanished" if was_there and reason == "not_found" else reason) from error
    except Exception as error:
        raise refusal("out_of_memory" if isinstance(error, MemoryError) else "error") from error
    if isinstance(data, Image.Image):
        return data
    if not isinstance(data, bytes):
        raise ImageError("error", f"error: the source gave {type(data).__name__}, not bytes or an image")
    if not data:
        raise refusal("empty")
    if len(data) > MAX_IMAGE_BYTES:
        raise refusal("file_too_large")
    return data


def _given(record: ImageRecord) -> str | None:
    """The stamp of a callable, which identifies the version of what it reads."""
    stamp = getattr(record.data, "stamp", None) if callable(record.data) else None
    if stamp is not None and not (isinstance(stamp, str) and stamp.isprintable()):
        raise PluginError(f"the data of {record.id!r} has the stamp {stamp!r}; a stamp is one line of text, or None")
    return stamp


def _read_file(path: Path, stamp: str | None) -> bytes:
    with open(open_regular(path, stamp), "rb") as file:
        before = os.fstat(file.fileno())
        size = before.st_size
        if size > MAX_IMAGE_BYTES:
            raise refusal("file_too_large")
        data = file.read(size)
        if len(data) != size or file_stamp(os.fstat(file.fileno())) != (stamp or file_stamp(before)):
            raise refusal("changed")  # it was written to in the meantime: the data may be half old and half new
        return data
