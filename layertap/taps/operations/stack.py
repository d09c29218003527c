"""torch's stack of function modes in the current thread."""

from __future__ import annotations

from collections.abc import Sequence

from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode


def active() -> Sequence[TorchFunctionMode]:
    """The modes that are on, the last of which sees a function first."""
    modes: list[TorchFunctionMode] = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    return modes


def push(mode: TorchFunctionMode) -> None:
    """Turn a mode on."""
    _push_mode(mode)  # type: ignore[no-untyped-call]


def remove(mode: TorchFunctionMode) -> None:
    """Turn a mode off that is on, and leave those above it as they are."""
    above: list[TorchFunctionMode] = []
    while (last := _pop_mode()) is not mode:  # type: ignore[no-untyped-call]
        above.append(last)
    for other in reversed(above):
        push(other)
