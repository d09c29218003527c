"""A JPEG 2000 image by Pillow and OpenJPEG, once its codestream is known to be whole and of sane measures."""

from __future__ import annotations

import struct
from io import BytesIO

from PIL import Image
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile

from layertap.images.decoding.bounds import check_pixels
from layertap.images.decoding.boxes import boxes
from layertap.images.failure_codes import refusal

_START, _SIZE, _TILE_PART, _END = 0xFF4F, 0xFF51, 0xFF90, 0xFFD9
_MOST_CHANNELS = 4
# OpenJPEG sets aside about 10 kB for each before it reads any; an image of the most pixels has a tenth as many.
_MOST_TILES = 8_192


def opened(data: bytes) -> tuple[Image.Image, set[str]]:
    """The image, not loaded yet, and notes about it. Raises `ImageError`."""
    try:
        start = 0 if data.startswith(b"\xffO") else next(at for kind, at in boxes(data) if kind == b"jp2c")
        is_deep = _check_size(data, start)
        _check_end(data, start)
    except (struct.error, StopIteration):
        raise refusal("truncated") from None
    image = Jpeg2KImageFile(BytesIO(data))
    return image, {"depth16"} if is_deep else set()


def _check_size(data: bytes, start: int) -> bool:
    """Whether a channel has more than 8 bits. Raises `ImageError` for measures that are not opened."""
    first, second, _, _, *grid, channels = struct.unpack_from(">HHHHLLLLLLLLH", data, start)
    if (first, second) != (_START, _SIZE):
        raise refusal("corrupt")
    width, height, left, top, tile_width, tile_height, tile_left, tile_top = grid
    if not (left < width and top < height and tile_width and tile_height and tile_left <= left and tile_top <= top):
        raise refusal("corrupt")
    if not 0 < channels <= _MOST_CHANNELS:
        raise refusal("unsupported_mode")
    check_pixels(width - left, height - top)
    if -(-(width - tile_left) // tile_width) * -(-(height - tile_top) // tile_height) > _MOST_TILES:
        raise refusal("too_large")
    depths = struct.unpack_from("Bxx" * channels, data, start + 42)
    return any((depth & 0x7F) + 1 > 8 for depth in depths)


def _check_end(data: bytes, at: int) -> None:
    """Raise `ImageError` or `struct.error` for a codestream that does not end as it should: OpenJPEG fills up."""
    at += 2
    while True:
        (marker,) = struct.unpack_from(">H", data, at)
        if marker == _END:
            return
        if marker < 0xFF00:
            raise refusal("corrupt")
        if marker == _TILE_PART:
            (length,) = struct.unpack_from(">L", data, at + 6)
            if length == 0:  # to the end of the codestream
                if data.rfind(b"\xff\xd9") < at:
                    raise refusal("truncated")
                return
        else:
            length = 2 + struct.unpack_from(">H", data, at + 2)[0]
        at += max(length, 2)
