"""The image formats that may be opened, by Pillow's names, and how to recognise each from its first bytes.

Nothing here loads Pillow.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias, get_args

STANDARD = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
"""Always opened."""

Format: TypeAlias = Literal["TIFF", "JPEG2000", "AVIF"]
OPTIONAL: tuple[Format, ...] = get_args(Format)
"""Opened if the configuration names them. Their decoders are larger, and have had more faults."""

_MAGICS: Mapping[bytes, str] = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"BM": "BMP",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG2000",
    b"\xffO\xffQ": "JPEG2000",
}

_OTHER_MAGICS = (
    *(b"II+\0", b"MM\0+", b"IIRO", b"IIU\0", b"FUJIFILMCCD-RAW"),  # BigTIFF, raw files of cameras
    *(b"8BPS", b"gimp xcf", b"%PDF", b"%!PS", b"\xc5\xd0\xd3\xc6"),  # Photoshop, GIMP, PDF, PostScript
    *(b"\0\0\1\0", b"\0\0\2\0", b"icns"),  # icons
    *(b"DDS ", b"qoif", b"SIMPLE  =", b"\x01\xda", b"Y\xa6j\x95", b"/* XPM */", b"\x8aMNG"),
    *(b"P%d%c" % (kind, space) for kind in range(1, 8) for space in b" \t\r\n"),  # PPM and its kin
)
_FLI = (b"\x11\xaf", b"\x12\xaf")
_JPEG_XL = (b"\xff\n", b"\0\0\0\x0cJXL ")
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_AVIF_BRANDS = (b"avif", b"avis")


def format_of(data: bytes) -> str | None:
    """The name of the format among `STANDARD` and `OPTIONAL` that data begins as; None for anything else."""
    if data.startswith(b"RIFF"):
        return "WEBP" if data[8:12] == b"WEBP" else None
    if any(brand in _AVIF_BRANDS for brand in _brands(data)):
        return "AVIF"
    return next((name for magic, name in _MAGICS.items() if data.startswith(magic)), None)


def reason_against(data: bytes) -> str:
    """The code of `layertap.images.failure_codes.REASONS` for which data that is of no such format is refused."""
    if data.startswith(b"version https://git-lfs"):
        return "lfs_pointer"
    if data.startswith(_JPEG_XL) or any(brand in _HEIF_BRANDS for brand in _brands(data)):
        return "codec_missing"
    if data.startswith(_OTHER_MAGICS) or data[4:6] in _FLI or _is_svg(data):
        return "format_not_allowed"
    if data.startswith(b"RIFF") and len(data) < 12:
        return "truncated"
    if data.strip(b"\0") and any(magic.startswith(data) for magic in (*_MAGICS, b"RIFF")):
        return "truncated"
    return "not_image"


def _brands(data: bytes) -> list[bytes]:
    """What a file of boxes, such as HEIF, MP4 or AVIF, says that it is: its major brand, then the compatible ones."""
    if data[4:8] != b"ftyp":
        return []
    stop = min(int.from_bytes(data[:4], "big"), 1024, len(data) - 3)
    return [data[8:12], *(data[at : at + 4] for at in range(16, stop, 4))]


def _is_svg(data: bytes) -> bool:
    text = data[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return text.startswith((b"<svg", b"<?xml", b"<!--", b"<!doctype svg")) and b"<svg" in text
