"""The common part of reducers of attention weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import layertap
from layertap_plugins.reducers.axes import OnFloats

if TYPE_CHECKING:
    from torch import Tensor


class OnAttention(OnFloats):
    """A reducer of attention weights, `(N, heads, queries, keys)`."""

    def bind(self, tap: layertap.TapInfo) -> None:
        """Raises `TapError` if the layer gives something else than attention weights."""
        super().bind(tap)
        # Weights that a layer returns, or that a softmax makes, have no known axes.
        if tap.axes != "NHQK" and not (tap.axes == "" and len(tap.shape) == 3):
            raise self.refusal(
                f"gives no attention weights (one image's value has the shape {tap.shape})",
                f"tap the weights, such as {tap.layer}@attention",
            )

    def weights(self, activation: Tensor, *axes: int) -> Tensor:
        """The activation, if it is floats and has one of these numbers of axes. Raises `TapError` otherwise."""
        self.wide(activation)
        if activation.ndim not in axes:
            raise self.refusal(
                f"gives attention weights that are now {tuple(activation.shape[1:])} per image",
                f"put {self.name} before the reducers that change the axes",
            )
        return activation
