"""The common part of imagenet, letterbox, squash and identity: they turn every image into RGB of a fixed size."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from pydantic import Field

import layertap
from layertap_plugins.preprocessors.images import refuse_strip
from layertap_plugins.preprocessors.memory import as_planes
from layertap_plugins.preprocessors.normalising import normalised
from layertap_plugins.preprocessors.policies import Policies

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

Side: TypeAlias = Annotated[int, Field(ge=1, le=8192)]
Size: TypeAlias = Side | tuple[Side, Side]
Mean: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Std: TypeAlias = Annotated[float, Field(ge=1e-6, le=1)]
Filter: TypeAlias = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]


class Sized(layertap.Preprocessor):
    """Converts images to a fixed size as bytes, one by one, and to floats once per batch."""

    class Params(Policies):
        mean: tuple[Mean, Mean, Mean] = Field(
            (0.0, 0.0, 0.0), description="subtracted from red, green and blue after scaling to 0..1"
        )
        std: tuple[Std, Std, Std] = Field(
            (1.0, 1.0, 1.0), description="red, green and blue are divided by it after the mean is subtracted"
        )

    params: Params

    @property
    def shorter_side(self) -> int | None:
        """The length to which the shorter side of an image is resized; None if both sides have a given length."""
        return None

    @abstractmethod
    def sized(self, image: Image.Image) -> Tensor:
        """The RGB image as uint8 `(3, H, W)`."""

    def sizing(self, size: tuple[int, int]) -> int:
        """The bytes that `sized` allocates for an RGB image of a size."""
        return as_planes(size)

    def memory(self, size: tuple[int, int], mode: str) -> int:
        """The image as RGB, and what `sized` allocates. Raises `ImageError` for what `prepare` refuses by its size."""
        refuse_strip(size, self.shorter_side)
        return self.params.memory(size, mode) + self.sizing(size)

    def prepare(self, image: Image.Image) -> Tensor:
        """The image as uint8 `(3, H, W)`.

        Raises `ImageError`: `empty`, `aspect` (too long a strip), `unsupported_mode` or `greyscale`.
        """
        refuse_strip(image.size, self.shorter_side)
        return self.sized(self.params.rgb(image))

    def finish(self, batch: Tensor) -> Tensor:
        """The uint8 batch as normalised float32, contiguous `(N, 3, H, W)`, on the device of `batch`."""
        return normalised(batch, self.params.mean, self.params.std)


def wide_and_high(size: int | tuple[int, int]) -> tuple[int, int]:
    """A parameter `size`, one side or height and width, as width and height."""
    height, width = (size, size) if isinstance(size, int) else size
    return width, height
