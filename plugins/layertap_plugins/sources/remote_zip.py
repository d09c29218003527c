"""The images in a zip archive, local or at a URL: read into memory, never unpacked. Names are data, not paths."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import layertap
from layertap_plugins.sources import files
from layertap_plugins.sources.remote_faults import tried
from layertap_plugins.sources.remote_reading import info_of, stamp_of
from layertap_plugins.sources.remote_service import Remote

T = TypeVar("T")

# Deflate can turn one byte into a thousand. A real photograph never does so, unless it is small.
_MOST_RATIO = 100
_ALWAYS_BYTES = 2**24

# The readers for other methods unpack a whole piece at once, however large the result is.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)

# The size of the pieces in which an archive at a URL is read, and how many of them are kept.
_PIECE, _PIECES = 2**20, 32


@dataclass(frozen=True, slots=True)
class Archive:
    """A zip archive as it was when it was listed; `remote` says how to reach it, None for a local file."""

    location: str
    remote: Remote | None
    stamp: str | None

    @classmethod
    def at(cls, location: str, remote: Remote | None) -> Archive:
        """The archive at a path or URL. Raises `OSError`, and `ImageError` if it cannot be reached."""
        if remote is None:
            return cls(location, None, layertap.file_stamp(os.stat(location)))
        info = remote.tried(lambda: info_of(remote.filesystem(), remote.path_of(location), remote.timeout))
        return cls(location, remote, stamp_of(info))

    def members(self) -> Iterator[tuple[bytes, Member]]:
        """All its files with their names, in byte order, including those that must not be read, which fail."""
        found = self._tried(self._open)
        for name in sorted(found.infos, key=_raw):
            infos = found.infos[name]
            refused = len(infos) > 1 or _is_refused(infos[0])
            stamp = f"{infos[0].file_size} {infos[0].CRC:08x}"
            yield _raw(name), Member(self, name, stamp, infos[0].file_size, refused)

    def read(self, name: str) -> bytes:
        """A member's bytes. Raises `ImageError`."""
        return self._tried(lambda: self._read(name))

    def _read(self, name: str) -> bytes:
        found = self._open()
        try:
            info = found.infos[name][0]
            with found.file.open(info) as member:
                data = member.read(info.file_size) if info.file_size else b""
            if len(data) != info.file_size:
                raise zipfile.BadZipFile(f"{len(data)} bytes arrived instead of {info.file_size}")
            return data
        except Exception as error:
            if self.remote is not None:
                _OPEN.pop((self, os.getpid()), None)  # the parts that have been fetched may be wrong
            if isinstance(error, EOFError):
                raise zipfile.BadZipFile("it ends before the end of the member") from error
            raise

    def _open(self) -> _Opened:
        if self.remote is None:
            files.refuse_changed(self.location, self.stamp)
        key = (self, os.getpid())
        found = _OPEN.get(key)
        return found if found is not None else _OPEN.setdefault(key, _Opened.of(self))

    def _tried(self, call: Callable[[], T]) -> T:
        patience = self.remote or _LOCAL
        return tried(call, retries=patience.retries, timeout=patience.timeout)


@dataclass(frozen=True, slots=True)
class Member:
    """One file in an archive, as a record's data; `stamp` is its size and checksum."""

    archive: Archive
    name: str
    stamp: str
    size: int
    refused: bool

    def __call__(self) -> bytes:
        """Its bytes. Raises `ImageError`: `unsafe_member`, `corrupt`, or `changed` if the archive has changed."""
        if self.refused:
            raise layertap.ImageError("unsafe_member")
        files.refuse_large(self.size)
        return self.archive.read(self.name)


@dataclass(frozen=True, slots=True)
class _Opened:
    file: zipfile.ZipFile
    infos: Mapping[str, list[zipfile.ZipInfo]]

    @classmethod
    def of(cls, archive: Archive) -> _Opened:
        if archive.remote is None:
            file: Any = open(archive.location, "rb")  # noqa: SIM115  (the archive closes it)
            stamp = layertap.file_stamp(os.fstat(file.fileno()))
        else:
            filesystem = archive.remote.filesystem()
            filesystem.invalidate_cache()
            path = archive.remote.path_of(archive.location)
            stamp = stamp_of(info_of(filesystem, path, archive.remote.timeout)) or archive.stamp or ""
            pieces = {"maxblocks": _PIECES}
            file = filesystem.open(path, "rb", block_size=_PIECE, cache_type="blockcache", cache_options=pieces)
        try:
            if archive.stamp not in (None, stamp):
                raise layertap.ImageError("changed")
            opened = _Zip(file)
        except BaseException:
            file.close()
            raise
        infos: dict[str, list[zipfile.ZipInfo]] = {}
        for info in opened.infolist():
            if not info.is_dir():
                infos.setdefault(info.filename, []).append(info)
        return cls(opened, infos)


class _Zip(zipfile.ZipFile):
    """A zip file that closes the file object that it was given."""

    def close(self) -> None:
        file = self.fp
        super().close()
        if file is not None:
            file.close()


@dataclass(frozen=True, slots=True)
class _RetryPolicy:
    retries: int
    timeout: float


_LOCAL = _RetryPolicy(0, 0)

# Without a lock, because a fork could leave it locked for ever: all threads use the first one that is put in.
_OPEN: dict[tuple[Archive, int], _Opened] = {}


def parted(location: str) -> tuple[str, str]:
    """The folder inside and the archive that `zip://INSIDE::ARCHIVE` names. Raises `ConfigError`."""
    inside, _, archive = location.removeprefix("zip://").partition("::")
    if not archive or "::" in archive or archive.startswith("zip:"):
        raise layertap.ConfigError(
            f"cannot use {location!r}: write zip://::photos.zip, or zip://FOLDER/INSIDE::photos.zip; archives inside "
            "other archives are not supported",
            where=("path",),
        )
    return inside.strip("/"), archive.removeprefix("file://")


def _is_refused(info: zipfile.ZipInfo) -> bool:
    kind = stat.S_IFMT(info.external_attr >> 16)
    is_bomb = info.file_size > max(_ALWAYS_BYTES, _MOST_RATIO * info.compress_size)
    parts = info.filename.replace("\\", "/").split("/")
    leads_out = ".." in parts or not parts[0] or parts[0].endswith(":")
    is_locked = bool(info.flag_bits & 1)
    return leads_out or is_bomb or is_locked or kind not in (0, stat.S_IFREG) or info.compress_type not in _METHODS


def _raw(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")
