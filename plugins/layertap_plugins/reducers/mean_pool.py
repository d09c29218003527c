"""The mean over space or tokens: one value a channel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import layertap

if TYPE_CHECKING:
    from torch import Tensor

_POOLED: Mapping[str, tuple[int, ...]] = {"NCHW": (2, 3), "NHWC": (1, 2), "NLC": (1,), "NC": ()}


class MeanPool(layertap.Reducer):
    """`(N, C)` out of maps or tokens (prefix tokens included), summed in float32 at least; `(N, C)` stays as it is."""

    dims: tuple[int, ...]

    def bind(self, tap: layertap.TapInfo) -> None:
        """Raises `TapError` where the axes are not known or the values are not floats."""
        if tap.axes not in _POOLED:
            raise layertap.TapError(
                f"mean_pool: which axes of the layer {tap.layer!r} are space or tokens is not known (one image's value "
                f"has the shape {tap.shape}); use `reduce: [flatten]` to keep all of it"
            )
        if "float" not in tap.dtype:
            raise layertap.TapError(f"mean_pool: the layer {tap.layer!r} gives {tap.dtype}; only floats have a mean")
        self.dims = _POOLED[tap.axes]

    def __call__(self, activation: Tensor) -> Tensor:
        import torch

        if not self.dims:
            return activation.clone()
        wide = torch.promote_types(activation.dtype, torch.float32)
        return activation.mean(self.dims, dtype=wide).to(activation.dtype)


@layertap.hookimpl
def register_reducers(register: Callable[[str, type[layertap.Reducer]], None]) -> None:
    register("mean_pool", MeanPool)
