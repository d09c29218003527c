"""How a tap's value is reduced."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from layertap.contracts import Reducer


def without_autocast(device: str) -> AbstractContextManager[object]:
    """Autocast is how the model computes; a reducer computes in the dtype that it is given."""
    if not torch.amp.is_autocast_available(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def reduced(reducer: Reducer, value: Tensor) -> Tensor:
    # Inference tensors do not count their changes.
    version = None if value.is_inference() else value._version
    reduced: object = reducer(value)
    if not isinstance(reduced, Tensor):
        raise TypeError(f"it returned {type(reduced).__name__}, not a tensor")
    if version is not None and value._version != version:
        raise ValueError("it changed the activation in place, which the model still uses")
    return reduced
