"""Run events -> the observers that the configuration names, through pluggy."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from types import FunctionType
from typing import TYPE_CHECKING, Any

import pluggy

from layertap.contracts import Plugin
from layertap.errors import LayertapError, PluginError, did_you_mean
from layertap.hookspecs import PROJECT, RunEvents
from layertap.plugins import guard

if TYPE_CHECKING:
    from pluggy import HookimplOpts

    from layertap.records import ImageRecord, Report, RunInfo

_EVENTS = tuple(name for name in vars(RunEvents) if not name.startswith("_"))
_OPTIONS: HookimplOpts = {
    "wrapper": False,
    "hookwrapper": False,
    "optionalhook": False,
    "tryfirst": False,
    "trylast": False,
    "specname": None,
}


class _Manager(pluggy.PluginManager):
    """Takes an observer's methods by the names of the events, so that they need no decorator."""

    def parse_hookimpl_opts(self, plugin: object, name: str) -> HookimplOpts | None:
        return super().parse_hookimpl_opts(plugin, name) or (_OPTIONS if _is_event(plugin, name) else None)


def _refuse_misspelt(observer: Plugin) -> None:
    """A method named almost like an event is one that would silently never be called."""
    for name in sorted(set(dir(observer)) - set(_EVENTS)):
        near = did_you_mean(name, _EVENTS, most=1, cutoff=0.85)
        if near and callable(getattr(type(observer), name, None)):
            raise PluginError(f"the observer {type(observer).__name__} has a method {name!r}, which is no event{near}")


class Events:
    """Tells one run's observers what happens, in the order in which they are written.

    An observer that raises ends the run with a `PluginError`; what it can no longer do is hide why a run ended, or keep
    the other observers from hearing of it.
    """

    def __init__(self, observers: Iterable[Plugin]) -> None:
        observers = list(observers)
        for observer in observers:
            _refuse_misspelt(observer)
        # A manager each: what one of them raises is told in its name.
        self._observers = [(observer, _managed(observer)) for observer in observers]

    def run_started(self, run: RunInfo) -> None:
        self._tell("run_started", run=run)

    def image_failed(self, run: RunInfo, record: ImageRecord, reason: str) -> None:
        self._tell("image_failed", run=run, record=record, reason=reason)

    def batch_done(self, run: RunInfo, count: int) -> None:
        self._tell("batch_done", run=run, count=count)

    def shard_committed(self, run: RunInfo, number: int) -> None:
        self._tell("shard_committed", run=run, number=number)

    def run_finished(self, run: RunInfo, report: Report | None, error: BaseException | None) -> None:
        faults: list[LayertapError] = []
        for observer, manager in self._observers:
            try:
                with guard(observer):
                    manager.hook.run_finished(run=run, report=report, error=error)
            except LayertapError as raised:
                faults.append(raised)
        for fault in faults:
            if error is None:
                raise fault
            error.add_note(f"layertap: afterwards {fault}")

    def _tell(self, event: str, **facts: Any) -> None:
        for observer, manager in self._observers:
            with guard(observer):
                getattr(manager.hook, event)(**facts)


def _managed(observer: Plugin) -> _Manager:
    manager = _Manager(PROJECT)
    manager.add_hookspecs(RunEvents)
    with guard(observer):
        manager.register(observer)
        manager.check_pending()
    return manager


def _is_event(plugin: object, name: str) -> bool:
    """Whether an attribute is a method with an event's name: an observer may well count in `self.batch_done`."""
    found = inspect.getattr_static(type(plugin), name, None)
    return name in _EVENTS and isinstance(found, (FunctionType, staticmethod, classmethod))
