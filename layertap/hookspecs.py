"""The doors of layertap, and the manual of its plugins.

A plugin is a module with `@layertap.hookimpl` functions, announced by one entry point in the group `layertap`, named
`kind-type` (`sink-parquet`). Implementations may take fewer arguments than the specification lists.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Callable

    from layertap.contracts import ModelProvider, Observer, Preprocessor, Reducer, Sink, Source
    from layertap.records import ImageRecord, Report, RunInfo


PROJECT = "layertap"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Registration:
    """Called once, when the plugins are loaded: `register(type_name, cls)` adds a type to the kind's table."""

    @hookspec
    def register_models(self, register: Callable[[str, type[ModelProvider]], None]) -> None:
        """When the plugins are loaded: register the model providers, the `type` of `model:`."""

    @hookspec
    def register_sources(self, register: Callable[[str, type[Source]], None]) -> None:
        """When the plugins are loaded: register the sources, the `type` of `source:`."""

    @hookspec
    def register_preprocessors(self, register: Callable[[str, type[Preprocessor]], None]) -> None:
        """When the plugins are loaded: register the preprocessors, the `type` of `preprocess:`."""

    @hookspec
    def register_reducers(self, register: Callable[[str, type[Reducer]], None]) -> None:
        """When the plugins are loaded: register the reducers, the entries of a tap's `reduce:`."""

    @hookspec
    def register_sinks(self, register: Callable[[str, type[Sink]], None]) -> None:
        """When the plugins are loaded: register the sinks, the `type` of `sink:`."""

    @hookspec
    def register_observers(self, register: Callable[[str, type[Observer]], None]) -> None:
        """When the plugins are loaded: register the observers, the entries of `observers:`."""


class RunEvents:
    """Told to the observers that the configuration names, from one thread, in the order of the plan."""

    @hookspec
    def run_started(self, run: RunInfo) -> None:
        """When the probe has passed and the output is open, before the first image is extracted."""

    @hookspec
    def image_failed(self, run: RunInfo, record: ImageRecord, reason: str) -> None:
        """When an image gives no row; `reason` is a fixed code such as `truncated`."""

    @hookspec
    def batch_done(self, run: RunInfo, count: int) -> None:
        """When a batch has been through the model; `count` planned images are done with, kept or failed."""

    @hookspec
    def shard_committed(self, run: RunInfo, number: int) -> None:
        """When shard `number` is durable."""

    @hookspec
    def run_finished(self, run: RunInfo, report: Report | None, error: BaseException | None) -> None:
        """When the run is over: with its report, or with the error that ended it."""
