"""The steps of every preprocessor before its own work: refuse an image that would become too large, convert to RGB."""

from __future__ import annotations

from typing import TYPE_CHECKING

import layertap

if TYPE_CHECKING:
    from PIL import Image


def refuse_strip(size: tuple[int, int], side: int | None) -> None:
    """Raise `ImageError`: `empty` for no pixels, `aspect` for too many after resizing the shorter side to `side`."""
    short, long = sorted(size)
    if short == 0:
        raise layertap.ImageError("empty")
    # Resizing could bring a strip one pixel wide to that size.
    if side is not None and side * int(side * long / short) > layertap.MAX_IMAGE_PIXELS:
        raise layertap.ImageError("aspect")


def as_rgb(image: Image.Image) -> Image.Image:
    """The image as RGB, by Pillow's own conversion. Raises `ImageError`: `unsupported_mode` if there is none."""
    if image.mode == "RGB":
        return image
    if image.mode in ("P", "L") and "transparency" in image.info:
        # Pillow would convert the transparent colour too, which is not needed, and warn if there are several.
        image = image.copy()
        del image.info["transparency"]
    try:
        return image.convert("RGB")
    except ValueError as error:
        message = f"no conversion from the mode {image.mode} to RGB"
        raise layertap.ImageError("unsupported_mode", message) from error


def is_grey(image: Image.Image) -> bool:
    """Whether the image is stored as greyscale, with or without alpha; the actual colours are not examined."""
    return image.mode in ("1", "L", "LA", "La", "I", "F") or image.mode.startswith("I;16")


def over(colour: str, image: Image.Image) -> Image.Image:
    """An image with transparency laid over a colour, as RGB; an image without it unchanged."""
    if not _is_transparent(image):
        return image
    from PIL import Image

    try:
        image = image.convert("RGBA")
    except ValueError:
        return image  # its mode has no conversion to RGB either
    return Image.alpha_composite(Image.new("RGBA", image.size, colour), image).convert("RGB")


def _is_transparent(image: Image.Image) -> bool:
    if image.mode == "P" and image.palette is not None and image.palette.mode == "RGBA":
        return True
    # One value that means transparent, or an alpha for each colour; text in a PNG may have this name too.
    kinds = {"1": int, "L": int, "P": int | bytes, "RGB": tuple}
    if image.mode in kinds:
        return isinstance(image.info.get("transparency"), kinds[image.mode])
    return image.mode in ("RGBA", "RGBa", "LA", "La", "PA")


def in_eight_bits(image: Image.Image) -> Image.Image:
    """16-bit greyscale scaled linearly to 8 bits, where Pillow's conversion clips at 255; other images unchanged."""
    if not image.mode.startswith("I;16"):
        return image
    import numpy as np
    from PIL import Image

    return Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))


def upright(image: Image.Image) -> Image.Image:
    """The image rotated and mirrored as its EXIF block says; unchanged if that has no or an invalid orientation."""
    from PIL.Image import Transpose

    methods = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    method = methods.get(layertap.exif_orientation(image))
    return image if method is None else image.transpose(method)
