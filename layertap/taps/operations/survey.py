"""What operations some layers run in one forward, and what these make."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from layertap.records import dtype_name
from layertap.taps.grammar import Tap
from layertap.taps.hooks import ATTACHING, refuse_unhookable
from layertap.taps.layers import find_layers
from layertap.taps.mode import eval_mode
from layertap.taps.nested import tensors_of
from layertap.taps.operations.mode import Operations
from layertap.taps.operations.operation import Operation
from layertap.taps.place import Place


@dataclass(frozen=True, slots=True)
class OperationInfo:
    """One operation of a layer, as one forward showed it.

    `tap` is the tap on it. `shapes` and `dtypes` are those of the tensors that it made, by selector (empty for a single
    tensor).
    """

    tap: str
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]


@dataclass(slots=True)
class _Watcher:
    """Remembers the operations of one layer."""

    layer: str
    module: nn.Module
    calls: int = 0
    seen: list[tuple[Operation, dict[str, tuple[tuple[int, ...], str]]]] = field(default_factory=list)

    def enter(self) -> int:
        self.calls += 1
        return self.calls - 1

    def before(self, operation: Operation) -> None:
        """Nothing: what it makes is looked at."""

    def withdraw(self, operation: Operation) -> None:
        """Nothing: it was not counted."""

    def after(self, operation: Operation) -> None:
        if operation.is_inner:
            return
        tensors = list(tensors_of(operation.value))
        found = {path: (tuple(tensor.shape), dtype_name(tensor)) for path, tensor in tensors}
        # Only its name is needed later: its arguments would keep their memory.
        name = Operation(operation.name, operation.index, operation.call, operation.func, (), {})
        self.seen.append((name, {"": found[tensors[0][0]]} if len(tensors) == 1 else found))

    def infos(self) -> list[OperationInfo]:
        """The operations in the order in which they ran."""
        runs = [(operation.call, operation.name) for operation, _ in self.seen]
        return [
            OperationInfo(
                tap=str(
                    Tap(
                        layer=self.layer,
                        call=operation.call if self.calls > 1 else None,
                        op=operation.name,
                        index=operation.index if runs.count((operation.call, operation.name)) > 1 else None,
                    )
                ),
                shapes={path: shape for path, (shape, _) in tensors.items()},
                dtypes={path: dtype for path, (_, dtype) in tensors.items()},
            )
            for operation, tensors in self.seen
        ]


def survey_operations(module: nn.Module, layer: str, *args: Any, **kwargs: Any) -> list[OperationInfo]:
    """Every operation that the layer, or each layer of a pattern, runs itself in a forward on the given arguments.

    The model runs in eval mode without gradients; modes are restored afterwards. Raises `TapError` for a layer that
    does not exist, and for models whose hooks would not run.
    """
    refuse_unhookable(module)
    watchers = [_Watcher(path, found) for path, found in find_layers(module, Tap(layer=layer))]
    handles: list[torch.utils.hooks.RemovableHandle] = []
    operations, place = Operations(), Place()

    def is_here(watcher: object = None) -> bool:
        return place.is_here()

    try:
        with ATTACHING:
            operations.attach(watchers, is_here, handles)
        with eval_mode(module), torch.no_grad():
            module(*args, **kwargs)
    finally:
        operations.stop()
        for handle in handles:
            handle.remove()
    return [info for watcher in watchers for info in watcher.infos()]
