"""Resizing an image and cropping its centre as torchvision does, or nearly so in less time."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from layertap_plugins.preprocessors.memory import as_planes, resizing, stored

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

Size: TypeAlias = tuple[int, int]
Box: TypeAlias = tuple[int, int, int, int]

# Above this, moving the pixels into a tensor costs more than torch's filter saves.
_MAX_TENSOR_PIXELS = 2**22


def centre(image: Image.Image, resize: int, crop: int, interpolation: str, *, exact: bool = True) -> Tensor:
    """The square in the centre of the RGB image after resizing its shorter side: uint8 `(3, crop, crop)`.

    The result is bit for bit torchvision's; without `exact` it takes less time, and some pixels differ by one level,
    rarely two.
    """
    from PIL.Image import Resampling

    size = resized(image.size, resize)
    left, top = (_offset(length, crop) for length in size)
    box = left, top, left + crop, top + crop
    resample = Resampling[interpolation.upper()]
    # torch supports only these two, and they are smooth: with other filters `part` below would count whole pixels.
    if exact or interpolation not in ("bilinear", "bicubic") or crop > min(size):
        # All of it is resized, although much is cut off: the sizes decide which direction Pillow resizes first, and so
        # how it rounds.
        return planes(image.resize(size, resample).crop(box))
    if not _fits_tensor(image):
        across, down = (length / after for length, after in zip(image.size, size, strict=True))
        part = left * across, top * down, (left + crop) * across, (top + crop) * down
        return planes(image.resize((crop, crop), resample, part))
    return _cut_bytes(image, size, box, interpolation)


def stretched(image: Image.Image, size: Size, interpolation: str, *, exact: bool = True) -> Tensor:
    """The RGB image resized to a width and a height, whatever its aspect: uint8 `(3, height, width)`.

    The result is bit for bit torchvision's; without `exact` it takes less time, and some pixels differ by one level,
    rarely two.
    """
    from PIL.Image import Resampling

    # Pillow first resizes the direction that leaves less to do; torch always resizes across first, which for a strip
    # would give a huge intermediate image.
    grown = size[0] * image.height > _MAX_TENSOR_PIXELS
    if exact or grown or interpolation not in ("bilinear", "bicubic") or not _fits_tensor(image):
        return planes(image.resize(size, Resampling[interpolation.upper()]))
    return _cut_bytes(image, size, (0, 0, *size), interpolation)


def memory(size: Size, to: Size, result: Size, *, exact: bool) -> int:
    """The bytes that bringing an RGB image of a size to another one allocates, of which `result` is cut out."""
    # In a tensor the pixels are there twice, as they come from Pillow and once resized across.
    in_tensor = 0 if exact or size[0] * size[1] > _MAX_TENSOR_PIXELS else 8 * size[0] * size[1] + stored(to)
    return resizing(size, to) + in_tensor + stored(result) + as_planes(result)


def resized(size: Size, side: int) -> Size:
    """The size of an image once its shorter side is resized to `side`."""
    width, height = size
    longer = int(side * max(size) / min(size))
    return (side, longer) if width <= height else (longer, side)


def planes(image: Image.Image) -> Tensor:
    """The RGB image as uint8 `(3, H, W)`, contiguous."""
    import torch

    data = bytearray().join(image.tobytes("raw", band) for band in "RGB")
    return torch.frombuffer(data, dtype=torch.uint8).view(3, image.height, image.width)


def _fits_tensor(image: Image.Image) -> bool:
    return image.width * image.height <= _MAX_TENSOR_PIXELS


def _offset(length: int, crop: int) -> int:
    return -((crop - length) // 2) if crop > length else round((length - crop) / 2)


def _cut_bytes(image: Image.Image, size: Size, box: Box, interpolation: str) -> Tensor:
    """The image resized by torch's filter on bytes, then cut."""
    import torch
    from torch.nn.functional import interpolate

    left, top, right, bottom = box
    # Pillow stores RGB in four bytes per pixel, so this is a plain copy, in the layout that is fastest for torch.
    data = bytearray(image.tobytes("raw", "RGBX"))
    pixels = torch.frombuffer(data, dtype=torch.uint8).view(1, image.height, image.width, 4).permute(0, 3, 1, 2)
    resized: Tensor = interpolate(pixels, size=size[::-1], mode=interpolation, antialias=True)
    return resized[0, :3, top:bottom, left:right]
