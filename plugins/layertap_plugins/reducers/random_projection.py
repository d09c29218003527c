"""A fixed random projection: a long row as a short one, its distances nearly kept."""

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
    """`(N, dim)` out of `(N, D)` by the very sparse projection of Li, Hastie and Church 2006.

    https://doi.org/10.1145/1150402.1150436: an entry of the matrix is `sqrt(s / dim)` with chance `1 / 2s`, its
    negative with the same chance, else 0, where s is the whole part of `sqrt(D)`. It depends on D, `dim` and `seed`
    alone. The squared distance of two rows is kept on average, and a single one to about `sqrt(2 / dim)` of it; less
    well where the rows differ in few of their D values.
    """

    class Params(layertap.Params):
        dim: int = Field(512, ge=1, description="values in a row of the result")
        seed: int = Field(0, ge=0, lt=2**63, description="which of all random matrices")

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
        # A weight is 1 or -1, so a sum is the same with and without fused multiplication.
        sums = F.embedding_bag(inputs, rows.t().contiguous().to(dtype), starts, mode="sum", per_sample_weights=weights)
        return sums.t().mul(signs.scale).contiguous().to(rows.dtype)

    def _for(self, width: int) -> Signs:
        """The matrix, drawn when the first value shows how wide its rows are: other reducers may come before."""
        dim = self.params.dim
        if self.signs is None:
            if dim > width:
                raise self.refusal(
                    f"brings rows of {width} values, fewer than the {dim} asked for", "set a smaller dim"
                )
            self.signs = Signs.drawn(width, dim, self.params.seed)
        if self.signs.width != width:
            raise self.refusal(
                f"brought rows of {self.signs.width} values and now of {width}, which one projection cannot serve",
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
        """`dim` rows of `width` entries, each 1 or -1 with chance `1 / s` in all, in memory of about `dim * s`.

        Made of integers alone, so that no library's logarithm has a say: word i of Philox4x64-10 (Salmon et al. 2011)
        with the key `seed` and a counter from 1 gives the sign by its last bit and, by the 63 others, how many entries
        are zero before the next that is not.
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
    """The chance of g zeros or more before the next entry, `(1 - 1/s)**g`, in units of 2**-63, for all g downwards."""
    import numpy as np

    chance, found = 1 << 127, []
    while unit := (chance := chance * (sparsity - 1) // sparsity) >> 64:
        found.append(unit)
    return np.array(found[::-1], dtype=np.uint64)


@layertap.hookimpl
def register_reducers(register: Callable[[str, type[layertap.Reducer]], None]) -> None:
    register("random_projection", RandomProjection)
