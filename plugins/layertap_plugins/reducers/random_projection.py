"""A fixed random projection: it shortens long rows and nearly preserves their distances."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

import layertap
from layertap_plugins.reducers.axes import OnFloats

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor


class RandomProjection(OnFloats):
    """`(N, dim)` from `(N, D)` by the very sparse projection of Li, Hastie and Church 2006.

    https://doi.org/10.1145/1150402.1150436: an entry of the matrix is `sqrt(s / dim)` with probability `1 / 2s`, its
    negative with the same probability, else 0, where s is the integer part of `sqrt(D)`. The matrix depends only on D,
    `dim` and `seed`. The squared distance of two rows is preserved on average, and a single one to about
    `sqrt(2 / dim)` of it, but less well if the rows differ in only a few of their D values.
    """

    class Params(layertap.Params):
        dim: int = Field(512, ge=1, description="values in a row of the result")
        seed: int = Field(0, ge=0, lt=2**63, description="the seed that selects the random matrix")

    params: Params
    name = "random_projection"
    signs: Signs | None = None
    _placed: tuple[torch.device, torch.dtype, tuple[Tensor, Tensor, Tensor]] | None = None

    def __call__(self, activation: Tensor) -> Tensor:
        from torch.nn import functional as F

        rows = self.rows(activation)
        dtype = self.wide(rows)
        signs = self._for(rows.shape[1])
        inputs, starts, weights = self._on(rows.device, dtype)
        if not len(rows):
            return rows.new_zeros(0, self.params.dim)
        # Every weight is 1 or -1, so that a sum is the same with and without fused multiplication.
        sums = F.embedding_bag(inputs, rows.t().contiguous().to(dtype), starts, mode="sum", per_sample_weights=weights)
        return sums.t().mul(signs.scale).contiguous().to(rows.dtype)

    def _for(self, width: int) -> Signs:
        """The matrix, drawn when the first value shows how wide the rows are: other reducers may come before."""
        dim = self.params.dim
        if self.signs is None:
            if dim > width:
                raise self.refusal(f"gives rows of {width} values, fewer than the requested {dim}", "set a smaller dim")
            self.signs = Signs.drawn(width, dim, self.params.seed)
        if self.signs.width != width:
            raise self.refusal(
                f"gave rows of {self.signs.width} values and now of {width}, which need different projections",
                "give it images of one size, or put a pool first",
            )
        return self.signs

    def _on(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        import torch

        assert self.signs is not None
        if self._placed is None or self._placed[:2] != (device, dtype):
            inputs, starts, signs = map(torch.from_numpy, (self.signs.inputs, self.signs.starts, self.signs.signs))
            self._placed = device, dtype, (inputs.to(device), starts.to(device), signs.to(device, dtype))
        return self._placed[2]


@dataclass(frozen=True, slots=True)
class Signs:
    """The entries of a sparse matrix of signs, row by row: their columns, where each row starts, and which is -1."""

    width: int
    inputs: NDArray[np.int64]
    starts: NDArray[np.int64]
    signs: NDArray[np.int8]
    scale: float

    @classmethod
    def drawn(cls, width: int, dim: int, seed: int, chunk: int = 1 << 16) -> Signs:
        """`dim` rows of `width` entries, each 1 or -1 with total probability `1 / s`, in memory of about `dim * s`.

        Computed with integers only, so that the result depends on no library's logarithm: word i of Philox4x64-10
        (Salmon et al. 2011) with the key `seed` and a counter from 1 gives the sign in its last bit and, in the 63
        others, the number of zero entries before the next nonzero one.
        """
        import numpy as np

        sparsity = math.isqrt(width)
        words = np.random.Philox(key=seed)
        chances = _chances(sparsity)
        places, signs, last = [], [], -1
        while last < width * dim:
            drawn = words.random_raw(chunk)
            zeros = len(chances) - np.searchsorted(chances, drawn >> np.uint64(1), side="right")
            places.append(np.cumsum(zeros + 1) + last)
            signs.append((drawn & np.uint64(1)).astype(np.int8) * np.int8(2) - np.int8(1))
            last = int(places[-1][-1])
        place = np.concatenate(places)
        place = place[: np.searchsorted(place, width * dim)]
        starts = np.searchsorted(place, np.arange(dim) * width)
        return cls(width, place % width, starts, np.concatenate(signs)[: len(place)], math.sqrt(sparsity / dim))


def _chances(sparsity: int) -> NDArray[np.uint64]:
    """The chance of at least g zeros before the next entry, `(1 - 1/s)**g`, in units of 2**-63, for descending g."""
    import numpy as np

    chance, found = 1 << 127, []
    while unit := (chance := chance * (sparsity - 1) // sparsity) >> 64:
        found.append(unit)
    return np.array(found[::-1], dtype=np.uint64)


@layertap.hookimpl
def register_reducers(register: Callable[[str, type[layertap.Reducer]], None]) -> None:
    register("random_projection", RandomProjection)
