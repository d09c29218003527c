"""A TIFF's first picture, by Pillow and libtiff, from a directory that contains only what both understand.

Pillow warns of what it cannot make out in a directory, and looks at the next one. So it gets one only, of the tags that
make the pixels, each of a sane type and within the file's bounds.
"""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from typing import Any

from PIL import Image, _imaging
from PIL.TiffImagePlugin import TiffImageFile

from layertap.contracts import Preprocessor
from layertap.images.decoding.bounds import Bounds
from layertap.images.failure_codes import refusal

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_STRIP_OFFSETS, _SAMPLES, _ROWS_PER_STRIP, _STRIP_BYTES = 273, 277, 278, 279
_PLANAR, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES = 284, 322, 323, 324, 325
_SUBFILE, _DNG_VERSION, _ORIENTATION = 254, 50706, 274

# Tags with one whole number: those above and fill order, orientation, fax options and predictor.
_NUMBERS = frozenset(
    {_WIDTH, _HEIGHT, _COMPRESSION, _PHOTOMETRIC, 266, 274, _SAMPLES, _ROWS_PER_STRIP, _PLANAR, 292, 293, 317}
    | {_TILE_WIDTH, _TILE_HEIGHT}
)

_BYTE, _SHORT, _LONG, _RATIONAL, _UNDEFINED = 1, 3, 4, 5, 7
_SIZES = {_BYTE: 1, _SHORT: 2, _LONG: 4, _RATIONAL: 8, _UNDEFINED: 1}
_WHOLE = (_SHORT, _LONG)
_LISTED = (*_WHOLE, _RATIONAL)

# The bytes of one number of a list in Python, here and in Pillow.
_NUMBER = 128

# Tags with lists, and the kinds of their values: those above, colour map, kinds of extra samples and of samples, and
# subsampling; JPEG tables, XMP, colour profile; the two of YCbCr.
_KINDS: Mapping[int, tuple[int, ...]] = {
    **dict.fromkeys((_BITS, _STRIP_OFFSETS, _STRIP_BYTES, 320, _TILE_OFFSETS, _TILE_BYTES, 338, 339, 530), _WHOLE),
    **dict.fromkeys((347, 700, 34675), (_BYTE, _UNDEFINED)),
    **dict.fromkeys((529, 532), (_RATIONAL,)),
}

# None, fax, LZW, JPEG, deflate, PackBits, deflate by its old number. The first JPEG of TIFF (6) and what came after are
# rare, and most of libtiff's faults have been in its code for them.
_COMPRESSIONS = frozenset({1, 2, 3, 4, 5, 7, 8, 32773, 32946})
_JPEG = 7
_MOST_SAMPLES = 6

# How many planes can become colours, by photometric interpretation: RGB, CMYK, YCbCr and Lab; one of any other. Of
# more, Pillow gives the first ones alone, or fails as if the file were damaged.
_PLANES = {2: 4, 5: 4, 6: 3, 8: 3}


def opened(data: bytes, bounds: Bounds) -> tuple[Image.Image, set[str], int]:
    """The first picture, not loaded yet, notes about it, and what else decoding it allocates. Raises `ImageError`.

    Pillow turns it upright as its orientation says. Pictures of floating-point or 32-bit values are refused, because
    they have no range that could become RGB, and so are those of more planes than a picture has colours.
    """
    if data[8:10] == b"CR":
        raise refusal("format_not_allowed")  # Canon's raw files
    try:
        directory = _Directory(data)
        work = directory.check(bounds)
        alone, is_deep = directory.alone(), any(bits > 8 for bits in directory.numbers(_BITS))
    except struct.error:
        raise refusal("truncated") from None
    try:
        image = _Tiff(BytesIO(alone))
    except SyntaxError as error:
        has_no_mode = str(error).startswith("unknown")
        raise refusal("unsupported_mode" if has_no_mode else "corrupt") from error
    if image.mode in ("F", "I"):
        raise refusal("unsupported_mode")
    if directory.number(_ORIENTATION, 1) != 1:
        work += Preprocessor.stored(image.size, image.mode)  # turning it makes a copy
    facts = {"depth16": is_deep, "frames": directory.more}
    return image, {word for word, holds in facts.items() if holds}, work + len(alone)


class _Tiff(TiffImageFile):
    def load(self) -> Any:
        with _silent:
            return super().load()


class _Silence:
    """While a picture is loaded, libtiff does not print what it also returns as an error.

    Its handler is global to the process: the last thread to leave restores the one that the first thread found. A
    Pillow with libtiff built in does not export it; there, each damaged TIFF costs a line on stderr.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._within = 0
        self._found: int | None = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._within:
                self._found = _set_handler(None)
            self._within += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._within -= 1
            if not self._within:
                _set_handler(self._found)


_silent = _Silence()


def _set_handler(handler: int | None) -> int | None:
    """Set libtiff's error handler, and return the previous one."""
    try:
        set_handler = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
    except (OSError, AttributeError):
        return None
    set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
    before: int | None = set_handler(handler)
    return before


