"""How a plugin registers its types.

A plugin is a module with `@layertap.hookimpl` functions, announced by one entry point in the group `layertap`, named
`kind-type` (`sink-parquet`): it is imported when that type is first used. The events that a run reports are specified
by the methods of `layertap.Observer`. Implementations may take fewer arguments than the specification lists.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

from layertap.contracts import PROJECT, hookspec

if TYPE_CHECKING:
    from collections.abc import Callable

    from layertap.contracts import ModelProvider, Observer, Preprocessor, Reducer, Sink, Source

hookimpl = pluggy.HookimplMarker(PROJECT)


class Registration:
    """Called once, when the plugin is loaded: `register(type_name, cls)` adds a type of that kind."""

    @hookspec
    def register_models(self, register: Callable[[str, type[ModelProvider]], None]) -> None:
        """When the plugin is loaded: register the model providers, the `type` of `model:`."""

    @hookspec
    def register_sources(self, register: Callable[[str, type[Source]], None]) -> None:
        """When the plugin is loaded: register the sources, the `type` of `source:`."""

    @hookspec
    def register_preprocessors(self, register: Callable[[str, type[Preprocessor]], None]) -> None:
        """When the plugin is loaded: register the preprocessors, the `type` of `preprocess:`."""

    @hookspec
    def register_reducers(self, register: Callable[[str, type[Reducer]], None]) -> None:
        """When the plugin is loaded: register the reducers, the entries of a tap's `reduce:`."""

    @hookspec
    def register_sinks(self, register: Callable[[str, type[Sink]], None]) -> None:
        """When the plugin is loaded: register the sinks, the `type` of `sink:`."""

    @hookspec
    def register_observers(self, register: Callable[[str, type[Observer]], None]) -> None:
        """When the plugin is loaded: register the observers, the entries of `observers:`."""
