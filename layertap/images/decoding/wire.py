"""A decoded image on the pipe from the process that decoded it: its facts in JSON, then bytes.

What decoded an image may have been taken over by it, so nothing that arrives is believed: every fact is one of a few
known kinds, and every length is checked before it is read. Nothing is unpickled.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from io import BufferedReader
from typing import Any, BinaryIO, TypeAlias

from PIL import Image

from layertap.images.decoding.formats import OPTIONAL, STANDARD
from layertap.images.decoding.notes import NOTES
from layertap.images.failure_codes import REASONS, refusal
from layertap.images.limits import MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS

Decoded: TypeAlias = tuple[Image.Image, tuple[str, ...]]
"""An image, and the words of `layertap.images.decoding.notes.NOTES` that are true of it."""

_HEADER = struct.Struct(">I")
_LONGEST_HEADER = 2**16

# Rows are packed and sent this much at a time, which Pillow does in one piece of memory that is soon used again. In one
# piece, an image would cost more in fresh pages than in copying, and a large one would not fit the child's limit.
_STRIP = 2**16

_BITS: Mapping[str, int] = {
    **dict.fromkeys(("1",), 1),
    **dict.fromkeys(("L", "P"), 8),
    **dict.fromkeys(("LA", "La", "PA", "I;16", "I;16L", "I;16B", "I;16N"), 16),
    **dict.fromkeys(("RGB", "YCbCr", "LAB", "HSV"), 24),
    **dict.fromkeys(("RGBA", "RGBa", "RGBX", "CMYK", "I", "F"), 32),
}

# Of what Pillow notes about a file, what its conversions, its reading of EXIF and colour management look at. The tags
# of a TIFF are not among it: that is upright already.
_NUMBERS = ("background", "transparency")
_BLOBS = ("transparency", "exif", "xmp", "icc_profile")
_TEXTS = ("Raw profile type exif", "XML:com.adobe.xmp")


def send_image(pipe: BinaryIO, decoded: Decoded) -> None:
    """Write an image that `receive` gives back the same, as far as preparing it can tell."""
    image, notes = decoded
    image.load()  # decoding may leave it with a palette that is not yet its pixels'
    if image.mode not in _BITS:
        return send_failure(pipe, "unsupported_mode")
    blobs = {key: value for key in _BLOBS if isinstance(value := image.info.get(key), bytes)}
    texts = {key: value.encode() for key in _TEXTS if isinstance(value := image.info.get(key), str)}
    palette = None if image.palette is None else (image.palette.mode, bytes(image.palette.palette))
    header = {
        "mode": image.mode,
        "size": image.size,
        "format": image.format,
        "notes": notes,
        "numbers": {key: value for key in _NUMBERS if _is_number(value := image.info.get(key))},
        "blobs": {key: len(value) for key, value in blobs.items()},
        "texts": {key: len(value) for key, value in texts.items()},
        "palette": palette and (palette[0], len(palette[1])),
    }
    _send_header(pipe, header)
    pipe.writelines([*blobs.values(), *texts.values(), palette[1] if palette else b""])
    pipe.writelines(_strips(image))
    pipe.flush()


def send_failure(pipe: BinaryIO, reason: str) -> None:
    """Write that there is no image, and why."""
    _send_header(pipe, {"failure": reason})
    pipe.flush()


def receive(pipe: BufferedReader, room: bytearray) -> Decoded:
    """The next image; `room` is for its pixels on their way, unless they are too many for it.

    Raises `ImageError` where that is the answer, and `ValueError` for an answer that is none of ours.
    """
    (length,) = _HEADER.unpack(_exactly(pipe, _HEADER.size, _HEADER.size))
    text = _exactly(pipe, length, _LONGEST_HEADER)
    try:
        header = json.loads(text)
        if "failure" in header:
            reason = header["failure"]
            _check(reason in REASONS)
            raise refusal(reason)
        return _received(pipe, header, room)
    except (KeyError, TypeError, AttributeError, UnicodeError, RecursionError) as error:
        raise ValueError(f"no answer of ours: {type(error).__name__}") from error


def _received(pipe: BufferedReader, header: Mapping[str, Any], room: bytearray) -> Decoded:
    mode, form, notes = header["mode"], header["format"], tuple(header["notes"])
    width, height = header["size"]
    _check(mode in _BITS and (form is None or form in STANDARD or form in OPTIONAL) and NOTES.keys() >= set(notes))
    _check(
        _is_count(width, MAX_IMAGE_PIXELS)
        and _is_count(height, MAX_IMAGE_PIXELS)
        and width * height <= MAX_IMAGE_PIXELS
    )
    info: dict[str | tuple[int, int], Any] = {}
    for key, number in header["numbers"].items():
        value = tuple(number) if isinstance(number, list) else number
        _check(key in _NUMBERS and _is_number(value))
        info[key] = value
    for key, length in header["blobs"].items():
        _check(key in _BLOBS)
        info[key] = _exactly(pipe, length)
    for key, length in header["texts"].items():
        _check(key in _TEXTS)
        info[key] = _exactly(pipe, length).decode()
    colours = b""
    if header["palette"] is not None:
        palette_mode, length = header["palette"]
        _check(mode in ("P", "PA") and palette_mode in ("RGB", "RGBA", "CMYK"))
        colours = _exactly(pipe, length, 256 * len(palette_mode))
    length = _row_bytes(mode, width) * height
    with memoryview(room if length <= len(room) else bytearray(length))[:length] as pixels:
        _check(pipe.readinto(pixels) == length)
        image = Image.frombytes(mode, (width, height), pixels)
    if header["palette"] is None:
        image.palette = None  # Pillow's own is an empty one
    else:
        image.putpalette(colours, palette_mode)
        image.load()
    image.format, image.info = form, info
    return image, notes


def _send_header(pipe: BinaryIO, header: Mapping[str, Any]) -> None:
    text = json.dumps(header).encode()
    pipe.write(_HEADER.pack(len(text)) + text)


def _strips(image: Image.Image) -> Iterator[bytes]:
    width, height = image.size
    rows = max(1, _STRIP // max(1, _row_bytes(image.mode, width)))
    for top in range(0, height, rows):
        yield image.crop((0, top, width, min(height, top + rows))).tobytes()


def _row_bytes(mode: str, width: int) -> int:
    return (width * _BITS[mode] + 7) // 8


def _exactly(pipe: BinaryIO, length: object, most: int = MAX_IMAGE_BYTES) -> bytes:
    _check(_is_count(length, most))
    assert isinstance(length, int)
    data = pipe.read(length)
    _check(len(data) == length)
    return data


def _is_count(value: object, most: int) -> bool:
    return type(value) is int and 0 <= value <= most


def _is_number(value: object) -> bool:
    """Whether it is a colour: an index, a level, or a tuple of levels."""
    levels: Iterable[object] = value if isinstance(value, tuple) and len(value) <= 4 else (value,)
    return all(_is_count(level, 0xFFFF) for level in levels)


def _check(good: bool) -> None:
    if not good:
        raise ValueError("no answer of ours")
