"""The class token of a transformer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import layertap
from layertap_plugins.reducers.axes import OnTokens

if TYPE_CHECKING:
    from torch import Tensor


class ClsToken(OnTokens):
    """`(N, C)`: token 0, if the model is known to have a class token."""

    name = "cls_token"
    serves = ("NLC",)

    def bind(self, tap: layertap.TapInfo) -> None:
        """Raises `TapError` if the model has no class token, or does not state that it has one."""
        super().bind(tap)
        # A model can have register tokens before its patches but no class token.
        said = self.params.num_prefix_tokens is not None
        if not self.prefix or (tap.about.get("has_class_token") is False and not said):
            raise self.refusal("belongs to a model without a class token", "use mean_patch or mean_pool")

    def __call__(self, activation: Tensor) -> Tensor:
        tokens, _ = self.positions(activation)
        self.first_patch(tokens)
        # A view would keep all tokens in memory.
        return tokens[:, 0].clone()


@layertap.hookimpl
def register_reducers(register: Callable[[str, type[layertap.Reducer]], None]) -> None:
    register("cls_token", ClsToken)
