"""What the preprocessors do with an image that is more, or less, than upright RGB of 8 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

import layertap
from layertap_plugins.preprocessors.images import as_rgb, in_eight_bits, is_grey, over, upright

if TYPE_CHECKING:
    from PIL import Image


class Policies(layertap.Params):
    """Parameters that preprocessors share; the defaults are Pillow's `convert("RGB")`, orientation as stored."""

    exif: Literal["ignore", "apply"] = Field(
        "ignore", description="apply: turn and mirror an image first as its EXIF orientation says"
    )
    depth: Literal["clip", "rescale"] = Field(
        "clip",
        description="16-bit greyscale: clip it at 255, as Pillow's conversion does, or rescale it linearly",
    )
    alpha: Literal["drop", "white", "black"] = Field(
        "drop", description="transparency: drop it, as Pillow's conversion does, or lay the image over white or black"
    )
    grey: Literal["replicate", "fail"] = Field(
        "replicate",
        description="an image stored as greyscale: the same in red, green and blue, or failed with reason `greyscale`",
    )

    def rgb(self, image: Image.Image) -> Image.Image:
        """The image as RGB. Raises `ImageError`: `greyscale`, or `unsupported_mode` where there is no conversion."""
        if self.grey == "fail" and is_grey(image):
            raise layertap.ImageError("greyscale")
        if self.exif == "apply":
            image = upright(image)
        if self.depth == "rescale":
            image = in_eight_bits(image)
        if self.alpha != "drop":
            image = over(self.alpha, image)
        return as_rgb(image)
