"""The float half of preprocessing, done once per batch: bytes to 0..1, then mean and standard deviation."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def normalised(batch: Tensor, mean: Sequence[float], std: Sequence[float], scale: float = 255) -> Tensor:
    """The batch `(N, C, H, W)` divided by `scale`, minus `mean`, divided by `std`: contiguous float32, on its device.

    It applies the operations of torchvision's ToTensor and Normalize in the same order, without their copies and
    without waiting for the device.
    """
    import torch

    pixels = batch.to(torch.float32, memory_format=torch.contiguous_format, copy=True).div_(scale)
    return pixels.sub_(_column(tuple(mean), batch.device)).div_(_column(tuple(std), batch.device))


@functools.cache
def _column(values: tuple[float, ...], device: torch.device) -> Tensor:
    import torch

    return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)
