"""How preprocessors treat an image that is not upright 8-bit RGB."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

import layertap
from layertap_plugins.preprocessors.images import as_rgb, in_eight_bits, is_grey, over, upright
from layertap_plugins.preprocessors.memory import stored

if TYPE_CHECKING:
    from PIL import Image


class Policies(layertap.Params):
    """Parameters common to preprocessors; the defaults are Pillow's `convert("RGB")`, orientation as stored."""

    exif: Literal["ignore", "apply"] = Field(
        "ignore", description="apply: first rotate and mirror an image as its EXIF orientation says"
    )
    depth: Literal["clip", "rescale"] = Field(
        "clip",
        description="for 16-bit greyscale: clip at 255, as Pillow's conversion does, or rescale linearly",
    )
    alpha: Literal["drop", "white", "black"] = Field(
        "drop",
        description="for transparency: drop it, as Pillow's conversion does, or lay the image over white or black",
    )
    grey: Literal["replicate", "fail"] = Field(
        "replicate",
        description="for an image stored as greyscale: use its values for red, green and blue, or list it as failed "
        "with the reason `greyscale`",
    )

    def memory(self, size: tuple[int, int], mode: str) -> int:
        """The bytes that `rgb` allocates for an image of a size and mode, with its result."""
        copies = 0 if mode == "RGB" else stored(size)
        if self.exif == "apply":
            copies += stored(size, mode)
        if self.depth == "rescale" and mode.startswith("I;16"):
            copies += 8 * size[0] * size[1]
        if self.alpha != "drop":
            copies += 4 * stored(size)
        return copies

    def rgb(self, image: Image.Image) -> Image.Image:
        """The image as RGB. Raises `ImageError`: `greyscale`, or `unsupported_mode` if there is no conversion."""
        if self.grey == "fail" and is_grey(image):
            raise layertap.ImageError("greyscale")
        if self.exif == "apply":
            image = upright(image)
        if self.depth == "rescale":
            image = in_eight_bits(image)
        if self.alpha != "drop":
            image = over(self.alpha, image)
        return as_rgb(image)
