"""How a plugin registers its types.

A plugin is a module with `@layertap.hookimpl` functions, announced by one entry point in the group `layertap`, named
`kind-type` (`sink-parquet`): it is imported when that type is first used. The events that a run reports are specified
by the methods of `layertap.Observer`. Implementations may take fewer arguments than the specification lists.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import pluggy

from layertap.contracts import (
    PROJECT,
    Engine,
    ModelProvider,
    Observer,
    Params,
    Plugin,
    Preprocessor,
    Reducer,
    Sink,
    Source,
    hookspec,
)

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

    @hookspec
    def register_engines(self, register: Callable[[str, type[Engine]], None]) -> None:
        """When the plugin is loaded: register the engines, the `type` of `engine:`."""


KINDS: Mapping[str, type[Plugin]] = {
    "model": ModelProvider,
    "source": Source,
    "preprocessor": Preprocessor,
    "reducer": Reducer,
    "sink": Sink,
    "observer": Observer,
    "engine": Engine,
}
"""The base class of each kind of plugin."""

# Words of the pipeline and of a configuration that no plugin can take.
_TAKEN_TYPES = {("preprocessor", "model")}
_TAKEN_PARAMS = {"type", "params"}
_TYPE_NAME = re.compile(r"[\w.-]+")


def check_type(kind: str, type_name: str, cls: type[Plugin]) -> None:
    """Raise `TypeError` for a registration that could only go wrong later, in the middle of somebody's run."""
    base = KINDS[kind]
    if not (isinstance(type_name, str) and _TYPE_NAME.fullmatch(type_name)) or (kind, type_name) in _TAKEN_TYPES:
        raise TypeError(f"{type_name!r} cannot be the name of a {kind}: letters, digits, `_`, `-` and `.`, not a word")
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise TypeError(f"{kind} {type_name!r} is not a subclass of layertap.{base.__name__}")
    if not (isinstance(cls.Params, type) and issubclass(cls.Params, Params)):
        raise TypeError(f"{kind} {type_name!r}: its Params is not a subclass of layertap.Params")
    if not isinstance(cls.extra, str | None):
        raise TypeError(f"{kind} {type_name!r}: its extra is a name, not {cls.extra!r}")
    for taken in _TAKEN_PARAMS & cls.Params.model_fields.keys():
        raise TypeError(f"{kind} {type_name!r}: no parameter can be named {taken!r}")
