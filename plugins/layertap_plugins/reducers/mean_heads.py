"""The mean of attention weights over the heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import layertap
from layertap_plugins.reducers.attention import OnAttention

if TYPE_CHECKING:
    from torch import Tensor


class MeanHeads(OnAttention):
    """`(N, queries, keys)` from `(N, heads, queries, keys)`, summed in float32 at least."""

    name = "mean_heads"

    def __call__(self, activation: Tensor) -> Tensor:
        weights = self.weights(activation, 4)
        return weights.mean(1, dtype=self.wide(weights)).to(weights.dtype)


@layertap.hookimpl
def register_reducers(register: Callable[[str, type[layertap.Reducer]], None]) -> None:
    register("mean_heads", MeanHeads)
