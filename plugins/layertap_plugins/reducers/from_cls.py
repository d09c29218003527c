"""What the class token of a transformer looks at, as a map."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import Field, PositiveInt

import layertap
from layertap_plugins.reducers.attention import OnAttention

if TYPE_CHECKING:
    from torch import Tensor


class FromCls(OnAttention):
    """`(N, heads, rows, columns)` from attention weights, or `(N, rows, columns)` after `mean_heads`.

    These are the weights of query 0 for the keys that are patches. They sum to less than one: the rest goes to the
    class token itself and to registers.
    """

    class Params(layertap.Params):
        num_prefix_tokens: int | None = Field(
            None,
            ge=1,
            description="the number of class and register tokens before the patches, if the model does not state it",
        )
        grid: tuple[PositiveInt, PositiveInt] | None = Field(
            None, description="rows and columns of the patches, if they are not a square"
        )

    params: Params
    name = "from_cls"

    def bind(self, tap: layertap.TapInfo) -> None:
        """Raises `TapError` if the model has no class token, or does not state how many tokens precede the patches."""
        super().bind(tap)
        said = self.params.num_prefix_tokens
        prefix = tap.about.get("num_prefix_tokens") if said is None else said
        cure = "set the number for this layer, such as {type: from_cls, num_prefix_tokens: 1}"
        if prefix is None:
            raise self.refusal(
                "has tokens, but the model does not state how many of them come before the patches", cure
            )
        if not prefix or (said is None and tap.about.get("has_class_token") is False):
            raise self.refusal("belongs to a model without a class token", "use mean_heads")
        self.prefix: int = prefix

    def __call__(self, activation: Tensor) -> Tensor:
        weights = self.weights(activation, 3, 4)
        patches = weights[..., 0, self.prefix :]
        count = patches.shape[-1]
        rows, columns = self.params.grid or (math.isqrt(count), math.isqrt(count))
        if not count or rows * columns != count:
            shape = f"a map of {rows} x {columns}" if self.params.grid else "a square map"
            raise self.refusal(
                f"has {count} keys after the first {self.prefix}, which do not form {shape}",
                "set `grid: [rows, columns]` or `num_prefix_tokens`",
            )
        return patches.reshape(*patches.shape[:-1], rows, columns)


@layertap.hookimpl
def register_reducers(register: Callable[[str, type[layertap.Reducer]], None]) -> None:
    register("from_cls", FromCls)
