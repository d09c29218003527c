"""What steps of preprocessing allocate, from sizes alone."""

from __future__ import annotations

from typing import TypeAlias

import layertap

Size: TypeAlias = tuple[int, int]

stored = layertap.Preprocessor.stored

# How many pixels of the smaller image Pillow's filters look at on either side: lanczos, the widest, takes 3.
_SUPPORT = 3
_WEIGHT = 8


def resizing(size: Size, to: Size, mode: str = "RGB", support: int = _SUPPORT) -> int:
    """The bytes that Pillow allocates to resize an image: the weights of its filter in both directions, and two images.

    The weights of one long side are 16 to 48 times its pixels, however small the result.
    """
    weights = 0
    for length, after in zip(size, to, strict=True):
        if length != after:
            weights += _WEIGHT * after * (2 * -(-support * max(length, after) // max(1, after)) + 1)
    # Pillow goes first in the direction that leaves less to do.
    between = min(stored((to[0], size[1]), mode), stored((size[0], to[1]), mode))
    return weights + between + stored(to, mode)


def as_planes(size: Size) -> int:
    """The bytes of an RGB image as three planes, and of each of them on the way."""
    return 6 * size[0] * size[1]
