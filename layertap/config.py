"""YAML, mappings and overrides -> a validated RunConfig; every fault says where it stands."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

import pydantic
from pydantic import BeforeValidator, ConfigDict, Field

from layertap.contracts import Plugin
from layertap.document import Document, Where, parse_value, read_document
from layertap.errors import ConfigError, TapError, WeightsError, did_you_mean, first_fault
from layertap.grammar import Spec, Tap, Taps
from layertap.plugins import Plugins, Registered, guard

ConfigLike: TypeAlias = "str | os.PathLike[str] | Mapping[str, Any] | RunConfig"

COMMAND_LINE = "command line"
MODEL_PREPROCESSOR = "model"
"""The word of `preprocess:` that stands for the preprocessor which came with the model."""

# The keys of the configuration that name one plugin, and its kind.
PARTS: Mapping[str, str] = {"model": "model", "source": "source", "preprocess": "preprocessor", "sink": "sink"}

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


def model_short(value: Any) -> Any:
    """`torchvision/alexnet` is `{type: torchvision, name: alexnet}`."""
    if isinstance(value, str) and "/" in value:
        kind, _, name = value.partition("/")
        return {"type": kind, "name": name}
    return value


def _spec_list(value: Any) -> Any:
    return [value] if isinstance(value, (str, Mapping)) else value


def _device(value: Any) -> Any:
    if isinstance(value, str) and not _DEVICE.fullmatch(value):
        raise ValueError(f"is auto, cpu, cuda, cuda:N or mps, not {value!r}")
    return value


Positive: TypeAlias = Annotated[int, Field(strict=True, ge=1)]
ModelSpec: TypeAlias = Annotated[Spec, BeforeValidator(model_short)]
Specs: TypeAlias = Annotated[tuple[Spec, ...], BeforeValidator(_spec_list)]
Share: TypeAlias = Annotated[float, Field(strict=True, ge=0, le=1)]


class RunConfig(pydantic.BaseModel):
    """What to extract, from what, into what. Plugins are named by `type`; each validates its own parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    model: ModelSpec = Field(
        default=Spec(type="torchvision", params={"name": "alexnet", "weights": "DEFAULT"}),
        description="the model provider and its parameters, or TYPE/NAME",
    )
    taps: Taps = Field(default=(Tap(layer="classifier.5"),), description="the layers to listen to")
    source: Spec = Field(description="where the images come from")
    preprocess: Spec = Field(default=Spec(type=MODEL_PREPROCESSOR), description="how an image becomes model input")
    sink: Spec = Field(description="where the features go")
    device: Annotated[str, BeforeValidator(_device)] = Field("auto", description="auto, cpu, cuda, cuda:N or mps")
    batch_size: Positive = Field(64, description="images in one forward")
    workers: Positive | None = Field(None, description="decoding threads; one a core by default")
    limit: Positive | None = Field(None, description="only the first N records")
    shard_rows: Positive | None = Field(None, description="rows in one commit, a multiple of batch_size")
    on_error: Literal["skip", "fail"] = Field("skip", description="what a bad image does: be listed, or stop the run")
    max_failures: Annotated[int, Field(strict=True, ge=0)] | Share = Field(
        0.05, description="stop after this many failures, or this share of the images (never before 100 failures)"
    )
    early_stop: Annotated[bool, Field(strict=True)] = Field(True, description="stop a forward after the last tap")
    observers: Specs = Field((Spec(type="progress"),), description="who watches the run")

    _document: Document = pydantic.PrivateAttr(default_factory=lambda: Document("config", {}))

    @pydantic.model_validator(mode="after")
    def _whole_batches(self) -> RunConfig:
        if self.shard_rows is not None and self.shard_rows % self.batch_size:
            raise ValueError(f"shard_rows: {self.shard_rows} is no multiple of batch_size ({self.batch_size})")
        return self

    def plain(self) -> dict[str, Any]:
        """The configuration as it would be written: plain data that `load_config` reads back to the same."""
        data: dict[str, Any] = self.model_dump(mode="json", exclude={*PARTS, "taps", "observers"})
        data |= {key: _written(getattr(self, key)) for key in PARTS}
        data["taps"] = [_written_tap(tap) for tap in self.taps]
        data["observers"] = [_written(spec) for spec in self.observers]
        return {key: data[key] for key in type(self).model_fields}

    def build(self, key: str, plugins: Plugins) -> Plugin:
        """The plugin that `key` names (`source`, `sink`, `model`, `preprocess`), with its parameters validated."""
        return build_part(PARTS[key], getattr(self, key), plugins, self._document, (key,))

    def build_observers(self, plugins: Plugins) -> list[Plugin]:
        """The observers in the order written."""
        found = enumerate(self.observers)
        return [build_part("observer", s, plugins, self._document, ("observers", i)) for i, s in found]

    @contextmanager
    def at(self, *where: str | int) -> Iterator[None]:
        """Tell an error that a part raises about itself where in the configuration that part stands."""
        try:
            yield
        except (ConfigError, TapError, WeightsError) as error:
            raise type(error)(str(self._document.fault(where, str(error)))) from error

    def check(self, plugins: Plugins) -> None:
        """Raise `ConfigError` for the first type or parameter that no installed plugin knows."""
        for where, kind, spec in self._specs():
            _params(_registered(kind, spec, plugins, self._document, where), spec, self._document, where)

    def _specs(self) -> Iterable[tuple[Where, str, Spec]]:
        for key, kind in PARTS.items():
            spec: Spec = getattr(self, key)
            if (key, spec.type) == ("preprocess", MODEL_PREPROCESSOR):
                for parameter in spec.params:
                    raise self._document.fault((key, parameter), "unknown key: `type: model` has no parameters")
                continue
            yield (key,), kind, spec
        for index, tap in enumerate(self.taps):
            for place, spec in enumerate(tap.reduce):
                yield ("taps", index, "reduce", place), "reducer", spec
        for index, spec in enumerate(self.observers):
            yield ("observers", index), "observer", spec


