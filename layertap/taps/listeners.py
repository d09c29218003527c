"""Captures -> the listeners that serve them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from layertap.errors import TapError
from layertap.taps.capture import Capture
from layertap.taps.listener import Listener
from layertap.taps.operations.capture import OperationCapture
from layertap.taps.operations.listener import OperationListener


def listeners_of(
    captures: Iterable[Capture], is_counted: Callable[[Listener], bool], received: Callable[[Listener], None]
) -> list[Listener]:
    """One for each side of each module that has captures, and one for a module's operations, in that order.

    `is_counted` says whether a call that begins is part of a forward, `received` is called after each operation.
    """
    sides: dict[tuple[int, str], list[Capture]] = {}
    operations: dict[int, list[OperationCapture]] = {}
    for capture in captures:
        if isinstance(capture, OperationCapture):
            operations.setdefault(id(capture.layer), []).append(capture)
        else:
            sides.setdefault((id(capture.layer), capture.tap.side), []).append(capture)
    listeners = [Listener(some[0].layer, some) for some in sides.values()]
    return listeners + [OperationListener(some[0].layer, some, is_counted, received) for some in operations.values()]


def refuse_differences(listeners: Iterable[Listener], *, stopped: bool) -> None:
    """Raise `TapError` if the latest forward differs from the first one, up to the stop if it was stopped."""
    for listener in listeners:
        if (what := listener.difference(stopped=stopped)) is not None:
            raise TapError(what, where=listener.captures[0].where)
