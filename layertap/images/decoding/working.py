"""What Pillow's decoders of the standard formats allocate in addition to the pixels, from a file's headers."""

from __future__ import annotations

import struct

from layertap.images.decoding.bounds import Bounds

_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_ALONE = frozenset({0x01, 0xD8, *range(0xD0, 0xD8)})
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})

# Bytes per pixel: two canvases, which a still image has too, the frame as bytes, and the pixels of a lossless frame.
_WEBP_BYTES = 16

_BMP_RLE = (1, 2)


def of_jpeg(data: bytes, bounds: Bounds) -> int:
    """A progressive JPEG, or one with a scan per colour, is held completely as coefficients of 2 bytes per sample.

    Raises `ImageError`, `memory`, for too many segments before the pixels.
    """
    coefficients = channels = count = 0
    progressive = False
    at = 2
    try:
        while (at := data.find(b"\xff", at)) >= 0:
            marker = data[at + 1]
            if marker in (0, 0xFF) or marker in _ALONE:
                at += 1 if marker == 0xFF else 2
                continue
            if marker == _END_OF_IMAGE:
                break
            if marker == _START_OF_SCAN:
                several = progressive or data[at + 4] < channels
                return bounds.check_pieces(count) + (coefficients if several else 0)
            count += 1
            bounds.check_pieces(count)
            if marker in _FRAMES:
                progressive = marker in _PROGRESSIVE
                channels, coefficients = _coefficients(data, at)
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    except (IndexError, struct.error):
        pass  # it ends too early, which Pillow reports
    return bounds.check_pieces(count)


def _coefficients(data: bytes, at: int) -> tuple[int, int]:
    """The channels of the frame that begins at a marker, and the bytes of its coefficients in whole blocks."""
    height, width, channels = struct.unpack_from(">HHB", data, at + 5)
    factors = [divmod(data[at + 11 + 3 * channel], 16) for channel in range(channels)]
    across, down = (max(1, *(factor[axis] for factor in factors), 1) for axis in (0, 1))
    units = -(-width // (8 * across)) * -(-height // (8 * down))
    return channels, 128 * units * sum(max(1, x) * max(1, y) for x, y in factors)


def of_webp(data: bytes, bounds: Bounds) -> int:
    """The canvas is allocated as soon as the file is opened.

    Raises `ImageError`: `too_large`, or `memory` for more than one image may take or too many chunks.
    """
    width, height = _canvas(data)
    bounds.check_pixels(width, height)
    at, count = 12, 0
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sL", data, at)
        count += 1
        bounds.check_pieces(count)
        at += 8 + (0 if kind == b"ANMF" and length < 16 else length + length % 2)
    work = _WEBP_BYTES * width * height + bounds.check_pieces(count)
    bounds.check_memory(len(data) + work)
    return work


def _canvas(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        return tuple(int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))  # type: ignore[return-value]
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (26, 28))
    return width, height


def of_bmp(data: bytes) -> int:
    """A run-length encoded BMP is unpacked by Python, as an array of bytes, and copied."""
    width, height = (abs(int.from_bytes(data[at : at + 4], "little", signed=True)) for at in (18, 22))
    return 2 * width * height if int.from_bytes(data[30:34], "little") in _BMP_RLE else 0
