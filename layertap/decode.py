"""From an image's encoded bytes to its pixels.

`decode` raises `ImageError` with a code of `layertap.reasons`, prints nothing and changes no global state, so that any
number of threads can decode at once. Only the formats of `layertap.formats` are opened. An image that
ends early is refused, never filled up.

Pillow's own readers are called without `Image.open`, because that warns, and neither printing nor muting a warning is
safe on many threads. What makes the readers themselves warn is kept from them: `_Jpeg`, `_still` and `_gif_size`.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection, Mapping
from io import BytesIO

import PIL.ImageFile
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from layertap.errors import ConfigError, ImageError
from layertap.reasons import refusal

# Where Pillow starts to warn of a decompression bomb: 256 MiB as RGB.
MAX_PIXELS = 89_478_485


def refuse_lenient() -> None:
    """Raise `ConfigError` where this process has told Pillow to fill truncated images up with grey."""
    if PIL.ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ConfigError("PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set: cut images would pass as whole; set it to False")


class _Jpeg(JpegImageFile):
    def _read_dpi_from_exif(self) -> None:
        """Nothing: here Pillow parses the EXIF block, for a resolution that nobody reads, and warns of its faults."""


_MAGICS: Mapping[bytes, type[ImageFile]] = {
    b"\xff\xd8\xff": _Jpeg,
    b"\x89PNG\r\n\x1a\n": PngImageFile,
    b"RIFF": WebPImageFile,
    b"BM": BmpImageFile,
    b"GIF87a": GifImageFile,
    b"GIF89a": GifImageFile,
}

_OTHER_MAGICS = (
    *(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),  # TIFF and BigTIFF, most raw files of cameras too
    *(b"8BPS", b"gimp xcf", b"%PDF", b"%!PS", b"\xc5\xd0\xd3\xc6"),  # Photoshop, GIMP, PDF, PostScript
    *(b"\0\0\1\0", b"\0\0\2\0", b"icns"),  # icons
    *(b"\0\0\0\x0cjP  ", b"\xffO\xffQ"),  # JPEG 2000
    *(b"DDS ", b"qoif", b"SIMPLE  =", b"\x01\xda", b"Y\xa6j\x95", b"/* XPM */", b"\x8aMNG"),
    *(b"P%d%c" % (kind, space) for kind in range(1, 8) for space in b" \t\r\n"),  # PPM and its kin
)
_FLI = (b"\x11\xaf", b"\x12\xaf")
_JPEG_XL = (b"\xff\n", b"\0\0\0\x0cJXL ")
_HEIF_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")


def decode(data: bytes | Image.Image, formats: Collection[str] = ()) -> Image.Image:
    """The image, loaded, its first frame where it has several. Raises `ImageError`.

    `formats` are those of `layertap.formats.OPTIONAL` that are opened besides the standard ones.
    Mode, palette and EXIF block are as the file has them: 16-bit, CMYK and rotated images come as such.
    """
    file: BytesIO | None = None
    try:
        if isinstance(data, Image.Image):
            image = data
        else:
            reader, file = _reader(data)
            image = reader(file)
        _check_pixels(*image.size)
        image.load()
    except ImageError:
        raise
    except Exception as error:
        raise refusal(_reason(error, file)) from error
    return image


def _reader(data: bytes) -> tuple[type[ImageFile], BytesIO]:
    """What reads this data, and the data in the form that it may be given."""
    reader = next((reader for magic, reader in _MAGICS.items() if data.startswith(magic)), None)
    if reader is None or (reader is WebPImageFile and data[8:12] != b"WEBP"):
        raise refusal(_refusal(data))
    if reader is PngImageFile:
        data = _still(data)
    elif reader is GifImageFile:
        _check_pixels(*_gif_size(data))
    return reader, BytesIO(data)


def _refusal(data: bytes) -> str:
    """Why data of no format that may be opened is refused, from a look at its first bytes."""
    if data.startswith(b"version https://git-lfs"):
        return "lfs_pointer"
    if data.startswith(_JPEG_XL) or (data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS):
        return "codec_missing"
    if data.startswith(_OTHER_MAGICS) or data[4:6] in _FLI or _is_svg(data):
        return "format_not_allowed"
    if len(data) < 12 and (data.startswith(b"RIFF") or any(magic.startswith(data) for magic in _MAGICS)):
        return "truncated"
    return "not_image"


def _is_svg(data: bytes) -> bool:
    text = data[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return text.startswith((b"<svg", b"<?xml", b"<!--", b"<!doctype svg")) and b"<svg" in text


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise refusal("too_large")


def _still(data: bytes) -> bytes:
    """The PNG without its animation, once the pixel data has passed its checksums, which Pillow leaves unread.

    Pillow warns of a faulty animation; without one it gives the same first image.
    """
    view = memoryview(data)
    kept = [view[:8]]
    at = 8
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            break
        if kind == b"IDAT" and zlib.crc32(view[at + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise refusal("corrupt")
        if kind not in (b"acTL", b"fcTL", b"fdAT"):
            kept.append(view[at:end])
        at = end
        if kind == b"IEND":
            break
    return data if sum(map(len, kept)) == at else b"".join([*kept, view[at:]])


def _gif_size(data: bytes) -> tuple[int, int]:
    """The GIF's screen, widened by its first frame, which Pillow would warn of or allocate unasked."""
    width = height = 0
    try:
        width, height, flags = struct.unpack_from("<HHB", data, 6)
        at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
        while data[at] != 0x2C:
            if data[at] == 0x3B:
                break
            at = _after_extension(data, at) if data[at] == 0x21 else at + 1
        else:
            left, top, frame_width, frame_height = struct.unpack_from("<HHHH", data, at + 1)
            width, height = max(width, left + frame_width), max(height, top + frame_height)
    except (struct.error, IndexError):
        pass  # cut short: Pillow finds that too
    return width, height


def _after_extension(data: bytes, at: int) -> int:
    at += 2
    while data[at]:
        at += data[at] + 1
    return at + 1


def _reason(error: Exception, file: BytesIO | None) -> str:
    text = str(error)
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and "out of memory" in text):
        return "out_of_memory"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return "too_large"
    if isinstance(error, ValueError) and "MAX_TEXT" in text:
        return "metadata_too_large"
    if "cannot handle" in text or "Unsupported BMP" in text:
        return "unsupported_mode"
    return "truncated" if _ends_early(error, file) else "corrupt"


def _ends_early(error: Exception, file: BytesIO | None) -> bool:
    data = b"" if file is None else file.getvalue()
    if data.startswith(b"RIFF"):  # says how long it is, and Pillow always reads all of it
        return len(data) < 12 or int.from_bytes(data[4:8], "little") + 8 > len(data)
    if data.startswith(b"GIF") and data.endswith(b"\0;"):
        return False
    if isinstance(error, OSError) or file is None:
        return "truncated" in str(error).lower() or "cannot load" in str(error)  # the header never ended
    return file.tell() >= len(data)
