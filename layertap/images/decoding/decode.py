"""From an image's encoded bytes to its pixels.

`decode` raises `ImageError` with a code of `failure_codes`, prints nothing and changes no global state, so that any
number of threads can decode at once (`layertap.images.decoding.tiff` describes the one exception). Only the formats of
`layertap.images.decoding.formats` are opened. An image that ends early is refused, never completed with grey.

Pillow's own readers are called without `Image.open`, because that warns, and neither printing nor muting a warning is
safe on many threads. `_Jpeg`, `_still`, `_gif` and the modules of the optional formats remove what would make the
readers themselves warn.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Collection, Mapping
from io import BytesIO
from typing import TypeAlias

import PIL.ImageFile
from PIL import Image, features
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from layertap.errors import ConfigError, ImageError
from layertap.images.decoding import working
from layertap.images.decoding.bounds import DEFAULT, Bounds, Needs
from layertap.images.decoding.formats import format_of, reason_against
from layertap.images.decoding.notes import note
from layertap.images.decoding.notes import notes as notes
from layertap.images.failure_codes import refusal

Enough: TypeAlias = Callable[[tuple[int, int]], tuple[int, int] | None]
"""Of an image's size, the smallest width and height that are sufficient; None if the full size is needed."""


def refuse_lenient() -> None:
    """Raise `ConfigError` if this process has set Pillow to complete truncated images with grey."""
    if PIL.ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ConfigError("PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set: cut images would pass as whole; set it to False")


class _Jpeg(JpegImageFile):
    def _read_dpi_from_exif(self) -> None:
        """Do nothing. Pillow would parse the EXIF block for a resolution that nobody reads, and warn of its faults."""

    def shrink(self, enough: Enough) -> bool:
        """Choose the smallest of 1, 1/2, 1/4 and 1/8 of its size that is sufficient. True if it is less than 1."""
        whole = self.size
        try:
            if (least := enough(whole)) is not None:
                self.draft(None, least)
        except Exception as error:
            raise refusal("error") from error
        return self.size != whole


_READERS: Mapping[str, type[ImageFile]] = {
    "JPEG": _Jpeg,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "BMP": BmpImageFile,
    "GIF": GifImageFile,
}

# An extension, a frame, the end. Pillow skips anything else between them.
_GIF_MARKS = re.compile(rb"[!,;]")


def decode(
    data: bytes | Image.Image,
    formats: Collection[str] = (),
    enough: Enough | None = None,
    bounds: Bounds = DEFAULT,
    needs: Needs | None = None,
) -> Image.Image:
    """The loaded image, or its first frame if it has several. Raises `ImageError`.

    `formats` are those of `layertap.images.decoding.formats.OPTIONAL` that are opened besides the standard ones.
    With `enough`, a larger JPEG is decoded at 1/2, 1/4 or 1/8 of its size, without the work for the rest.
    An image that exceeds `bounds`, alone or with what it `needs` to be prepared, is refused by its header.
    Mode, palette and EXIF block are as in the file: 16-bit, CMYK and rotated images stay so. Only TIFFs are upright, as
    Pillow returns them. Converted to RGB, the image equals Pillow's own, without a warning.
    """
    file: BytesIO | None = None
    try:
        if isinstance(data, Image.Image):
            image = data
            bounds.check_pixels(*image.size)
            bounds.check(0, image.size, image.mode, 0, needs)
            image.load()
            return image
        name = format_of(data)
        if name is None:
            raise refusal(reason_against(data))
        if name in _READERS:
            data, facts, work = _harmless(name, data, bounds)
            file = BytesIO(data)
            image = _READERS[name](file)
        elif name in formats:
            image, facts, work = _optional(name, data, bounds)
        else:
            raise refusal("format_not_allowed")
        bounds.check_pixels(*image.size)
        if enough is not None and isinstance(image, _Jpeg) and image.shrink(enough):
            facts = facts | {"scaled"}
        bounds.check(len(data), image.size, image.mode, work, needs)
        image.load()
        _settle_transparency(image)
    except ImageError:
        raise
    except Exception as error:
        raise refusal(_reason(error, file)) from error
    note(image, facts)
    return image


def decoders(formats: Collection[str] = ()) -> dict[str, str]:
    """What pixels depend on besides Pillow itself: the library, with its version, that decodes each lossy format."""
    libraries = {
        "JPEG": ("libjpeg_turbo", "libjpeg-turbo") if features.check("libjpeg_turbo") else ("jpg", "libjpeg"),
        "WEBP": ("webp", "libwebp"),
    }
    optional = {"TIFF": ("libtiff", "libtiff"), "JPEG2000": ("jpg_2000", "openjpeg"), "AVIF": ("avif", "libavif")}
    libraries |= {name: optional[name] for name in optional if name in formats}
    return {name: f"{library} {features.version(feature)}" for name, (feature, library) in libraries.items()}


