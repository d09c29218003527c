"""The preprocessing of ImageNet classifiers: resize, centre crop, scale to 0..1, normalise."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import Field

import layertap
from layertap_plugins.preprocessors.resizing import centre, memory, resized
from layertap_plugins.preprocessors.sized import Filter, Mean, Side, Sized, Std

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


class ImageNet(Sized):
    """Bit for bit torchvision's classification preset on the RGB image, with its float half done once per batch."""

    class Params(Sized.Params):
        resize: Side = Field(256, description="the shorter side after resizing, in pixels")
        crop: Side = Field(224, description="the side of the square cut from the centre, in pixels")
        mean: tuple[Mean, Mean, Mean] = Field(
            (0.485, 0.456, 0.406), description="subtracted from red, green and blue after scaling to 0..1"
        )
        std: tuple[Std, Std, Std] = Field(
            (0.229, 0.224, 0.225), description="red, green and blue are divided by it after the mean is subtracted"
        )
        interpolation: Filter = Field("bilinear", description="Pillow's filter for resizing")

    params: Params

    @property
    def shorter_side(self) -> int:
        return self.params.resize

    def enough(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """The square of the shorter side after resizing: an image that large is only made smaller."""
        return None if self.params.interpolation == "nearest" else (self.params.resize, self.params.resize)

    def sizing(self, size: tuple[int, int]) -> int:
        crop, exact = self.params.crop, self.profile.resize == "exact"
        return memory(size, resized(size, self.params.resize), (crop, crop), exact=exact)

    def sized(self, image: Image.Image) -> Tensor:
        """The square in the centre of the resized RGB image: uint8 `(3, crop, crop)`."""
        params = self.params
        exact = self.profile.resize == "exact"
        return centre(image, params.resize, params.crop, params.interpolation, exact=exact)


@layertap.hookimpl
def register_preprocessors(register: Callable[[str, type[layertap.Preprocessor]], None]) -> None:
    register("imagenet", ImageNet)
