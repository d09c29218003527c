"""Small files that ask for far more memory than they are large, each within the pixels that are allowed."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Mapping

from PIL import Image

from tests.images.fuzz import PNG_MAGIC, chunk

_SIDE = 9_400  # squared, just below the most pixels


def _encoded(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def _png(width: int, height: int, colour: int = 0, before: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    channels = {0: 1, 2: 3, 6: 4}[colour]
    packer = zlib.compressobj(9)
    row = bytes(1 + channels * width)
    pixels = b"".join([*(packer.compress(row) for _ in range(height)), packer.flush()])
    return PNG_MAGIC + chunk(b"IHDR", header) + before + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def strip_png() -> bytes:
    """One row that is as long as an image may be: the weights of a filter over it are 16 times that."""
    return _png(89_478_485, 1)


def tall_png() -> bytes:
    """One column: Pillow has a pointer to each row."""
    header = struct.pack(">IIBBBBB", 1, 89_478_485, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(2 * 89_478_485), 9)
    return PNG_MAGIC + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def alpha_png() -> bytes:
    return _png(_SIDE, _SIDE, colour=6)


def empty_chunks() -> bytes:
    """100 MiB of chunks without data."""
    return _png(4, 4, before=chunk(b"abCd", b"") * (100 * 2**20 // 12))


def empty_pixels() -> bytes:
    """The same between the pixels."""
    header = struct.pack(">IIBBBBB", 4, 4, 8, 0, 0, 0, 0)
    data = chunk(b"IDAT", b"") * (20 * 2**20 // 12) + chunk(b"IDAT", zlib.compress(bytes(20)))
    return PNG_MAGIC + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def precincts() -> bytes:
    """A JPEG 2000 of 1 x 1 precincts: 24 times the pixels' memory for each of them."""
    image = Image.new("L", (350, 350), 3)
    small = bytearray(_encoded(image, "JPEG2000", no_jp2=True, num_resolutions=1, precinct_size=(4, 4)))
    coding = small.index(b"\xff\x52")
    small[coding + 14] = 0x00
    size = small.index(b"\xff\x51") + 6
    for at in (0, 4, 16, 20):
        struct.pack_into(">L", small, size + at, 6_000)
    return bytes(small)


def layers() -> bytes:
    """One of 65,535 layers, with a mark for each in each of its packets."""
    small = bytearray(
        _encoded(Image.new("RGB", (256, 256)), "JPEG2000", no_jp2=True, num_resolutions=3, precinct_size=(4, 4))
    )
    struct.pack_into(">H", small, small.index(b"\xff\x52") + 6, 65_535)
    return bytes(small)


def animated_webp() -> bytes:
    """Two canvases of a frame of one pixel."""
    frames = [Image.new("RGBA", (1, 1), (shade, 0, 0, 0)) for shade in (1, 2)]
    data = bytearray(_encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True))
    data[24:30] = (_SIDE - 1).to_bytes(3, "little") * 2
    return bytes(data)


def still_webp() -> bytes:
    return _encoded(Image.new("RGB", (_SIDE, _SIDE)), "WEBP", lossless=True, quality=0, method=0)


def webp_chunks() -> bytes:
    data = _encoded(Image.new("RGB", (4, 4)), "WEBP") + b"abcd\0\0\0\0" * (20 * 2**20 // 8)
    return data[:4] + struct.pack("<L", len(data) - 8) + data[8:]


def progressive_jpeg() -> bytes:
    """Kept as coefficients until the last scan: 2 bytes for each sample, besides the pixels."""
    return _encoded(Image.new("RGB", (_SIDE, _SIDE)), "JPEG", progressive=True, subsampling=0, quality=10)


def jpeg_segments() -> bytes:
    data = _encoded(Image.new("RGB", (8, 8)), "JPEG")
    return data[:2] + b"\xff\xe9\0\2" * (20 * 2**20 // 4) + data[2:]


def gif_blocks() -> bytes:
    comment = b"!\xfe" + b"\1x" * (10 * 2**20) + b"\0"
    data = _encoded(Image.new("L", (8, 8)), "GIF")
    colours = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    return data[:colours] + comment + data[colours:]


def tiff_strip() -> bytes:
    """All rows in one strip, which libtiff unpacks as one."""
    image = Image.new("RGB", (_SIDE, _SIDE))
    return _encoded(image, "TIFF", compression="tiff_adobe_deflate", tiffinfo={278: _SIDE})


def tiff_strips() -> bytes:
    """A strip for each of twelve million rows of one pixel."""
    rows = 12_000_000
    entries = {256: 1, 257: rows, 258: 8, 259: 1, 262: 1, 277: 1, 278: 1}
    start = 8 + 2 + 12 * (len(entries) + 2) + 4
    parts = [(tag, 4, 1, value) for tag, value in entries.items()] + [(273, 4, rows, start), (279, 4, rows, start)]
    directory = b"".join(struct.pack("<HHLL", *part) for part in sorted(parts))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(parts)) + directory + bytes(4) + bytes(8 * rows)


def avif() -> bytes:
    return _encoded(Image.new("RGB", (_SIDE, _SIDE)), "AVIF", speed=10, quality=1)


NAMED: Mapping[str, Callable[[], bytes]] = {
    "precincts.jp2": precincts,
    "empty chunks.png": empty_chunks,
    "animated.webp": animated_webp,
    "strip.png": strip_png,
}
"""Those that were found first."""

OTHERS: Mapping[str, Callable[[], bytes]] = {
    "tall.png": tall_png,
    "alpha.png": alpha_png,
    "empty pixels.png": empty_pixels,
    "layers.jp2": layers,
    "still.webp": still_webp,
    "chunks.webp": webp_chunks,
    "progressive.jpg": progressive_jpeg,
    "segments.jpg": jpeg_segments,
    "blocks.gif": gif_blocks,
    "strip.tif": tiff_strip,
    "strips.tif": tiff_strips,
    "still.avif": avif,
}