def _optional(name: str, data: bytes, bounds: Bounds) -> tuple[Image.Image, set[str], int]:
    """An image of a format that is opened on request only, notes about it, and what else decoding it allocates.

    Its codec is not loaded earlier.
    """
    if name == "TIFF":
        from layertap.images.decoding import tiff

        return tiff.opened(data, bounds)
    if name == "JPEG2000":
        from layertap.images.decoding import jpeg2000

        return jpeg2000.opened(data, bounds)
    from layertap.images.decoding import avif

    return avif.opened(data, bounds)


def _harmless(name: str, data: bytes, bounds: Bounds) -> tuple[bytes, set[str], int]:
    """The data in a form that is safe for its reader, notes about what Pillow does not report, and the bytes that
    decoding allocates in addition to the pixels.
    """
    if name == "PNG":
        return _still(data, bounds)
    if name == "GIF":
        width, height, has_more, blocks = _gif(data, bounds)
        bounds.check_pixels(width, height)
        # Pillow makes the screen that the first frame is pasted on, and keeps the state before it.
        return data, {"frames"} if has_more else set(), 2 * width * height + bounds.check_pieces(blocks)
    if name == "WEBP":
        return data, set(), working.of_webp(data, bounds)
    if name == "JPEG":
        return data, set(), working.of_jpeg(data, bounds)
    return data, set(), working.of_bmp(data)


def _still(data: bytes, bounds: Bounds) -> tuple[bytes, set[str], int]:
    """The PNG without its animation, after checking the checksums of the pixel data, which Pillow does not read.

    Pillow warns of a faulty animation. Without one it returns the same first image.
    """
    view = memoryview(data)
    kept: list[tuple[int, int]] = [(0, 8)]
    facts = set()
    at, count = 8, 0
    while at + 12 <= len(data):
        count += 1
        bounds.check_pieces(count)
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            break
        if kind == b"IDAT" and zlib.crc32(view[at + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise refusal("corrupt")
        if kind == b"IHDR" and data[at + 16 : at + 17] == b"\x10":
            facts.add("depth16")  # of colour Pillow keeps the upper bytes without a warning
        if kind == b"fdAT":
            facts.add("frames")
        if kind not in (b"acTL", b"fcTL", b"fdAT"):
            if kept[-1][1] == at:
                kept[-1] = kept[-1][0], end
            else:
                kept.append((at, end))
        at = end
        if kind == b"IEND":
            break
    work = bounds.check_pieces(count)
    if kept == [(0, at)]:
        return data, facts, work
    still = b"".join([*(view[start:end] for start, end in kept), view[at:]])
    return still, facts, work + len(data)


def _gif(data: bytes, bounds: Bounds) -> tuple[int, int, bool, int]:
    """The size of the GIF's screen, extended by its first frame, for which Pillow would warn or allocate; whether there
    are more frames; and how many blocks precede the first.
    """
    width = height = blocks = 0
    has_more = False
    try:
        width, height, flags = struct.unpack_from("<HHB", data, 6)
        start = 13 + _palette(flags)
        at = _next_frame(data, start)
        blocks = _blocks(data, start, len(data) if at is None else at, bounds)
        if at is not None:
            left, top, frame_width, frame_height, flags = struct.unpack_from("<HHHHB", data, at + 1)
            width, height = max(width, left + frame_width), max(height, top + frame_height)
            has_more = _next_frame(data, _after_blocks(data, at + 11 + _palette(flags))) is not None
    except (struct.error, IndexError):
        pass  # cut short: Pillow finds that too
    return width, height, has_more, blocks


def _blocks(data: bytes, at: int, end: int, bounds: Bounds) -> int:
    """The number of extension blocks that begin before `end`. Pillow makes an object of each."""
    count = 0
    while (mark := _GIF_MARKS.search(data, at, end)) and mark[0] == b"!":
        at = mark.start() + 2
        while at < end and data[at]:
            at += data[at] + 1
            count += 1
            bounds.check_pieces(count)
        at += 1
    return count


def _palette(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _next_frame(data: bytes, at: int) -> int | None:
    while (mark := _GIF_MARKS.search(data, at)) and mark[0] == b"!":
        at = _after_blocks(data, mark.start() + 2)
    return mark.start() if mark and mark[0] == b"," else None


def _after_blocks(data: bytes, at: int) -> int:
    while data[at]:
        at += data[at] + 1
    return at + 1


def _settle_transparency(image: Image.Image) -> None:
    """Move an alpha per colour into the palette, and drop anything that is not transparency: both affect conversion."""
    transparency = image.info.get("transparency")
    if isinstance(transparency, bytes) and image.mode == "P":
        image.info["transparency"] = transparency[: len(image.getpalette() or ()) // 3]
        image.apply_transparency()
    elif transparency is not None and not isinstance(transparency, int | tuple):
        del image.info["transparency"]  # a text of a PNG by this name


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
    if "cannot load" in str(error):  # there are no pixels before the end
        return not data.endswith(b"IEND\xaeB`\x82")
    if isinstance(error, OSError) or file is None:
        return "truncated" in str(error).lower()
    return file.tell() >= len(data)
