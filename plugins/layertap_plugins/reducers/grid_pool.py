"""The mean in each cell of a k x k grid over a map, which keeps roughly where things are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import Field

import layertap
from layertap_plugins.reducers.axes import OnTokens, TokenParams

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class GridPool(OnTokens):
    """`(N, C, k, k)` from NCHW maps, `(N, k, k, C)` from NHWC maps and patch tokens.

    The cells are those of adaptive average pooling: if a side is not a multiple of k, neighbours overlap by one row.
    Tokens before the patches are left out, and the patches are treated as a square map, row by row.
    """

    class Params(TokenParams):
        k: int = Field(2, ge=1, description="cells per side; at most the number of the map's rows and columns")

    params: Params
    name = "grid_pool"
    serves = ("NCHW", "NHWC", "NLC")

    def __call__(self, activation: Tensor) -> Tensor:
        values, dims = self.patches(activation)
        if self.axes == "NLC":
            values, dims = self._square(values), (1, 2)
        sides = tuple(values.shape[dim] for dim in dims)
        if min(sides) < self.params.k:
            cells = f"{self.params.k} x {self.params.k}"
            raise self.refusal(f"has maps of {sides[0]} x {sides[1]}, too small for {cells} cells", "use a smaller k")
        dtype = self.wide(activation)
        # All rows of a cell have the same width, so the mean of their means is the mean of the cell.
        for dim in dims:
            values = self._means(values, dim, dtype)
        return values.to(activation.dtype)

    def _square(self, patches: Tensor) -> Tensor:
        count, side = patches.shape[1], math.isqrt(patches.shape[1])
        if side**2 != count:
            raise self.refusal(f"has {count} patches, which do not form a square map", "use mean_patch or flatten")
        return patches.reshape(len(patches), side, side, patches.shape[2])

    def _means(self, values: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
        import torch

        size, k = values.shape[dim], self.params.k
        ends = [(cell * size // k, -(-(cell + 1) * size // k)) for cell in range(k)]
        return torch.stack([values.narrow(dim, a, b - a).mean(dim, dtype=dtype) for a, b in ends], dim)


@layertap.hookimpl
def register_reducers(register: Callable[[str, type[layertap.Reducer]], None]) -> None:
    register("grid_pool", GridPool)
