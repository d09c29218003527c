"""Resizing to one size, ignoring the aspect ratio; then scaling to 0..1 and normalising."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import Field

import layertap
from layertap_plugins.preprocessors.resizing import memory, stretched
from layertap_plugins.preprocessors.sized import Filter, Size, Sized, wide_and_high

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


class Squash(Sized):
    """Bit for bit torchvision's `Resize([height, width])` on the RGB image: without cropping or keeping the aspect."""

    class Params(Sized.Params):
        size: Size = Field(224, description="the side of the result, or its height and width, in pixels")
        interpolation: Filter = Field("bilinear", description="Pillow's filter for resizing")

    params: Params

    def enough(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """The square of the result's longer side, so that the image can still be rotated."""
        longer = max(wide_and_high(self.params.size))
        return None if self.params.interpolation == "nearest" else (longer, longer)

    def sizing(self, size: tuple[int, int]) -> int:
        target = wide_and_high(self.params.size)
        return memory(size, target, target, exact=self.profile.resize == "exact")

    def sized(self, image: Image.Image) -> Tensor:
        """The RGB image as uint8 `(3, height, width)`."""
        exact = self.profile.resize == "exact"
        return stretched(image, wide_and_high(self.params.size), self.params.interpolation, exact=exact)


@layertap.hookimpl
def register_preprocessors(register: Callable[[str, type[layertap.Preprocessor]], None]) -> None:
    register("squash", Squash)
