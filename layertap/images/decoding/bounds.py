"""How many pixels an image may have, and how much memory it may take, both known from its header before any pixel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from layertap.contracts import Preprocessor
from layertap.images.failure_codes import refusal
from layertap.images.limits import MAX_IMAGE_PIXELS

MEMORY = 512 * 2**20

Needs: TypeAlias = Callable[[tuple[int, int], str], int]
"""Of an image's size and Pillow's mode, the bytes that preparing it allocates. May raise what preparing would raise."""

# The cost of one piece of a file, such as a chunk of a PNG: some objects in Python and C, and the time to read it.
_PIECE = 1024


@dataclass(frozen=True, slots=True)
class Bounds:
    """The limits of one image: pixels, and bytes of memory for its encoded data, its pixels and the work on them."""

    pixels: int = MAX_IMAGE_PIXELS
    memory: int = MEMORY

    def check_pixels(self, width: int, height: int) -> None:
        """Raise `ImageError`, `too_large`, for more pixels than are opened."""
        if width * height > self.pixels:
            raise refusal("too_large")

    def check_memory(self, size: int) -> None:
        """Raise `ImageError`, `memory`, for more bytes than one image may take."""
        if size > self.memory:
            raise refusal("memory")

    def check_pieces(self, count: int) -> int:
        """The bytes that a file of so many chunks, segments or strips costs. Raises `ImageError`, `memory`."""
        self.check_memory(count * _PIECE)
        return count * _PIECE

    def check(self, data: int, size: tuple[int, int], mode: str, work: int, needs: Needs | None) -> None:
        """Raise `ImageError`, `memory`, for an image that cannot be decoded and prepared within the bound.

        `data` is the size of its encoded bytes, `work` what decoding allocates in addition to the pixels, and frees.
        """
        prepare = 0
        if needs is not None:
            try:
                prepare = needs(size, mode)
            except Exception:
                prepare = 0  # preparing raises it again, with its own reason
        self.check_memory(data + Preprocessor.stored(size, mode) + max(work, prepare))


DEFAULT = Bounds()