class _Directory:
    """The first directory of a TIFF. Raises `struct.error` if it is not complete."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._order = "<" if data.startswith(b"II") else ">"
        self._entries: dict[int, tuple[int, int, int]] = {}
        (self._at,) = self._unpack("L", 4)
        (count,) = self._unpack("H", self._at)
        end = self._at + 2 + 12 * count
        self.more = self._unpack("L", end)[0] != 0
        for place in range(self._at + 2, end, 12):
            tag, kind, length = self._unpack("HHL", place)
            size = length * _SIZES.get(kind, 0)
            if size and tag not in self._entries:
                self._entries[tag] = kind, length, place + 8 if size <= 4 else self._unpack("L", place + 8)[0]

    def numbers(self, tag: int) -> Sequence[int]:
        """The whole numbers under a tag; none if the tag is missing or has another kind."""
        kind, length, at = self._entries.get(tag, (0, 0, 0))
        if kind not in _WHOLE:
            return ()
        numbers: tuple[int, ...] = self._unpack(f"{length}{'H' if kind == _SHORT else 'L'}", at)
        return numbers

    def number(self, tag: int, default: int = 0) -> int:
        """The first of them."""
        kind, _, at = self._entries.get(tag, (0, 0, 0))
        return int(self._unpack("H" if kind == _SHORT else "L", at)[0]) if kind in _WHOLE else default

    def check(self, bounds: Bounds) -> int:
        """What decoding allocates in addition to the pixels.

        Raises `ImageError` if this is not a picture, if it is too large, or if some of its pixels are missing.
        """
        width, height = self.number(_WIDTH), self.number(_HEIGHT)
        if self.number(_SUBFILE) & 1 or _DNG_VERSION in self._entries:
            raise refusal("format_not_allowed")  # only the preview of a camera's raw file
        samples = self.number(_SAMPLES, 1)
        if self.number(_COMPRESSION, 1) not in _COMPRESSIONS or samples > _MOST_SAMPLES:
            raise refusal("unsupported_mode")
        if self.number(_PLANAR, 1) == 2 and samples > _PLANES.get(self.number(_PHOTOMETRIC), 1):
            raise refusal("unsupported_mode")
        if not (width and height):
            raise refusal("corrupt")
        bounds.check_pixels(width, height)
        extents = [
            (at, length * _SIZES[kind])
            for tag, (kind, length, at) in self._entries.items()
            if kind in _KINDS.get(tag, ())
        ]
        if any(at + size > len(self._data) for at, size in extents):
            raise refusal("truncated")
        if sum(size for _, size in extents) > len(self._data):
            raise refusal("corrupt")  # the same bytes many times over
        numbers = sum(length for tag, (kind, length, _) in self._entries.items() if tag in _KINDS and kind in _LISTED)
        bounds.check_memory(len(self._data) + numbers * _NUMBER)
        return numbers * _NUMBER + self._check_pieces(width, height, bounds)

    def _check_pieces(self, width: int, height: int, bounds: Bounds) -> int:
        tiled = _STRIP_OFFSETS not in self._entries
        if tiled:
            across, down = self.number(_TILE_WIDTH), self.number(_TILE_HEIGHT)
            bounds.check_pixels(across, down)
        else:
            across, down = width, min(self.number(_ROWS_PER_STRIP, height), height)
        if not (across and down):
            raise refusal("corrupt")
        planes = self.number(_SAMPLES, 1) if self.number(_PLANAR, 1) == 2 else 1
        pieces = -(-width // across) * -(-height // down) * planes
        work = bounds.check_pieces(pieces) + self._piece(across * down, self.number(_SAMPLES, 1) // planes)
        bounds.check_memory(len(self._data) + work)
        offsets = self.numbers(_TILE_OFFSETS if tiled else _STRIP_OFFSETS)
        if len(offsets) != pieces:
            raise refusal("truncated" if len(offsets) < pieces else "corrupt")
        lengths = self.numbers(_TILE_BYTES if tiled else _STRIP_BYTES)
        # Without compression the lengths may be missing, and many writers get them wrong.
        if self.number(_COMPRESSION, 1) == 1:
            lengths = [1] * pieces
        if len(lengths) != pieces:
            raise refusal("corrupt")
        if any(at + length > len(self._data) for at, length in zip(offsets, lengths, strict=True)):
            raise refusal("truncated")
        return work

    def _piece(self, pixels: int, samples: int) -> int:
        """What libtiff unpacks a strip or tile into; of a JPEG in it, the coefficients and the colours as RGBA too."""
        compression = self.number(_COMPRESSION, 1)
        if compression == 1:
            return 0
        deepest = min(64, max(self.numbers(_BITS)[:_MOST_SAMPLES], default=8))
        return pixels * (samples * -(-deepest // 8) + (4 + 2 * samples if compression == _JPEG else 0))

    def _unpack(self, form: str, at: int) -> tuple[Any, ...]:
        return struct.unpack_from(self._order + form, self._data, at)

    def alone(self) -> bytes:
        """The file with this directory reduced to what was checked, and without any other directory."""
        entries = [entry for _, entry in sorted(self._written())]
        directory = b"".join([struct.pack(f"{self._order}H", len(entries)), *entries, bytes(4)])
        view = memoryview(self._data)
        return b"".join([view[: self._at], directory, view[self._at + len(directory) :]])

    def _written(self) -> Iterator[tuple[int, bytes]]:
        for tag, (kind, length, at) in self._entries.items():
            if tag in _NUMBERS and kind in _WHOLE:
                yield tag, struct.pack(f"{self._order}HHLL", tag, _LONG, 1, self.number(tag))
            elif kind in _KINDS.get(tag, ()):
                size = length * _SIZES[kind]
                value = self._data[at : at + size].ljust(4, b"\0") if size <= 4 else struct.pack(f"{self._order}L", at)
                yield tag, struct.pack(f"{self._order}HHL", tag, kind, length) + value
