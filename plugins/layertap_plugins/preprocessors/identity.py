"""Images that already have the model's size: nothing is resized, and bytes become floats."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import Field, model_validator

import layertap
from layertap_plugins.preprocessors.normalising import normalised
from layertap_plugins.preprocessors.resizing import planes
from layertap_plugins.preprocessors.sized import Size, Sized, wide_and_high

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

Level: TypeAlias = Annotated[float, Field(ge=0, le=255)]
Spread: TypeAlias = Annotated[float, Field(ge=1e-6, le=255)]


class Identity(Sized):
    """The unchanged RGB pixels of images of one size; an image of another size fails as `shape`."""

    class Params(Sized.Params):
        size: Size = Field(description="the side of every image, or its height and width, in pixels")
        scale: bool = Field(True, description="whether bytes are scaled to 0..1; otherwise they stay 0..255, as floats")
        mean: tuple[Level, Level, Level] = Field(
            (0.0, 0.0, 0.0), description="subtracted from red, green and blue after scaling"
        )
        std: tuple[Spread, Spread, Spread] = Field(
            (1.0, 1.0, 1.0), description="red, green and blue are divided by it after the mean is subtracted"
        )

        @model_validator(mode="after")
        def _one_unit(self) -> Any:
            if self.scale and max(*self.mean, *self.std) > 1:
                raise ValueError("mean and std are for values in 0..1; with `scale: false` they must be for 0..255")
            return self

    params: Params

    @property
    def example(self) -> tuple[int, int]:
        """Width and height of every image."""
        return wide_and_high(self.params.size)

    def sized(self, image: Image.Image) -> Tensor:
        """The RGB image as uint8 `(3, height, width)`. Raises `ImageError`: `shape` for another size."""
        if image.size != self.example:
            raise layertap.ImageError("shape")
        return planes(image)

    def finish(self, batch: Tensor) -> Tensor:
        """The uint8 batch as float32, contiguous `(N, 3, H, W)`, on the device of `batch`."""
        return normalised(batch, self.params.mean, self.params.std, 255 if self.params.scale else 1)


@layertap.hookimpl
def register_preprocessors(register: Callable[[str, type[layertap.Preprocessor]], None]) -> None:
    register("identity", Identity)
