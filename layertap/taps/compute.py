"""The amount of computation of a model, counted operation by operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class Compute(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the floating-point operations inside its `with` block, by torch's own formulas.

    torch's `FlopCounterMode` also follows the modules, and fails where a module receives a view of a parameter.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        operation = getattr(func, "_overloadpacket", func)
        formula: Callable[..., int] | None = flop_registry.get(operation)
        if formula is None and isinstance(func, torch._ops.OpOverload):
            # An operation without a formula may consist of others that have one.
            with self:
                output = func.decompose(*args, **given)
            if output is not NotImplemented:
                return output
        output = func(*args, **given)
        if formula is not None:
            self.total += formula(*args, **given, out_val=output)
        return output
