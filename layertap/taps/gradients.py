"""The gradients of one tap's values."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from layertap.errors import TapError


class Gradients:
    """The gradients of the values that one tap kept of the latest forward, by call, from the latest backward."""

    def __init__(self) -> None:
        self._kept: dict[int, Tensor] = {}
        self._handles: dict[int, torch.utils.hooks.RemovableHandle] = {}

    def watch(self, call: int, value: Tensor) -> None:
        """Keep the gradient of this tensor, which is the model's own: what is kept of it has none."""
        if value.requires_grad:
            # A hook that is there before an in-place operation gets the gradient of what the tensor was before it.
            self._handles[call] = value.register_hook(partial(self._keep, call))  # type: ignore[no-untyped-call]

    def forget(self) -> None:
        """Free what was kept, and keep nothing of a later backward."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()
        self._kept.clear()

    def of(self, call: int, name: str) -> Tensor:
        """The gradient of a call's value. Raises `TapError` if there is none."""
        if call in self._kept:
            return self._kept[call]
        if call in self._handles:
            raise TapError(f"no backward has reached tap {name!r} since the latest forward")
        raise TapError(
            f"tap {name!r} has no gradient: its value does not require one (a forward inside no_grad, parameters and "
            "input that do not require one, attention weights that are derived) or the block is closed"
        )

    def _keep(self, call: int, gradient: Tensor) -> None:
        # The engine may hand the same memory to a parameter as its gradient.
        self._kept[call] = gradient.detach().clone()
