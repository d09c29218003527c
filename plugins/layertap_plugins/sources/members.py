"""The members of a tar archive: where the bytes of each are. Nothing is unpacked, and names are only used as text.

This reads the old, the POSIX (pax) and the GNU format. The standard library's reader keeps every member in memory, and
mistakes damage for the end of the archive.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import layertap

_BLOCK = 512
_END = bytes(_BLOCK)
_PAGE = 4096

# Long names and attributes are read into memory; genuine ones are never longer.
_MOST_EXTRA = 2**20

_REGULAR = b"0\0007"
_WITHOUT_DATA = b"123456"
_FOLDER, _SPARSE, _LONG_NAME, _PAX = b"5", b"S", b"L", b"x"
_ABOUT_OTHERS = b"LKxXg"

_COMPRESSED = {
    b"\x1f\x8b": "gzip -d",
    b"BZh": "bzip2 -d",
    b"\xfd7zXZ": "xz -d",
    b"\x28\xb5\x2f\xfd": "zstd -d",
}


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive. If it is not a regular file (a link, a device, sparse), its data must not be read."""

    name: bytes
    offset: int
    size: int
    regular: bool


class Archive:
    """An archive that is open at a descriptor. Errors refer to it as `path`."""

    def __init__(self, descriptor: int, path: str) -> None:
        self._descriptor = descriptor
        self._path = path
        self._size = os.fstat(descriptor).st_size
        self._start, self._page = 0, b""

    def read(self, member: Member) -> bytes:
        """A small member's bytes: the data next to its header has already been read."""
        return self._at(member.offset, member.size)

    def members(self) -> Iterator[Member]:
        """All members but folders, in order. Raises `ConfigError` for a truncated, damaged or compressed archive."""
        at = 0
        long_name: bytes | None = None
        facts: dict[bytes, bytes] = {}
        while (header := self._at(at, _BLOCK)) != _END:
            if len(header) < _BLOCK:
                raise self._unfinished(at)
            self._check(header, at)
            start, kind = at + _BLOCK, header[156:157]
            if kind == _SPARSE:
                start = self._after_map(header, start)
            size = 0 if kind in _WITHOUT_DATA else self._number(facts.get(b"size") or header[124:136], at, facts)
            at = start + -(-size // _BLOCK) * _BLOCK
            if start + size > self._size:
                raise layertap.ConfigError(
                    f"{self._path!r} is cut short: the member at byte {start - _BLOCK} should have {size} "
                    "bytes, but the file ends earlier; fetch it again",
                    where=("path",),
                )
            if kind in _ABOUT_OTHERS:
                if size > _MOST_EXTRA:
                    raise self._damaged(start - _BLOCK, f"a name or attributes of {size} bytes")
                if kind == _LONG_NAME:
                    long_name = self._at(start, size).rstrip(b"\0")
                elif kind == _PAX:
                    facts |= self._attributes(self._at(start, size), start)
                continue
            name = facts.get(b"path") or long_name or _name(header)
            sparse = kind == _SPARSE or any(key.startswith(b"GNU.sparse.") for key in facts)
            if kind != _FOLDER and not name.endswith(b"/"):
                yield Member(name, start, size, kind in _REGULAR and not sparse)
            long_name, facts = None, {}

    def _at(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes. Small reads come from a page, which usually also contains the sample's own metadata."""
        begin = offset - self._start
        if begin < 0 or begin + count > len(self._page):
            self._start, self._page = offset, os.pread(self._descriptor, max(count, _PAGE), offset)
            begin = 0
        return self._page[begin : begin + count]

    def _check(self, header: bytes, at: int) -> None:
        stated = self._number(header[148:156], at)
        summed = header[:148] + b" " * 8 + header[156:]
        # Some old writers summed signed bytes.
        if stated != sum(summed) and stated != sum(summed) - 256 * sum(byte > 127 for byte in summed):
            raise self._damaged(at, "a header with a wrong checksum")

    def _number(self, field: bytes, at: int, facts: dict[bytes, bytes] | None = None) -> int:
        """A number in a header: octal, or binary if its first bit is set; decimal if it is from an attribute."""
        try:
            if facts and b"size" in facts:
                number = int(field)
            elif field[0] & 0x80:
                number = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:])
            else:
                number = int(field.strip(b" \0") or b"0", 8)
        except ValueError:
            number = -1
        if number < 0:
            raise self._damaged(at, f"{field!r} instead of a number")
        return number

    def _after_map(self, header: bytes, at: int) -> int:
        """Where a sparse member's data begins: after the blocks that list its holes."""
        more = header[482:483]
        while more not in (b"\0", b""):
            more = self._at(at, _BLOCK)[504:505]
            at += _BLOCK
        return at

    def _attributes(self, text: bytes, at: int) -> dict[bytes, bytes]:
        """The attributes of the next member in a pax header: lines of `LENGTH KEY=VALUE`."""
        found = {}
        while text:
            length, _, _ = text.partition(b" ")
            count = int(length) if length.isdigit() and len(length) < 8 else 0
            key, equals, value = text[len(length) + 1 : count].partition(b"=")
            if not equals or not value.endswith(b"\n"):
                raise self._damaged(at, "a malformed attribute")
            found[key] = value[:-1]
            text = text[count:]
        return found

    def _unfinished(self, at: int) -> layertap.ConfigError:
        if at == self._size and at:
            return layertap.ConfigError(
                f"{self._path!r} has no end mark, so it was probably cut short; fetch it again or, if "
                f"it is complete, add the mark: truncate -s +1024 {self._path}",
                where=("path",),
            )
        return self._damaged(at, "an incomplete header")

    def _damaged(self, at: int, what: str) -> layertap.ConfigError:
        start = os.pread(self._descriptor, 8, 0)
        for magic, command in _COMPRESSED.items():
            if start.startswith(magic):
                return layertap.ConfigError(
                    f"{self._path!r} is compressed, and its images can only be reached in a plain tar: "
                    f"unpack it first, with {command}",
                    where=("path",),
                )
        return layertap.ConfigError(
            f"{self._path!r} is not a tar archive, or is damaged: {what}, at byte {at}", where=("path",)
        )


def _name(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name
