"""The operations of tapped layers, seen while these run and at no other time."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any, Protocol

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from layertap.taps import hooks
from layertap.taps.capture import Capture
from layertap.taps.hooks import Hook
from layertap.taps.layers import blocks_of
from layertap.taps.operations import stack
from layertap.taps.operations.operation import Operation, name_of

_CALL = nn.Module._call_impl.__code__
# What a layer inside the tapped one does, and what layertap does with a value, is not the tapped layer's own work.
_OTHERS = frozenset({_CALL, Hook.__call__.__code__, Capture.offer.__code__})


class Watcher(Protocol):
    """Learns of the operations of one layer."""

    module: nn.Module

    def enter(self) -> int | None:
        """A call of the layer begins: its number, or None if it is not wanted."""

    def before(self, operation: Operation) -> None:
        """An operation is about to run."""

    def after(self, operation: Operation) -> None:
        """It has run, and has made a tensor."""

    def withdraw(self, operation: Operation) -> None:
        """It raised or made no tensor: it does not count."""


@dataclass(slots=True)
class _Call:
    """A running call of a layer, which `watcher` watches; with no watcher, the watching pauses."""

    frame: FrameType
    watcher: Watcher | None = None
    number: int = 0
    counts: dict[str, int] | None = None


class _Here(threading.local):
    """Whether the mode is on in the current thread: each has a stack of modes of its own."""

    is_on = False


class Operations(TorchFunctionMode):
    """Watches the operations of layers by their hooks: on only while one of them runs, and none of its blocks."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[_Call] = []
        self._here = _Here()

    def attach(
        self,
        watchers: Sequence[Watcher],
        is_here: Callable[..., bool],
        handles: list[torch.utils.hooks.RemovableHandle],
    ) -> None:
        """Add the hooks that turn it on and off; their handles are added to `handles`."""
        paused = {block: None for watcher in watchers for block in blocks_of(watcher.module)}
        for block in paused:
            pause, resume = (Hook(block, act, is_here) for act in (self._pause, self._leave))
            handles.append(block.register_forward_pre_hook(pause, prepend=True))
            handles.append(block.register_forward_hook(resume, always_call=True))
        for watcher in watchers:
            # After other hooks on the input and before those on the output: what these do is not the layer's own work.
            enter = Hook(watcher.module, partial(self._enter, watcher), partial(is_here, watcher))
            leave = Hook(watcher.module, self._leave, is_here)
            handles.append(watcher.module.register_forward_pre_hook(enter))
            handles.append(watcher.module.register_forward_hook(leave, prepend=True, always_call=True))

    def stop(self) -> None:
        """Forget the running calls, and turn it off in this thread. If it is on in another, it does nothing there."""
        if self._calls or self._here.is_on:
            self._calls.clear()
            self._turn_off(anyway=True)

    def drop_dead(self) -> None:
        """Forget calls that ended in an exception which runs no hooks."""
        while self._calls and not hooks.is_running(self._calls[-1].frame):
            self._calls.pop()
        if not self._calls:
            self._turn_off(anyway=True)

    def _enter(self, watcher: Watcher, *received: Any) -> None:
        number = watcher.enter()
        if number is not None:
            self._calls.append(_Call(_frame_of_call(), watcher, number, {}))
            self._turn_on()

    def _pause(self, *received: Any) -> None:
        if self._calls and self._calls[-1].watcher is not None:
            self._calls.append(_Call(_frame_of_call()))
            self._turn_off()

    def _leave(self, *received: Any) -> None:
        if not self._calls or self._calls[-1].frame is not _frame_of_call():
            return
        self._calls.pop()
        if self._calls and self._calls[-1].watcher is not None:
            self._turn_on()
        else:
            self._turn_off(anyway=not self._calls)

    def _turn_on(self) -> None:
        if not self._here.is_on:
            stack.push(self)
            self._here.is_on = True

    def _turn_off(self, *, anyway: bool = False) -> None:
        """Leave torch's stack of modes, in which only the last can be removed without disturbing another's `with`."""
        on = stack.active() if self._here.is_on else ()
        if self in on and (anyway or on[-1] is self):
            stack.remove(self)
            self._here.is_on = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        call = self._calls[-1] if self._calls else None
        if call is None or call.watcher is None or call.counts is None:
            return func(*args, **kwargs)
        name = name_of(func)
        is_own = _is_own(call.frame)
        is_inner = name == "softmax" and not is_own and _is_own(call.frame, but_for=nn.Softmax)
        if not (is_own or is_inner):
            return func(*args, **kwargs)
        operation = Operation(name, call.counts.get(name, 0), call.number, func, args, kwargs, is_inner)
        call.watcher.before(operation)
        try:
            operation.result = func(*args, **kwargs)
        except BaseException:
            call.watcher.withdraw(operation)
            raise
        if operation.makes_tensors:
            call.counts[name] = operation.index + is_own
            call.watcher.after(operation)
        else:
            call.watcher.withdraw(operation)
        return operation.result


def drop_dead() -> None:
    """Turn off what a forward that was stopped left on in this thread, for the taps of others too."""
    for mode in stack.active():
        if isinstance(mode, Operations):
            mode.drop_dead()


def _frame_of_call() -> FrameType:
    """The frame of the module's call whose hook asks."""
    frame = sys._getframe(1)
    while frame.f_code is not _CALL:
        assert frame.f_back is not None
        frame = frame.f_back
    return frame


def _is_own(call: FrameType, but_for: type[nn.Module] | None = None) -> bool:
    """Whether the operation that is about to run is called by this call itself, and not by a layer inside it.

    One layer of the type `but_for` may be between them.
    """
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame is not call:
        if frame.f_code in _OTHERS:
            if but_for is None or not isinstance(frame.f_locals.get("self"), but_for):
                return False
            but_for = None
        frame = frame.f_back
    return frame is not None
