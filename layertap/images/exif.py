"""Numbers in an EXIF block, and in the MPF block of the same form; Pillow's own reader warns of faulty ones."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

ORIENTATION = 0x0112

_NUMBERS = {3: "H", 4: "L"}


def exif_orientation(image: Image.Image) -> int:
    """How to turn and mirror an image, from 1 (as it is) to 8; 1 if its EXIF block does not say."""
    block = image.info.get("exif")
    found = entry(block, ORIENTATION) if isinstance(block, bytes) else None
    return found if found is not None and 1 <= found <= 8 else 1


def entry(block: bytes, wanted: int) -> int | None:
    """The number under a tag of the block's first directory; None if there is none, or the block makes no sense."""
    tiff = memoryview(block)[6 * block.startswith(b"Exif\0\0") :]
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(bytes(tiff[:4]))
    if order is None:
        return None
    try:
        (at,) = struct.unpack_from(f"{order}L", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, at)
        for place in range(at + 2, at + 2 + 12 * count, 12):
            tag, kind, length = struct.unpack_from(f"{order}HHL", tiff, place)
            if tag == wanted and length == 1 and kind in _NUMBERS:
                return int(struct.unpack_from(f"{order}{_NUMBERS[kind]}", tiff, place + 8)[0])
    except struct.error:
        pass  # it ends too early
    return None
