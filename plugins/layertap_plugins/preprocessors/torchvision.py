"""A pipeline of torchvision's own transforms, bit for bit, with its float half done once per batch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import Field

import layertap
from layertap_plugins.preprocessors.images import refuse_strip
from layertap_plugins.preprocessors.memory import resizing, stored
from layertap_plugins.preprocessors.policies import Policies
from layertap_plugins.preprocessors.steps import Cropping, Dtype, Padding, Resizing, Step

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

Transform: TypeAlias = Callable[[Any], Any]

_MAKE_TENSORS = ("PILToTensor", "ToImage")
_NEED_TENSORS = ("ConvertImageDtype", "Normalize", "ToDtype")
# These map each value to one value, so that they work on a batch as well as on an image.
_MAY_WAIT = (*_NEED_TENSORS, "Identity", "ToPureTensor")

_ITEMS = {"uint8": 1, "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}

# Upright, wide and small: if these give the same shape, every image does.
_SAMPLES = ((60, 80), (97, 41), (20, 30))


class Pipeline(layertap.Preprocessor):
    """The result of `torchvision.transforms.v2.Compose` of the transforms in the list for the RGB image.

    If the list does not say when the image becomes a tensor, `ToImage` is inserted before the first transform that
    needs one.
    """

    class Params(Policies):
        transforms: Annotated[list[Step], Field(min_length=1, max_length=64)] = Field(
            description="transforms of torchvision.transforms.v2 by name, in order, as in `Resize: {size: 256}`"
        )

    params: Params

    def enough(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """The square of the longest side of the resize that comes first; None if another transform comes first."""
        first = self.params.transforms[0].arguments
        if not isinstance(first, Resizing) or first.size is None or first.interpolation.startswith("nearest"):
            return None
        side = first.size if isinstance(first.size, int) else max(first.size)
        return side, side

    def memory(self, size: tuple[int, int], mode: str) -> int:
        """The image as RGB, and what the transforms allocate. Raises `ImageError` for what has no pixels."""
        refuse_strip(size, None)
        early, _ = self._halves
        return self.params.memory(size, mode) + _most([step for step, _ in early], size)

    def prepare(self, image: Image.Image) -> Tensor:
        """The image as `(C, H, W)`, uint8 if the conversion to floats is deferred to the batch.

        Raises `ImageError`: `empty`, `aspect` (too long a strip), `unsupported_mode` or `greyscale`; `ConfigError` for
        transforms that do not work together, or that give images of several shapes.
        """
        refuse_strip(image.size, None)
        early, _ = self._halves
        return _applied(early, self.params.rgb(image))

    def finish(self, batch: Tensor) -> Tensor:
        """The batch as model input, contiguous `(N, C, H, W)`, on the device of `batch`."""
        _, late = self._halves
        for _, transform in late:
            batch = transform(batch)
        return batch.contiguous()

    @functools.cached_property
    def _halves(self) -> tuple[Sequence[tuple[Step, Transform]], Sequence[tuple[Step, Transform]]]:
        """The transforms for each image, and those that are deferred to the batch."""
        steps = list(self.params.transforms)
        if not any(step.name in _MAKE_TENSORS for step in steps):
            first = next((at for at, step in enumerate(steps) if step.name in _NEED_TENSORS), len(steps))
            steps.insert(first, Step.model_validate("ToImage"))
        made = [(step, _made(step)) for step in steps]
        waiting = sum(1 for _ in takewhile(lambda step: step.name in _MAY_WAIT, reversed(steps)))
        early, late = made[: len(made) - waiting], made[len(made) - waiting :]
        _try(made)
        return early, late

    def __getstate__(self) -> dict[str, Any]:
        return {"params": self.params}  # the transforms are made again when they are needed


def _made(step: Step) -> Transform:
    import torch
    from torchvision.transforms import v2  # type: ignore[import-untyped]

    arguments = step.arguments.model_dump()
    if "dtype" in arguments:
        arguments["dtype"] = getattr(torch, arguments["dtype"])
    if "interpolation" in arguments:
        arguments["interpolation"] = v2.InterpolationMode(arguments["interpolation"])
    try:
        transform: Transform = getattr(v2, step.name)(**arguments)
    except (TypeError, ValueError) as error:
        raise _refused(step, error) from error
    return transform


def _try(transforms: Sequence[tuple[Step, Transform]]) -> None:
    """Raise `ConfigError` if the transforms do not work together, or do not always give the same shape."""
    from PIL import Image

    shapes = []
    for size in _SAMPLES:
        value: Any = Image.new("RGB", size)
        for step, transform in transforms:
            try:
                value = transform(value)
            except Exception as error:  # the exception depends on the transform
                raise _refused(step, error) from error
        shapes.append(tuple(value.shape))
    if len(set(shapes)) > 1:
        raise layertap.ConfigError(
            f"images of {_SAMPLES[0]} and {_SAMPLES[1]} pixels would get the shapes "
            f"{shapes[0]} and {shapes[1]}: add a CenterCrop, or give Resize a height and a width",
            where=("transforms",),
        )


def _applied(transforms: Sequence[tuple[Step, Transform]], image: Any) -> Tensor:
    import torch
    from torchvision.transforms.v2 import functional  # type: ignore[import-untyped]

    for step, transform in transforms:
        if isinstance(step.arguments, Resizing):
            height, width = functional.get_size(image)
            _refuse_growth((width, height), step.arguments, isinstance(image, torch.Tensor))
        image = transform(image)
    pixels: Tensor = image.as_subclass(torch.Tensor)
    return pixels


def _most(steps: Sequence[Step], size: tuple[int, int]) -> int:
    """The most bytes that are held at once: what one transform has made, what the next makes of it, and its work."""
    most = held = item = 0
    for step in steps:
        before, work, arguments = size, 0, step.arguments
        if isinstance(arguments, Resizing):
            size = _resized(size, arguments)
            work = resizing(before, size)
            if item:
                # Across first; what torch has no filter for in bytes becomes floats.
                in_bytes = item == 1 and arguments.antialias and arguments.interpolation in ("bilinear", "bicubic")
                work += (0 if in_bytes else 12 * before[0] * before[1]) + 12 * size[0] * before[1]
        elif isinstance(arguments, Cropping):
            sides = [arguments.size] if isinstance(arguments.size, int) else arguments.size
            size = sides[-1], sides[0]
            work = stored(size)  # filled up first where there is less
        elif isinstance(arguments, Padding):
            borders = [arguments.padding] if isinstance(arguments.padding, int) else arguments.padding
            size = before[0] + borders[0] + borders[-2:][0], before[1] + borders[-1] + borders[:2][-1]
        elif isinstance(arguments, Dtype):
            item = _ITEMS[arguments.dtype]
        elif step.name in _MAKE_TENSORS:
            item, work = 1, 3 * size[0] * size[1]  # as bytes, as an array, and as a tensor
        made = 3 * item * size[0] * size[1] if item else stored(size)
        most = max(most, held + work + 2 * made)
        held = made
    return most


def _refuse_growth(size: tuple[int, int], how: Resizing, is_tensor: bool) -> None:
    """Raise `ImageError`, `aspect`, for a strip that would become empty or too large; tensors resize across first."""
    width, height = _resized(size, how)
    tallest = max(height, size[1]) if is_tensor else height
    if min(width, height) == 0 or width * tallest > layertap.MAX_IMAGE_PIXELS:
        raise layertap.ImageError("aspect")


def _resized(size: tuple[int, int], how: Resizing) -> tuple[int, int]:
    """The width and height that torchvision's Resize gives."""
    sides = [how.size] if isinstance(how.size, int) else how.size
    if sides is not None and len(sides) == 2:
        return sides[1], sides[0]
    short, long = sorted(size)
    if sides is not None:
        short, long = sides[0], int(sides[0] * long / short)
    if how.max_size is not None and (sides is None or long > how.max_size):
        short, long = int(how.max_size * short / long), how.max_size
    return (short, long) if size[0] <= size[1] else (long, short)


def _refused(step: Step, error: Exception) -> layertap.ConfigError:
    said = str(error).partition("\n")[0] or type(error).__name__
    return layertap.ConfigError(f"{step.name}: torchvision rejects it: {said}", where=("transforms",))


@layertap.hookimpl
def register_preprocessors(register: Callable[[str, type[layertap.Preprocessor]], None]) -> None:
    register("torchvision", Pipeline)
