"""Run events -> the observers that the configuration names, through pluggy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

from layertap.contracts import Observer, Plugin
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
        return super().parse_hookimpl_opts(plugin, name) or (_OPTIONS if name in _EVENTS else None)


class Events:
    """Tells one run's observers what happens; an observer that raises ends the run with a `PluginError`."""

    def __init__(self, observers: Iterable[Plugin]) -> None:
        self._manager = _Manager(PROJECT)
        self._manager.add_hookspecs(RunEvents)
        # pluggy calls the last registered first; observers are told in the order in which they are written.
        for observer in reversed(list(observers)):
            with guard(observer):
                self._manager.register(observer)
                self._manager.check_pending()

    def run_started(self, run: RunInfo) -> None:
        with guard(Observer):
            self._manager.hook.run_started(run=run)

    def image_failed(self, run: RunInfo, record: ImageRecord, reason: str) -> None:
        with guard(Observer):
            self._manager.hook.image_failed(run=run, record=record, reason=reason)

    def batch_done(self, run: RunInfo, count: int) -> None:
        with guard(Observer):
            self._manager.hook.batch_done(run=run, count=count)

    def shard_committed(self, run: RunInfo, number: int) -> None:
        with guard(Observer):
            self._manager.hook.shard_committed(run=run, number=number)

    def run_finished(self, run: RunInfo, report: Report | None, error: BaseException | None) -> None:
        with guard(Observer):
            self._manager.hook.run_finished(run=run, report=report, error=error)
