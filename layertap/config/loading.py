"""A YAML file, a mapping or a RunConfig, with overrides applied -> a checked RunConfig."""

from __future__ import annotations

import os
import types
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

from layertap.config.document import Document, parse_value, read_document
from layertap.config.model import PARTS, RunConfig, data_of
from layertap.config.values import model_short
from layertap.errors import ConfigError, LayertapError, combined, did_you_mean
from layertap.plugins import Plugins
from layertap.store.paths import user_path
from layertap.taps.grammar import Spec

ConfigLike: TypeAlias = "str | os.PathLike[str] | Mapping[str, Any] | RunConfig"

COMMAND_LINE = "command line"


def load_config(
    config: ConfigLike,
    overrides: Mapping[str, Any] | None,
    plugins: Plugins,
    *,
    of: Collection[str] = tuple(RunConfig.model_fields),
) -> RunConfig:
    """The configuration in a YAML file, a mapping or a RunConfig, with `overrides` applied and every part checked.

    Keys of `overrides` may be dotted (`source.path`); a mapping given whole replaces the old one. `of`: the keys whose
    plugins matter; by default all of them. Raises `ConfigError` with every fault: `file:line:column: key: what`.
    """
    document = _document_of(config)
    faults: list[LayertapError] = []
    for key, value in (overrides or {}).items():
        try:
            _override(document, key, value, plugins)
        except ConfigError as error:
            faults.append(error)
    if faults:
        raise combined(faults)
    return RunConfig.of(document, plugins, of)


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """`key=value` arguments as overrides; each value is kept as text until its field is known."""
    result: dict[str, Any] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not key:
            raise ConfigError(f"{COMMAND_LINE}: {argument!r} is not an override: write key=value, as in batch_size=32")
        result[key] = Typed(value)
    return result


class Typed(str):
    """A value as typed on the command line: raw text for a field that is a string, YAML for any other."""


def _document_of(config: ConfigLike) -> Document:
    if isinstance(config, RunConfig):
        return config.document()
    if isinstance(config, Mapping):
        return Document("config", {str(key): value for key, value in config.items()})
    return read_document(user_path(config))


def _override(document: Document, key: str, value: Any, plugins: Plugins) -> None:
    where = tuple(key.split("."))
    label = COMMAND_LINE if isinstance(value, Typed) else "overrides"
    if where[0] not in RunConfig.model_fields:
        raise _fault(label, where, f"unknown key{did_you_mean(where[0], RunConfig.model_fields)}")
    target = document.data
    if len(where) > 1:
        if where[0] not in PARTS:
            raise _fault(label, where, f"{where[0]} has no keys inside; set it as a whole")
        if "" in where:
            raise _fault(label, where, "a key's name is missing before or after a dot")
        target = document.data[where[0]] = _opened(where[0], document.data.get(where[0]))
        for depth, part in enumerate(where[1:-1], 2):
            inner = target.get(part, {})
            if not isinstance(inner, Mapping):
                raise _fault(label, where, f"{'.'.join(where[:depth])} is {inner!r} and has no keys inside")
            target[part] = target = dict(inner)
    if isinstance(value, Typed) and not _takes_text(where, document.data, plugins):
        value = parse_value(value, f"{COMMAND_LINE}: {key}")
    target[where[-1]] = str(value) if isinstance(value, Typed) else value
    document.override(where, label)


def _fault(label: str, where: tuple[str, ...], what: str) -> ConfigError:
    error = ConfigError(what, where=where)
    error.place = label
    return error


def _opened(key: str, value: Any) -> dict[str, Any]:
    """The mapping that a part's short form or default means, so that single keys of it can be overridden."""
    if value is None:
        value = RunConfig.model_fields[key].default
        if not isinstance(value, Spec):
            return {}
    value = data_of(model_short(value) if key == "model" else value)
    return dict(value) if isinstance(value, Mapping) else {"type": value}


def _takes_text(where: tuple[str, ...], data: Mapping[str, Any], plugins: Plugins) -> bool:
    """Whether the field at `where` is a string, so that `001` or `a: b` on the command line is taken literally."""
    if len(where) == 1:
        return _is_text(RunConfig.model_fields[where[0]].annotation)
    if len(where) > 2:
        return False
    if where[1] == "type":
        return True
    found = plugins.get(PARTS[where[0]], str(data[where[0]].get("type")))
    field = found.cls.Params.model_fields.get(where[1]) if found else None
    return field is not None and _is_text(field.annotation)


def _is_text(annotation: Any) -> bool:
    """Whether everything that an annotation allows (except None) is text; `str | int` leaves the choice to YAML."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _is_text(arguments[0])
    if origin is Literal:
        return all(isinstance(argument, str) for argument in arguments)
    if origin in (Union, types.UnionType):
        return all(_is_text(argument) for argument in arguments if argument is not type(None))
    return isinstance(annotation, type) and issubclass(annotation, (str, os.PathLike))