def build_part(kind: str, spec: Spec, plugins: Plugins, document: Document, where: Where) -> Plugin:
    """A plugin built from its type name and validated parameters; faults are told at `where` in `document`."""
    registered = _registered(kind, spec, plugins, document, where)
    params = _params(registered, spec, document, where)
    with guard(registered.cls):
        return registered.cls(params)


def _registered(kind: str, spec: Spec, plugins: Plugins, document: Document, where: Where) -> Registered:
    try:
        return plugins.find(kind, spec.type)
    except ConfigError as error:
        hint = ""
        if kind == "source" and ("/" in spec.type or Path(spec.type).exists()):
            hint = f" (for a folder of images: {{type: folder, path: {spec.type}}})"
        raise document.fault((*where, "type"), f"{error}{hint}") from error


def _params(registered: Registered, spec: Spec, document: Document, where: Where) -> pydantic.BaseModel:
    model = registered.cls.Params
    try:
        # As JSON, so that strict types still let a list be a tuple and a string a path.
        return model.model_validate_json(json.dumps(spec.params, default=os.fspath), strict=True)
    except pydantic.ValidationError as error:
        place, what = first_fault(error)
        raise _located(document, (*where, *place), what, model.model_fields) from error
    except TypeError as error:
        raise document.fault(where, f"parameters are plain data: {error}") from error


def load_config(config: ConfigLike, overrides: Mapping[str, Any] | None, plugins: Plugins) -> RunConfig:
    """The configuration in a YAML file, a mapping or a RunConfig, with `overrides` laid over it and every part checked.

    Keys of `overrides` may be dotted (`source.path`); a mapping given whole replaces the old one.
    Raises `ConfigError`: `file:line:column: key: what`.
    """
    document = _document_of(config)
    for key, value in (overrides or {}).items():
        _override(document, key, value, plugins)
    try:
        result = RunConfig.model_validate(document.data)
    except pydantic.ValidationError as error:
        where, what = first_fault(error)
        raise _located(document, where, what, _fields_at(where)) from error
    result._document = document
    result.check(plugins)
    return result


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """`key=value` arguments as overrides; each value waits as text until the field it meets is known."""
    result: dict[str, Any] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not key:
            raise ConfigError(f"{COMMAND_LINE}: {argument!r} is no override: write key=value, as in batch_size=32")
        result[key] = Typed(value)
    return result


