"""What the preprocessors do with an image before their own work: refuse one that would explode, and make it RGB."""

from __future__ import annotations

from typing import TYPE_CHECKING

import layertap

if TYPE_CHECKING:
    from PIL import Image

# Beyond it Pillow itself warns of a decompression bomb; a strip one pixel wide would get there by being resized.
MAX_PIXELS = 89_478_485


def refuse_strip(image: Image.Image, side: int | None) -> None:
    """Raise `ImageError`: `empty` for no pixels, `aspect` for too many once the shorter side is resized to `side`."""
    short, long = sorted(image.size)
    if short == 0:
        raise layertap.ImageError("empty")
    if side is not None and side * int(side * long / short) > MAX_PIXELS:
        raise layertap.ImageError("aspect")


def as_rgb(image: Image.Image) -> Image.Image:
    """The image as RGB, by Pillow's own conversion. Raises `ImageError`: `mode` where there is none."""
    if image.mode == "RGB":
        return image
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise layertap.ImageError("mode", f"no conversion from the mode {image.mode} to RGB") from error
