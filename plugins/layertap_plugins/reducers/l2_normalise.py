"""Rows of length one, as needed for cosine similarity."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import Field

import layertap
from layertap_plugins.reducers.axes import OnFloats

if TYPE_CHECKING:
    from torch import Tensor


class L2Normalise(OnFloats):
    """`(N, C)` with each row divided by its Euclidean length; a row of zeros stays as it is.

    Maps and tokens are refused: only the user knows whether each position or the whole image should have length one,
    and shows it by putting a pool or `flatten` before this reducer.
    """

    class Params(layertap.Params):
        eps: float = Field(
            1e-12,
            ge=1e-30,
            allow_inf_nan=False,
            description="rows with a smaller largest value stay shorter than one",
        )

    params: Params
    name = "l2_normalise"

    def __call__(self, activation: Tensor) -> Tensor:
        import torch

        rows = self.rows(activation).to(self.wide(activation))
        # After division by its largest value no row has squares that overflow or vanish, and its length is at least 1.
        rows = rows / rows.abs().amax(1, keepdim=True).clamp(min=self.params.eps)
        lengths: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp(min=1)
        return (rows / lengths).to(activation.dtype)


@layertap.hookimpl
def register_reducers(register: Callable[[str, type[layertap.Reducer]], None]) -> None:
    register("l2_normalise", L2Normalise)
