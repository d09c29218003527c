"""One side of one module, and its taps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from layertap.taps.capture import Capture


class Listener:
    """One side of one module: counts its calls and offers each value to its taps."""

    def __init__(self, module: nn.Module, side: str) -> None:
        self.module = module
        self.side = side
        self.captures: list[Capture] = []
        self.calls = 0
        self.expected: int | None = None
        """How often the first forward of `run()` called it; None before that."""
        self.expected_at_stop = 0
        """How many of these calls come before the forward stops."""
        self.needed = 0
        """After how many calls every tap of this listener has what it wants."""

    def receive(self, value: Any, expected: int | None) -> None:
        call, self.calls = self.calls, self.calls + 1
        for capture in self.captures:
            capture.offer(call, value, expected)

    def expect(self, calls: int) -> None:
        self.expected, self.expected_at_stop = calls, 0
        self.needed = min(calls, max(capture.calls_needed(calls) for capture in self.captures))


def listeners_of(captures: Iterable[Capture]) -> list[Listener]:
    """One listener for each side of each module that has captures, in their order."""
    found: dict[tuple[int, str], Listener] = {}
    for capture in captures:
        listener = found.setdefault((id(capture.layer), capture.tap.side), Listener(capture.layer, capture.tap.side))
        listener.captures.append(capture)
    return list(found.values())
