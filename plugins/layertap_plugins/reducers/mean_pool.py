"""The mean over space or tokens: one value per channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import layertap
from layertap_plugins.reducers.axes import OnAxes

if TYPE_CHECKING:
    from torch import Tensor


class MeanPool(OnAxes):
    """`(N, C)` from maps or tokens (prefix tokens included), summed in float32 at least; `(N, C)` stays as it is."""

    name = "mean_pool"

    def __call__(self, activation: Tensor) -> Tensor:
        values, dims = self.positions(activation)
        return values.mean(dims, dtype=self.wide(activation)).to(activation.dtype)


@layertap.hookimpl
def register_reducers(register: Callable[[str, type[layertap.Reducer]], None]) -> None:
    register("mean_pool", MeanPool)
