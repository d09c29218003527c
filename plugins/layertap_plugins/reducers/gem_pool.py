"""The generalised mean over space or tokens, between the mean and the maximum: one value per channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import Field

import layertap
from layertap_plugins.reducers.axes import AxesParams, OnAxes

if TYPE_CHECKING:
    from torch import Tensor


class GemPool(OnAxes):
    """`(N, C)`: the p-th root of the mean of p-th powers, over space or tokens (prefix tokens included).

    Radenovic et al. 2018, https://arxiv.org/abs/1711.02512. It is for activations that are not negative: values below
    `eps` count as `eps`.
    """

    class Params(AxesParams):
        p: float = Field(
            3.0, ge=1, allow_inf_nan=False, description="the power; 1 is the mean, higher powers are nearer the maximum"
        )
        eps: float = Field(1e-6, ge=1e-30, allow_inf_nan=False, description="smaller values count as this one")

    params: Params
    name = "gem_pool"

    def __call__(self, activation: Tensor) -> Tensor:
        values, dims = self.positions(activation)
        values = values.to(self.wide(activation)).clamp(min=self.params.eps)
        # Shares of the largest value are at most 1, so that no power overflows.
        peak = values.amax(dims, keepdim=True)
        shares = values.div(peak).pow(self.params.p).mean(dims).pow(1 / self.params.p)
        return shares.mul(peak.reshape(shares.shape)).to(activation.dtype)


@layertap.hookimpl
def register_reducers(register: Callable[[str, type[layertap.Reducer]], None]) -> None:
    register("gem_pool", GemPool)
