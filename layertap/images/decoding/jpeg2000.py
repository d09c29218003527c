"""A JPEG 2000 image by Pillow and OpenJPEG, after checking that its codestream is complete and its sizes are sane."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

from PIL import Image
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile

from layertap.images.decoding.bounds import Bounds
from layertap.images.decoding.boxes import boxes
from layertap.images.failure_codes import refusal

_START, _SIZE, _TILE_PART, _DATA, _END = 0xFF4F, 0xFF51, 0xFF90, 0xFF93, 0xFFD9
_CODING, _COMPONENT_CODING = 0xFF52, 0xFF53
_MOST_CHANNELS = 4
_MOST_LEVELS = 32

# OpenJPEG allocates about 10 kB per tile before it reads any. Then it allocates, for one tile at a time, each precinct
# of each band with two trees, each code block with its segments, and a mark per layer of each packet.
_TILE, _PRECINCT, _BLOCK, _LAYER = 10_240, 320, 320, 2
# A tile's values as 32-bit numbers, and then as Pillow unpacks them.
_VALUE = 4
# The largest ordinary image has a tenth as many tiles.
_MOST_TILES = 8_192


def opened(data: bytes, bounds: Bounds) -> tuple[Image.Image, set[str], int]:
    """The image, not loaded yet, notes about it, and what else decoding it allocates. Raises `ImageError`."""
    try:
        start = 0 if data.startswith(b"\xffO") else next(at for kind, at in boxes(data) if kind == b"jp2c")
        size = _size(data, start)
        bounds.check_pixels(size.width, size.height)
        work = size.memory(_codings(data, start, bounds))
        bounds.check_memory(len(data) + work)
    except (struct.error, StopIteration):
        raise refusal("truncated") from None
    image = Jpeg2KImageFile(BytesIO(data))
    return image, {"depth16"} if size.is_deep else set(), work


@dataclass(frozen=True, slots=True)
class _Coding:
    """How tiles are divided: for each resolution from the coarsest, the powers of 2 of a precinct; of a code block."""

    precincts: tuple[tuple[int, int], ...]
    block: tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Size:
    """The measures of an image and of its largest tile."""

    width: int
    height: int
    tile: tuple[int, int]
    tiles: int
    channels: int
    is_deep: bool

    def memory(self, codings: tuple[int, list[_Coding]]) -> int:
        """The bytes for all tiles, and for the largest under the coding that costs most."""
        layers, found = codings
        values = self.channels * self.tile[0] * self.tile[1] * (_VALUE + 1 + self.is_deep)
        costs = (self._structures(coding, layers) for coding in found)
        return self.tiles * _TILE + values + self.channels * max(costs, default=0)

    def _structures(self, coding: _Coding, layers: int) -> int:
        """Those of one channel of a tile."""
        finest = len(coding.precincts) - 1
        structures = most = 0
        for resolution, powers in enumerate(coding.precincts):
            # A tile may begin within a precinct, and a precinct within a block: one more of each in each direction.
            sides = [-(-length >> finest - resolution) + 1 for length in self.tile]
            across, down = (1 + (side >> power) for side, power in zip(sides, powers, strict=True))
            # The finer resolutions have three bands of half their size each.
            bands, half = (3, 1) if resolution else (1, 0)
            inside = [min(block, max(0, power - half)) for block, power in zip(coding.block, powers, strict=True)]
            columns, rows = (2 + (side >> half + block) for side, block in zip(sides, inside, strict=True))
            blocks = max(columns * rows, across * down)
            structures += bands * (across * down * _PRECINCT + blocks * _BLOCK)
            most = max(most, across * down)
        return structures + _LAYER * (layers + 1) * most * (finest + 1)


def _size(data: bytes, start: int) -> _Size:
    """Raises `ImageError` for measures that are not opened."""
    first, second, _, _, *grid, channels = struct.unpack_from(">HHHHLLLLLLLLH", data, start)
    if (first, second) != (_START, _SIZE):
        raise refusal("corrupt")
    width, height, left, top, tile_width, tile_height, tile_left, tile_top = grid
    if not (left < width and top < height and tile_width and tile_height and tile_left <= left and tile_top <= top):
        raise refusal("corrupt")
    if not 0 < channels <= _MOST_CHANNELS:
        raise refusal("unsupported_mode")
    tiles = -(-(width - tile_left) // tile_width) * -(-(height - tile_top) // tile_height)
    depths = struct.unpack_from("Bxx" * channels, data, start + 42)
    whole = width - left, height - top
    tile = min(tile_width, whole[0]), min(tile_height, whole[1])
    is_deep = any((depth & 0x7F) + 1 > 8 for depth in depths)
    if tiles > _MOST_TILES:
        raise refusal("too_large")
    return _Size(*whole, tile, tiles, channels, is_deep)


def _codings(data: bytes, start: int, bounds: Bounds) -> tuple[int, list[_Coding]]:
    """The most layers, and all codings, of the whole image, of channels and of tiles, in any of its headers."""
    layers, found = 1, dict[_Coding, None]()
    for count, (marker, at) in enumerate(_segments(data, start)):
        bounds.check_pieces(count)
        if marker == _CODING:
            style, _, several, _ = struct.unpack_from(">BBHB", data, at + 4)
            layers = max(layers, several)
            found[_coding(data, at + 9, style)] = None
        elif marker == _COMPONENT_CODING:
            (style,) = struct.unpack_from(">B", data, at + 5)
            found[_coding(data, at + 6, style)] = None
    return layers, list(found)


def _coding(data: bytes, at: int, style: int) -> _Coding:
    levels, across, down = struct.unpack_from(">BBB", data, at)
    if levels > _MOST_LEVELS:
        raise refusal("corrupt")
    sizes = struct.unpack_from(f">{levels + 1}B", data, at + 5) if style & 1 else (0xFF,) * (levels + 1)
    return _Coding(tuple((size & 15, size >> 4) for size in sizes), ((across & 15) + 2, (down & 15) + 2))


def _segments(data: bytes, at: int) -> Iterator[tuple[int, int]]:
    """The markers of all headers, and where they are.

    Raises `ImageError` or `struct.error` for a codestream that ends too early, which OpenJPEG would complete.
    """
    at += 2
    end = None  # of the tile part whose header this is
    while True:
        (marker,) = struct.unpack_from(">H", data, at)
        if marker == _END:
            return
        if marker < 0xFF00:
            raise refusal("corrupt")
        if marker == _DATA:
            if end is None:  # to the end of the codestream
                if data.rfind(b"\xff\xd9") < at:
                    raise refusal("truncated")
                return
            at = max(end, at + 2)
            continue
        yield marker, at
        if marker == _TILE_PART:
            (length,) = struct.unpack_from(">L", data, at + 6)
            end = at + length if length else None
        at += 2 + max(struct.unpack_from(">H", data, at + 2)[0], 2)
