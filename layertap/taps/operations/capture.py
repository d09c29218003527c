"""The values that a tap on an operation keeps of one forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from layertap.errors import TapError
from layertap.taps.capture import Capture, Hint
from layertap.taps.operations.operation import Operation, listed


class Event(NamedTuple):
    """Something that happened in call number `call` of a layer: the call began (no name), or an operation ran.

    `attends` is whether that computed attention, if a tap asks for it; `is_inner` whether it did so in a softmax layer.
    """

    call: int
    name: str
    attends: bool = False
    is_inner: bool = False


def names(events: Sequence[Event]) -> list[str]:
    """The operations that the layer itself ran."""
    return [event.name for event in events if not event.is_inner]


class OperationCapture(Capture):
    """One tap on an operation of one layer. `ran` are the layer's operations by call, which its listener keeps."""

    ran: Sequence[Sequence[Event]] = ()

    def counts(self, event: Event) -> bool:
        """Whether this is a run of the operation that the tap names, whatever its index."""
        return event.name == self.tap.op and not event.is_inner

    def wants(self, operation: Operation) -> bool:
        """Whether this is the operation that the tap names."""
        return not operation.is_inner and operation.name == self.tap.op and operation.index == (self.tap.index or 0)

    def withdraw(self, operation: Operation) -> None:
        """Drop the value of an operation that did not count."""
        self._kept.pop(operation.call, None)
        self._error = None

    def event_needed(self, happened: Sequence[Event]) -> int:
        """After how many of these events this tap has everything that it wants."""
        wanted = self.tap.call if isinstance(self.tap.call, int) else max((e.call for e in happened), default=0)
        events = [number for number, e in enumerate(happened, 1) if e.call == wanted and self.counts(e)]
        index = self.tap.index or 0
        return events[index] if index < len(events) else 0

    @property
    def is_silent(self) -> bool:
        """Whether a pattern matched its layer and a whole forward did not run the operation there: it is left out."""
        if self.pattern is None or not self._forward.finished or self.ran_in_method:
            return False
        return not any(self._runs(events) > (self.tap.index or 0) for events in self.ran)

    def _choose(self, value: Any) -> Tensor:
        return self._whole(super()._choose(value))

    def _whole(self, tensor: Tensor) -> Tensor:
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            raise TapError(f"{str(self.tap)!r} runs inside torch.vmap or torch.func, where it has no value of its own")
        return tensor

    def _fault(self, hint: Hint) -> TapError | None:
        return super()._fault(hint) or (self._ambiguity() if self.tap.index is None else None)

    def _absence(self) -> TapError | None:
        """What is missing where a call that was asked for has no value."""
        tap, calls = self.tap, range(self.calls)
        if isinstance(tap.call, int):
            if tap.call >= self.calls:
                return super()._absence()
            calls = range(tap.call, tap.call + 1)
        elif tap.call == "last":
            calls = calls[-1:]
        missing = next((call for call in calls if call not in self._kept), None)
        if missing is None:
            return None
        where = f"layer {tap.layer!r}" + (f" in its call {missing}" if self.calls > 1 else "")
        count = self._runs(self.ran[missing])
        if not count:
            return self._missing(where, names(self.ran[missing]))
        times = "once" if count == 1 else f"{count} times"
        indices = "its only index is 0" if count == 1 else f"its indices are 0 to {count - 1}"
        return TapError(f"{str(tap)!r}: {tap.op!r} runs {times} in {where}: {indices}")

    def _missing(self, where: str, ran: list[str]) -> TapError:
        there = f"what ran there: {listed(ran)}" if ran else "it runs none of its own: tap the layers inside it"
        return TapError(f"{str(self.tap)!r}: {self.tap.op!r} does not run in {where}; {there}")

    def _ambiguity(self) -> TapError | None:
        counts = dict(enumerate(map(self._runs, self.ran)))
        call = next((call for call in self._kept if counts.get(call, 0) > 1), None)
        if call is None:
            return None
        several = [str(self.tap.model_copy(update={"index": index})) for index in range(min(counts[call], 3))]
        choices = ", ".join(several) + (" ..." if counts[call] > 3 else "")
        if self.pattern is not None:
            choices += f"; for all layers that match, {self.pattern.model_copy(update={'index': 0})}"
        return TapError(
            f"{self.tap.op!r} runs {counts[call]} times in layer {self.tap.layer!r}; choose {choices} (what ran there: "
            f"{listed(names(self.ran[call]))})"
        )

    def _runs(self, events: Sequence[Event]) -> int:
        return sum(map(self.counts, events))
