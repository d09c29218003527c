"""The operations of one layer, and its taps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from layertap.taps.grammar import Tap
from layertap.taps.listener import Listener
from layertap.taps.operations.attention import attends
from layertap.taps.operations.attention_capture import AttentionCapture
from layertap.taps.operations.capture import Event, OperationCapture, names
from layertap.taps.operations.operation import Operation, listed


class OperationListener(Listener):
    """The operations of one module: offers each to the taps that name it, and remembers what ran.

    It counts events: the beginning of each of the module's calls, which has an empty name, and each operation.
    """

    def __init__(
        self,
        module: nn.Module,
        captures: Sequence[OperationCapture],
        is_counted: Callable[[Listener], bool],
        received: Callable[[Listener], None],
    ) -> None:
        super().__init__(module, captures)
        self._is_counted = is_counted
        self._received = received
        self._operated = captures
        self._attention = [capture for capture in captures if isinstance(capture, AttentionCapture)]
        self._by_name: dict[str, list[OperationCapture]] = {}
        self._happened: list[Event] = []
        self._first: list[Event] = []
        self._ran: list[list[Event]] = []
        for capture in captures:
            capture.ran = self._ran
            if capture not in self._attention:
                self._by_name.setdefault(str(capture.tap.op), []).append(capture)
        self._last = captures[0]

    def begin(self, *, compared: bool) -> None:
        super().begin(compared=compared)
        self._happened.clear()
        self._ran.clear()

    def expect(self) -> None:
        self.expected, self.expected_at_stop = self.calls, 0
        self._first = list(self._happened)
        needed = {capture.event_needed(self._first): capture for capture in self._operated}
        self.needed = max(needed)
        self._last = needed[self.needed]

    def last(self) -> tuple[Tap, int]:
        return self._last.tap, self._first[self.expected_at_stop - 1].call

    def difference(self, *, stopped: bool) -> str | None:
        expected = self._first[: self.expected_at_stop] if stopped else self._first
        if self._happened == expected:
            return None
        before = _by_call(expected)
        for call in range(min(len(before), len(self._ran))):
            if before[call] != self._ran[call]:
                where = f"layer {self._last.tap.layer!r}" + (f" in its call {call}" if len(before) > 1 else "")
                return (
                    f"{where} ran other operations in this forward than in the first one"
                    f"{' up to the same tap' if stopped else ''}: {_listed(self._ran[call])}; in the first "
                    f"one: {_listed(before[call])}"
                )
        return self._difference(len(self._ran), len(before), stopped=stopped)

    def enter(self) -> int | None:
        """A call of the module begins: its number, or None if it is not part of a forward."""
        if not self._is_counted(self):
            return None
        call = len(self._ran)
        self._ran.append([])
        for capture in self.captures:
            capture.calls = call + 1
        self._count(Event(call, ""))
        return call

    def before(self, operation: Operation) -> None:
        """Offer what an operation is given: it may change that in place."""
        for capture in self._by_name.get(operation.name, ()):
            if capture.tap.side == "input" and capture.wants(operation):
                capture.offer(operation.call, (operation.args, operation.kwargs), self._expected_calls)

    def after(self, operation: Operation) -> None:
        """Offer what an operation made, and count it."""
        for capture in self._by_name.get(operation.name, ()):
            if capture.tap.side == "output" and capture.wants(operation):
                capture.offer(operation.call, operation.value, self._expected_calls)
        event = Event(operation.call, operation.name, bool(self._attention) and attends(operation), operation.is_inner)
        if event.is_inner and not event.attends:
            return
        if event.attends:
            index = sum(each.attends for each in self._ran[event.call])
            for capture in self._attention:
                if (capture.tap.index or 0) == index:
                    capture.offer(event.call, operation, self._expected_calls)
        self._ran[event.call].append(event)
        self._count(event)

    def withdraw(self, operation: Operation) -> None:
        """Drop what was offered of an operation that raised, or that made no tensor."""
        for capture in self._by_name.get(operation.name, ()):
            if capture.tap.side == "input" and capture.wants(operation):
                capture.withdraw(operation)

    @property
    def _expected_calls(self) -> int | None:
        return len(_by_call(self._first)) if self._compared and self.expected is not None else None

    def _count(self, event: Event) -> None:
        self._happened.append(event)
        self.calls += 1
        self._received(self)


def _by_call(happened: Sequence[Event]) -> list[list[Event]]:
    """The operations of each call."""
    calls: list[list[Event]] = []
    for event in happened:
        if event.name:
            calls[event.call].append(event)
        else:
            calls.append([])
    return calls


def _listed(events: Sequence[Event]) -> str:
    return listed(names(events)) or "none"
