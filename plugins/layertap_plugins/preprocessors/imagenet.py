"""The preprocessing of ImageNet classifiers: resize, centre crop, scale to 0..1, normalise."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from pydantic import Field

import layertap
from layertap_plugins.preprocessors.images import as_rgb, in_eight_bits, refuse_strip, upright
from layertap_plugins.preprocessors.resizing import centre

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor

Mean: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Std: TypeAlias = Annotated[float, Field(ge=1e-6, le=1)]


class ImageNet(layertap.Preprocessor):
    """Bit for bit torchvision's classification preset on the RGB image, its float half done once a batch.

    That image is Pillow's `convert("RGB")`, orientation as stored, unless `exif` and `depth` ask for more.
    """

    class Params(layertap.Params):
        resize: int = Field(256, ge=1, le=8192, description="the shorter side after resizing, in pixels")
        crop: int = Field(224, ge=1, le=8192, description="the side of the square cut from the centre, in pixels")
        mean: tuple[Mean, Mean, Mean] = Field(
            (0.485, 0.456, 0.406), description="subtracted from red, green and blue after scaling to 0..1"
        )
        std: tuple[Std, Std, Std] = Field(
            (0.229, 0.224, 0.225), description="red, green and blue are divided by it after the mean is subtracted"
        )
        interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"] = Field(
            "bilinear", description="Pillow's filter for resizing"
        )
        exif: Literal["ignore", "apply"] = Field(
            "ignore", description="apply: turn and mirror an image first as its EXIF orientation says"
        )
        depth: Literal["clip", "rescale"] = Field(
            "clip",
            description="16-bit greyscale: clip it at 255, as Pillow's conversion does, or rescale it linearly",
        )

    params: Params

    def enough(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """The square of the shorter side after resizing: whatever is as large is only made smaller."""
        return None if self.params.interpolation == "nearest" else (self.params.resize, self.params.resize)

    def prepare(self, image: Image.Image) -> Tensor:
        """The image as uint8 `(3, crop, crop)`.

        Raises `ImageError`: `empty`, `aspect` (too long a strip) or `unsupported_mode`.
        """
        params = self.params
        refuse_strip(image, params.resize)
        if params.exif == "apply":
            image = upright(image)
        if params.depth == "rescale":
            image = in_eight_bits(image)
        exact = self.profile.resize == "exact"
        return centre(as_rgb(image), params.resize, params.crop, params.interpolation, exact=exact)

    def finish(self, batch: Tensor) -> Tensor:
        """The uint8 batch as normalised float32, contiguous `(N, 3, crop, crop)`, on the device of `batch`."""
        import torch

        # The operations of torchvision's preset in its order, without its copies and its wait for the device.
        pixels = batch.to(torch.float32, memory_format=torch.contiguous_format, copy=True).div_(255)
        return pixels.sub_(_column(self.params.mean, batch.device)).div_(_column(self.params.std, batch.device))


@functools.cache
def _column(values: tuple[float, float, float], device: torch.device) -> Tensor:
    import torch

    return torch.tensor(values, dtype=torch.float32, device=device).view(3, 1, 1)


@layertap.hookimpl
def register_preprocessors(register: Callable[[str, type[layertap.Preprocessor]], None]) -> None:
    register("imagenet", ImageNet)