class Typed(str):
    """A value as typed on the command line: raw text for a field that is a string, YAML for any other."""


def _document_of(config: ConfigLike) -> Document:
    if isinstance(config, RunConfig):
        return Document(config._document.name, config.plain(), config._document.places, config._document.overridden)
    if isinstance(config, Mapping):
        return Document("config", {str(key): value for key, value in config.items()})
    return read_document(Path(config))


def _override(document: Document, key: str, value: Any, plugins: Plugins) -> None:
    where = tuple(key.split("."))
    label = COMMAND_LINE if isinstance(value, Typed) else "overrides"
    if where[0] not in RunConfig.model_fields:
        raise ConfigError(f"{label}: {key}: unknown key{did_you_mean(where[0], RunConfig.model_fields)}")
    target = document.data
    if len(where) > 1:
        if where[0] not in PARTS:
            raise ConfigError(f"{label}: {key}: {where[0]} has no keys inside; give it whole")
        target = document.data[where[0]] = _opened(where[0], document.data.get(where[0]))
        for depth, part in enumerate(where[1:-1], 2):
            inner = target.get(part, {})
            if not isinstance(inner, Mapping):
                raise ConfigError(f"{label}: {key}: {'.'.join(where[:depth])} is {inner!r} and has no keys inside")
            target[part] = target = dict(inner)
    if isinstance(value, Typed) and not _takes_text(where, document.data, plugins):
        value = parse_value(value, f"{COMMAND_LINE}: {key}")
    target[where[-1]] = str(value) if isinstance(value, Typed) else value
    document.overridden[where] = label


def _opened(key: str, value: Any) -> dict[str, Any]:
    """The mapping behind a part's short form or default, so that single keys can be laid over it."""
    if value is None:
        default = RunConfig.model_fields[key].default
        return _written(default) if isinstance(default, Spec) else {}
    value = model_short(value) if key == "model" else value
    if isinstance(value, str):
        return {"type": value}
    if isinstance(value, Spec):
        return _written(value)
    return dict(value) if isinstance(value, Mapping) else {"type": value}


def _takes_text(where: tuple[str, ...], data: Mapping[str, Any], plugins: Plugins) -> bool:
    """Whether the field at `where` is a string, so that `001` or `a: b` on the command line is meant as it stands."""
    if len(where) == 1:
        return _is_text(RunConfig.model_fields[where[0]].annotation)
    if len(where) > 2:
        return False
    if where[1] == "type":
        return True
    table = plugins.tables[PARTS[where[0]]]
    found = table.get(str(data[where[0]].get("type")))
    field = found.cls.Params.model_fields.get(where[1]) if found else None
    return field is not None and _is_text(field.annotation)


def _is_text(annotation: Any) -> bool:
    if annotation in (str, Path):
        return True
    arguments = [argument for argument in get_args(annotation) if argument is not type(None)]
    return bool(arguments) and all(isinstance(a, str) or a in (str, Path) for a in arguments) and _is_choice(annotation)


def _is_choice(annotation: Any) -> bool:
    return getattr(annotation, "__origin__", None) not in (list, tuple, set, dict)


def _written(spec: Spec) -> dict[str, Any]:
    return {"type": spec.type, **spec.params}


def _written_tap(tap: Tap) -> str | dict[str, Any]:
    if tap == _reread(tap):
        return str(tap)
    long = tap.model_dump(mode="json", exclude_defaults=True)
    return {**long, "reduce": [_written(spec) for spec in tap.reduce]} if tap.reduce else long


def _reread(tap: Tap) -> Tap | None:
    try:
        return Tap.model_validate(str(tap))
    except pydantic.ValidationError:
        return None


def _located(document: Document, where: Where, what: str, fields: Iterable[str]) -> ConfigError:
    if what == "unknown key":
        what += did_you_mean(str(where[-1]), fields) or f" (known: {', '.join(fields)})"
    if not where and what.startswith("shard_rows: "):
        where, what = ("shard_rows",), what.removeprefix("shard_rows: ")
    return document.fault(where, what)


def _fields_at(where: Where) -> Iterable[str]:
    return Tap.model_fields if where and where[0] == "taps" else RunConfig.model_fields
