"""The attention weights that one tap keeps of one forward."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from layertap.errors import TapError
from layertap.records import TapInfo
from layertap.taps.operations.attention import AXES, KINDS, weights_of
from layertap.taps.operations.capture import Event, OperationCapture
from layertap.taps.operations.operation import Operation, listed
from layertap.taps.reducing import without_autocast


class AttentionCapture(OperationCapture):
    """One tap on the attention weights of one layer, which it derives where the model does not build them."""

    _is_derived = False

    def counts(self, event: Event) -> bool:
        return event.attends

    def _choose(self, value: Any) -> Tensor:
        operation: Operation = value
        query = operation.args[0] if operation.args else operation.kwargs["query"]
        grad = torch.is_grad_enabled() and not self._forward.detach
        with torch.set_grad_enabled(grad), without_autocast(query.device.type):
            weights, self._is_derived = weights_of(operation)
        return self._whole(weights)

    def _described(self, call: int, tensor: Tensor) -> TapInfo:
        info = super()._described(call, tensor)
        axes = AXES if tensor.ndim == len(AXES) else ""
        return dataclasses.replace(info, axes=axes, derived=self._is_derived)

    def _missing(self, where: str, ran: list[str]) -> TapError:
        there = f"what ran there: {listed(ran)}" if ran else "it runs nothing of its own"
        inside = "**" if self.tap.layer == "." else f"{self.tap.layer}.**"
        return TapError(
            f"{str(self.tap)!r}: no attention weights are computed in {where} ({KINDS}); {there}; the layers inside it "
            f"that compute some: {inside}@attention"
        )
