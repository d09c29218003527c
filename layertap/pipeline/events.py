"""Run events -> the observers that the configuration names, through one pluggy manager."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from types import FunctionType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pluggy

from layertap.contracts import PROJECT, Observer, Plugin
from layertap.errors import LayertapError, PluginError, did_you_mean, within
from layertap.hookspecs import hookimpl
from layertap.plugins import guard

if TYPE_CHECKING:
    from layertap.records import ImageRecord, Report, RunInfo, WorkerReport

_EVENTS = tuple(name for name in vars(Observer) if not name.startswith("_"))


class Events:
    """Reports what happens in a run to its observers, in the order in which they are written.

    Every observer gets every event. An observer that raises ends the run with a `PluginError` that names it; it cannot
    hide why a run ended.
    """

    def __init__(self, observers: Iterable[Plugin]) -> None:
        self._faults: list[LayertapError] = []
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(Observer)
        # pluggy calls the last registered first.
        for number, observer in reversed(list(enumerate(observers))):
            with within("observers", number):
                self._register(observer, number)

    def run_started(self, run: RunInfo) -> None:
        self._manager.hook.run_started(run=run)
        self._raise()

    def image_failed(self, run: RunInfo, record: ImageRecord, reason: str) -> None:
        self._manager.hook.image_failed(run=run, record=record, reason=reason)
        self._raise()

    def batch_done(self, run: RunInfo, count: int) -> None:
        self._manager.hook.batch_done(run=run, count=count)
        self._raise()

    def shard_committed(self, run: RunInfo, number: int) -> None:
        self._manager.hook.shard_committed(run=run, number=number)
        self._raise()

    def worker_reported(self, run: RunInfo, worker: WorkerReport) -> None:
        self._manager.hook.worker_reported(run=run, worker=worker)
        self._raise()

    def run_finished(self, run: RunInfo, report: Report | None, error: BaseException | None) -> None:
        self._manager.hook.run_finished(run=run, report=report, error=error)
        self._raise(error)

    def _register(self, observer: Plugin, number: int) -> None:
        _refuse_misspelt(observer)
        methods = {name: self._guarded(observer, number, getattr(observer, name)) for name in _implemented(observer)}
        with guard(observer):
            self._manager.register(SimpleNamespace(**methods))
            self._manager.check_pending()

    def _guarded(self, observer: Plugin, number: int, method: Callable[..., Any]) -> Callable[..., None]:
        """The method, which never raises: pluggy would not call the other observers then. Its faults are kept."""

        @functools.wraps(method)  # pluggy reads its arguments, and the options of a decorated one
        def call(*facts: Any) -> None:
            try:
                with within("observers", number), guard(observer):
                    method(*facts)
            except LayertapError as fault:
                self._faults.append(fault)

        return call if hasattr(call, f"{PROJECT}_impl") else hookimpl(call)

    def _raise(self, ended_by: BaseException | None = None) -> None:
        """Raise the first fault, or note all of them on the error that ended the run."""
        faults, self._faults = self._faults, []
        for fault in faults:
            if ended_by is None:
                raise fault
            ended_by.add_note(f"layertap: afterwards {fault}")


def _implemented(observer: Plugin) -> list[str]:
    """The methods that pluggy must call: those named like an event, and those marked as one."""
    return [name for name in dir(type(observer)) if _is_event(observer, name) or _is_marked(observer, name)]


def _is_event(observer: Plugin, name: str) -> bool:
    """Whether the class overrides this event: an observer may well count in `self.batch_done`."""
    if name not in _EVENTS or name in getattr(observer, "__dict__", ()):
        return False
    found = inspect.getattr_static(type(observer), name)
    return isinstance(found, (FunctionType, staticmethod, classmethod)) and found is not vars(Observer)[name]


def _is_marked(observer: Plugin, name: str) -> bool:
    return hasattr(inspect.getattr_static(type(observer), name), f"{PROJECT}_impl")


def _refuse_misspelt(observer: Plugin) -> None:
    """Raise for a method named almost like an event, because it would silently never be called."""
    for name in sorted(set(dir(observer)) - set(_EVENTS)):
        near = did_you_mean(name, _EVENTS, most=1, cutoff=0.85)
        if near and callable(getattr(type(observer), name, None)):
            raise PluginError(
                f"the observer {type(observer).__name__} has a method {name!r}, which is not an event{near}"
            )
