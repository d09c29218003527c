"""The boxes that ISO files such as AVIF and JPEG 2000 are made of."""

from __future__ import annotations

import struct
from collections.abc import Iterator


def boxes(data: bytes) -> Iterator[tuple[bytes, int]]:
    """The kinds of the outermost boxes of an ISO file, and the offset of each box's contents.

    Raises `struct.error` if the data ends within one.
    """
    at = 0
    while at < len(data):
        length, kind = struct.unpack_from(">L4s", data, at)
        head = 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, at + 8)
            head = 16
        yield kind, at + head
        if length == 0:  # to the end of the file
            return
        if length < head or at + length > len(data):
            raise struct.error("a box of no length, or one longer than the file")
        at += length
