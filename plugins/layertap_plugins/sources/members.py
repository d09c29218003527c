"""The members of a tar archive: where the bytes of each lie. Nothing is unpacked, and a name is only ever a text.

Read are the old, the POSIX (pax) and the GNU format. The standard library's reader keeps every member in memory, and
takes what is damaged for the end.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import layertap

_BLOCK = 512
_END = bytes(_BLOCK)
_PAGE = 4096

# Long names and attributes are read into memory; no honest one is longer.
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
    """A file in an archive. Where it is no regular one (a link, a device, sparse), its data is nothing to be read."""

    name: bytes
    offset: int
    size: int
    regular: bool


class Archive:
    """The open archive behind a descriptor. `path` is what its faults call it."""

    def __init__(self, descriptor: int, path: str) -> None:
        self._descriptor = descriptor
        self._path = path
        self._size = os.fstat(descriptor).st_size
        self._start, self._page = 0, b""

    def read(self, member: Member) -> bytes:
        """A small member's bytes: what lies beside its header has been read already."""
        return self._at(member.offset, member.size)

    def members(self) -> Iterator[Member]:
        """All but the folders, in order. Raises `ConfigError` where the archive is cut short, damaged or compressed."""
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
                    f"source.path: {self._path!r} is cut short: the member at byte {start - _BLOCK} should have {size} "
                    "bytes, and the file ends before; fetch it again"
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
        """Up to `count` bytes. Small ones come out of a page, in which a sample's own metadata mostly lies too."""
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
            raise self._damaged(at, "a header whose checksum is wrong")

    def _number(self, field: bytes, at: int, facts: dict[bytes, bytes] | None = None) -> int:
        """A number of a header: octal, or binary where its first bit is set; decimal where it is an attribute's."""
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
            raise self._damaged(at, f"{field!r} for a number")
        return number

    def _after_map(self, header: bytes, at: int) -> int:
        """Where a sparse member's data begins: behind the blocks that say where its holes are."""
        more = header[482:483]
        while more not in (b"\0", b""):
            more = self._at(at, _BLOCK)[504:505]
            at += _BLOCK
        return at

    def _attributes(self, text: bytes, at: int) -> dict[bytes, bytes]:
        """What a pax header says of the next member: lines of `LENGTH KEY=VALUE`."""
        found = {}
        while text:
            length, _, _ = text.partition(b" ")
            count = int(length) if length.isdigit() and len(length) < 8 else 0
            key, equals, value = text[len(length) + 1 : count].partition(b"=")
            if not equals or not value.endswith(b"\n"):
                raise self._damaged(at, "an attribute that is none")
            found[key] = value[:-1]
            text = text[count:]
        return found

    def _unfinished(self, at: int) -> layertap.ConfigError:
        if at == self._size and at:
            return layertap.ConfigError(
                f"source.path: {self._path!r} has no end mark, so it was probably cut short; fetch it again, or, where "
                f"it is whole, add one: truncate -s +1024 {self._path}"
            )
        return self._damaged(at, "less than a header")

    def _damaged(self, at: int, what: str) -> layertap.ConfigError:
        start = os.pread(self._descriptor, 8, 0)
        for magic, command in _COMPRESSED.items():
            if start.startswith(magic):
                return layertap.ConfigError(
                    f"source.path: {self._path!r} is compressed, and its images can only be reached in a plain tar: "
                    f"unpack it first, with {command}"
                )
        return layertap.ConfigError(f"source.path: {self._path!r} is no tar archive, or damaged: {what}, at byte {at}")


def _name(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name
