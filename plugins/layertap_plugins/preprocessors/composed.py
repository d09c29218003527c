"""The evaluation transforms of timm and open_clip, bit for bit, with the float half once per batch on the device."""

from __future__ import annotations

import functools
import importlib
from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import Field

import layertap
from layertap_plugins.preprocessors.images import as_rgb, refuse_strip
from layertap_plugins.preprocessors.memory import as_planes, resizing, stored
from layertap_plugins.preprocessors.normalising import normalised
from layertap_plugins.preprocessors.resizing import planes, resized

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

Size: TypeAlias = tuple[Annotated[int, Field(ge=1, le=8192)], Annotated[int, Field(ge=1, le=8192)]]


class Composed(layertap.Preprocessor):
    """A library's own torchvision Compose that ends in ToTensor and Normalize, which are deferred to the batch.

    One that ends differently is applied completely to the image, and the batch is left unchanged.
    """

    class Params(layertap.Params):
        size: Size = Field(description="height and width of the result, in pixels")

    params: Params

    @abstractmethod
    def compose(self) -> Any:
        """The library's transform."""

    @property
    @abstractmethod
    def shorter_side(self) -> int | None:
        """The length to which the shorter side of an image is resized; None if both sides have a given length."""

    @property
    def converts_first(self) -> bool:
        """Whether the library expects an RGB image; if not, it receives the image in the image's own mode."""
        return True

    @functools.cached_property
    def _transform(self) -> Any:
        return self.compose()

    @functools.cached_property
    def _is_split(self) -> bool:
        from torchvision import transforms  # type: ignore[import-untyped]

        last = self._transform.transforms[-2:]
        return len(last) == 2 and isinstance(last[0], transforms.ToTensor) and isinstance(last[1], transforms.Normalize)

    def enough(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """The square of the shorter side after resizing; None if another side determines the size."""
        return None if self.shorter_side is None else (self.shorter_side, self.shorter_side)

    def memory(self, size: tuple[int, int], mode: str) -> int:
        """The image as RGB, resized. Raises `ImageError` for what `prepare` refuses by its size."""
        refuse_strip(size, self.shorter_side)
        side = self.shorter_side
        to = resized(size, side) if side is not None else self.params.size[::-1]
        # One that is resized in its own mode is multiplied by its alpha before, and divided by it afterwards.
        copies = 0 if mode == "RGB" else stored(size) if self.converts_first else 2 * stored(size)
        return copies + resizing(size, to) + 4 * as_planes(to)

    def prepare(self, image: Image.Image) -> Tensor:
        """The image as uint8 `(3, H, W)`. Raises `ImageError`: `empty`, `aspect` (too long) or `unsupported_mode`."""
        refuse_strip(image.size, self.shorter_side)
        try:
            if self.converts_first:
                image = as_rgb(image)
            if not self._is_split:
                whole: Tensor = self._transform(image)
                return whole
            for step in self._transform.transforms[:-2]:
                image = step(image)
        except ValueError as error:
            message = f"no conversion from the mode {image.mode} to RGB: {error}"
            raise layertap.ImageError("unsupported_mode", message) from error
        return planes(image)

    def finish(self, batch: Tensor) -> Tensor:
        """The batch as normalised float32, contiguous `(N, 3, H, W)`, on the device of `batch`."""
        if not self._is_split:
            return batch.contiguous()
        normalize = self._transform.transforms[-1]
        mean, std = ([float(value) for value in values] for values in (normalize.mean, normalize.std))
        return normalised(batch, mean, std)

    def __getstate__(self) -> dict[str, Any]:
        return {"params": self.params}  # the transform is made again when it is needed


class TimmTransform(Composed):
    """timm's transform for evaluation, from a model's data config."""

    extra = "timm"

    class Params(Composed.Params):
        crop_pct: float = Field(0.875, gt=0, le=2, description="the fraction of the resized image that is kept")
        crop_mode: Literal["center", "squash", "border"] = Field(
            "center",
            description="crop the centre; squash to the size, ignoring the aspect; or fit inside and fill the border",
        )
        interpolation: str = Field("bicubic", description="the filter for resizing")
        mean: tuple[float, ...] = Field(
            description="subtracted from red, green and blue after scaling to 0..1", min_length=1, max_length=3
        )
        std: tuple[float, ...] = Field(
            description="red, green and blue are divided by it after the mean is subtracted", min_length=1, max_length=3
        )

    params: Params

    def compose(self) -> Any:
        data: Any = importlib.import_module("timm.data")
        params = self.params.model_dump(exclude={"size"})
        return data.create_transform(input_size=(3, *self.params.size), is_training=False, **params)

    @property
    def shorter_side(self) -> int | None:
        return int(max(self.params.size) / self.params.crop_pct) if self.params.crop_mode == "center" else None


class OpenClipTransform(Composed):
    """open_clip's transform for inference, from a model's preprocess config."""

    extra = "open_clip"

    class Params(Composed.Params):
        mean: tuple[float, float, float] = Field(
            description="subtracted from red, green and blue after scaling to 0..1"
        )
        std: tuple[float, float, float] = Field(
            description="red, green and blue are divided by it after the mean is subtracted"
        )
        interpolation: Literal["bicubic", "bilinear", "random"] = Field(
            "bicubic", description="the filter for resizing"
        )
        resize_mode: Literal["shortest", "longest", "squash"] = Field(
            "shortest",
            description="resize the shorter side and crop the centre; the longer side and fill the border; or both",
        )
        fill_color: int = Field(0, ge=0, le=255, description="the value that fills a border")

    params: Params

    def compose(self) -> Any:
        open_clip: Any = importlib.import_module("open_clip")
        params = self.params.model_dump(exclude={"size"})
        return open_clip.image_transform(self.params.size, is_train=False, **params)

    @property
    def shorter_side(self) -> int | None:
        return max(self.params.size) if self.params.resize_mode == "shortest" else None

    @property
    def converts_first(self) -> bool:
        return False  # the library resizes in the image's own mode, and converts the result
