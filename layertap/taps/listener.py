"""One side of one module, and its taps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from layertap.taps.capture import Capture
from layertap.taps.grammar import Tap
from layertap.taps.hooks import Hook


class Listener:
    """One side of one module: counts its calls and offers each value to its taps."""

    def __init__(self, module: nn.Module, captures: Sequence[Capture]) -> None:
        self.module = module
        self.captures = captures
        self.side = captures[0].tap.side
        self.calls = 0
        self._compared = False
        self.expected: int | None = None
        """How often the first forward of `run()` called it; None before that."""
        self.expected_at_stop = 0
        """How many of these calls come before the forward stops."""
        self.needed = 0
        """After how many calls every tap of this listener has what it wants."""

    def attach(
        self, receive: Callable[[Any], None], is_wanted: Callable[[], bool]
    ) -> torch.utils.hooks.RemovableHandle:
        """Pass what this side gives to `receive`, before all existing hooks see it."""
        if self.side == "input":
            given = Hook(self.module, lambda args, kwargs: receive((args, kwargs)), is_wanted)
            return self.module.register_forward_pre_hook(given, prepend=True, with_kwargs=True)
        made = Hook(self.module, lambda args, output: receive(output), is_wanted)
        return self.module.register_forward_hook(made, prepend=True)

    def begin(self, *, compared: bool) -> None:
        """A forward begins; whether it is compared with the first one. Nothing of the latest one may be read in it."""
        self.calls, self._compared = 0, compared
        for capture in self.captures:
            capture.forget()

    def receive(self, value: Any) -> None:
        """The value of the next call."""
        call, self.calls = self.calls, self.calls + 1
        for capture in self.captures:
            capture.offer(call, value, self.expected if self._compared else None)

    def expect(self) -> None:
        """Later forwards must be as the latest one."""
        self.expected, self.expected_at_stop = self.calls, 0
        self.needed = min(self.calls, max(capture.calls_needed(self.calls) for capture in self.captures))

    def last(self) -> tuple[Tap, int]:
        """The tap that gets its value last of those before the stop, and the call of the layer in which it does."""
        return self.captures[0].tap, self.expected_at_stop - 1

    def difference(self, *, stopped: bool) -> str | None:
        """How the latest forward differs from the first one, up to the stop if it was stopped; None if it does not."""
        expected = self.expected_at_stop if stopped else self.expected or 0
        return None if self.calls == expected else self._difference(self.calls, expected, stopped=stopped)

    def _difference(self, calls: int, expected: int, *, stopped: bool) -> str:
        return (
            f"layer {self.captures[0].tap.layer!r} ran {calls} times in this forward and {expected} times in the "
            f"first one{' up to the same tap' if stopped else ''}: a tap needs a layer that runs the same way every "
            "time"
        )
