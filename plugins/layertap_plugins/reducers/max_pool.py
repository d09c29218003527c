"""The maximum over space or tokens: one value per channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import layertap
from layertap_plugins.reducers.axes import OnAxes

if TYPE_CHECKING:
    from torch import Tensor


class MaxPool(OnAxes):
    """`(N, C)` from maps or tokens (prefix tokens included), exact in any dtype; NaN if any position is NaN."""

    name = "max_pool"

    def __call__(self, activation: Tensor) -> Tensor:
        values, dims = self.positions(activation)
        # Via float32, which holds every value of a smaller float type: torch has no maximum for 8-bit floats.
        return values.to(self.wide(activation)).amax(dims).to(activation.dtype)


@layertap.hookimpl
def register_reducers(register: Callable[[str, type[layertap.Reducer]], None]) -> None:
    register("max_pool", MaxPool)
