"""The mean over the parts that show the image: patch tokens without class and register tokens, or a whole map."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import layertap
from layertap_plugins.reducers.axes import OnTokens

if TYPE_CHECKING:
    from torch import Tensor


class MeanPatch(OnTokens):
    """`(N, C)` from patch tokens or maps, summed in float32 at least."""

    name = "mean_patch"
    serves = ("NCHW", "NHWC", "NLC")

    def __call__(self, activation: Tensor) -> Tensor:
        values, dims = self.patches(activation)
        return values.mean(dims, dtype=self.wide(activation)).to(activation.dtype)


@layertap.hookimpl
def register_reducers(register: Callable[[str, type[layertap.Reducer]], None]) -> None:
    register("mean_patch", MeanPatch)
