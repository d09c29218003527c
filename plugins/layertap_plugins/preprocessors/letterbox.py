"""Resizing to fit with the aspect kept and filling the border, as detectors do; then scaling to 0..1, normalising."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, TypeAlias

from pydantic import Field

import layertap
from layertap_plugins.preprocessors.resizing import memory, stretched
from layertap_plugins.preprocessors.sized import Filter, Size, Sized, wide_and_high

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

Level: TypeAlias = Annotated[int, Field(ge=0, le=255)]


class Letterbox(Sized):
    """The whole image in the centre, as large as fits; an odd border is wider on the right or at the bottom."""

    class Params(Sized.Params):
        size: Size = Field(640, description="the side of the result, or its height and width, in pixels")
        fill: Level | tuple[Level, Level, Level] = Field(
            114, description="the colour of the border: a level of grey, or of red, green and blue"
        )
        interpolation: Filter = Field("bilinear", description="Pillow's filter for resizing")

    params: Params

    def enough(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """The size that fits into the square of the result's longer side, so that the image can still be rotated."""
        longer = max(wide_and_high(self.params.size))
        return None if self.params.interpolation == "nearest" else _fitted(size, (longer, longer))

    def sizing(self, size: tuple[int, int]) -> int:
        target = wide_and_high(self.params.size)
        return memory(size, _fitted(size, target), target, exact=self.profile.resize == "exact")

    def sized(self, image: Image.Image) -> Tensor:
        """The RGB image with its border: uint8 `(3, height, width)`."""
        import numpy as np
        import torch

        params = self.params
        width, height = wide_and_high(params.size)
        fitted = _fitted(image.size, (width, height))
        inner = stretched(image, fitted, params.interpolation, exact=self.profile.resize == "exact")
        fill = (params.fill,) * 3 if isinstance(params.fill, int) else params.fill
        # With numpy: torch would split even this small copy among threads, each of which waits for the other decoders.
        boxed = np.empty((3, height, width), np.uint8)
        boxed[:] = np.array(fill, np.uint8)[:, None, None]
        left, top = (width - fitted[0]) // 2, (height - fitted[1]) // 2
        boxed[:, top : top + fitted[1], left : left + fitted[0]] = inner.numpy()
        return torch.from_numpy(boxed)


def _fitted(size: tuple[int, int], box: tuple[int, int]) -> tuple[int, int]:
    """The largest size of an image that fits into the box, at least one pixel per side."""
    ratio = min(box[0] / size[0], box[1] / size[1])
    width, height = (max(1, min(most, round(length * ratio))) for length, most in zip(size, box, strict=True))
    return width, height


@layertap.hookimpl
def register_preprocessors(register: Callable[[str, type[layertap.Preprocessor]], None]) -> None:
    register("letterbox", Letterbox)
