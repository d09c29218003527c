"""YAML, mappings and overrides -> a validated RunConfig; every fault says where it is."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import ConfigDict, Field

from layertap.config.document import Document
from layertap.config.values import (
    DEVICE,
    Device,
    Formats,
    Mebibytes,
    ModelSpec,
    NamedProfile,
    PathSpec,
    Positive,
    Seconds,
    Share,
    Specs,
    TapsWithHome,
    Threads,
    with_home,
)
from layertap.contracts import Plugin
from layertap.errors import ConfigError, Fault, LayertapError, Where, combined, did_you_mean, faults_of, within
from layertap.images.decoding.bounds import MEMORY
from layertap.images.decoding.formats import STANDARD
from layertap.images.limits import MAX_IMAGE_PIXELS
from layertap.plugins import Plugins, Registered, guard
from layertap.records import PROFILES, Profile
from layertap.store.paths import refusal, variables
from layertap.taps.grammar import Spec, Tap

MODEL_PREPROCESSOR = "model"
"""The type in `preprocess:` that means the preprocessor that came with the model."""

# The keys of the configuration that name one plugin, and its kind.
PARTS: Mapping[str, str] = {
    "model": "model",
    "source": "source",
    "preprocess": "preprocessor",
    "sink": "sink",
    "engine": "engine",
}

# Examples of the keys that a first configuration often lacks.
_EXAMPLES = {"source": "source: {type: folder, path: images/}", "sink": "sink: {type: npy, path: features/}"}

# pydantic's error types for a value that YAML read as another type, and the cure.
_CURES = {"bool_type": "; write true or false", "bool_parsing": "; write true or false"}

# A value that passes instead of a broken one, so that the rest can be checked.
_PASSING = "-"


class RunConfig(pydantic.BaseModel):
    """What to extract, from what, into what. Plugins are named by `type`; each validates its own parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    model: ModelSpec = Field(
        default=Spec(type="torchvision", params={"name": "alexnet", "weights": "DEFAULT"}),
        description="the model provider and its parameters, or TYPE/NAME",
    )
    taps: TapsWithHome = Field(default=(Tap(layer="classifier.5"),), description="the layers to listen to")
    source: PathSpec = Field(description="where the images come from")
    preprocess: PathSpec = Field(default=Spec(type=MODEL_PREPROCESSOR), description="how an image becomes model input")
    sink: PathSpec = Field(description="where the features go")
    device: Device = Field(
        "auto", description="auto, cpu, cuda, cuda:N or mps", json_schema_extra={"pattern": f"^({DEVICE.pattern})$"}
    )
    batch_size: Positive | Literal["auto"] = Field(
        64, description="images in one forward; auto: the largest power of two that fits, at most 1024 (256 on a CPU)"
    )
    workers: Threads | None = Field(None, description="decoding threads; one per core by default")
    limit: Positive | None = Field(None, description="only the first N records")
    shard_rows: Positive | None = Field(None, description="rows in one commit, a multiple of batch_size")
    mode: Literal["resume", "new"] = Field(
        "resume", description="resume an output of the same configuration, or replace what layertap wrote there"
    )
    on_error: Literal["skip", "fail"] = Field(
        "skip", description="what to do with a bad image: list it, or stop the run"
    )
    max_failures: Annotated[int, Field(strict=True, ge=0)] | Share = Field(
        0.05, description="stop after this many failures, or this share of the images (never before 100 failures)"
    )
    nonfinite: Literal["keep", "fail"] = Field(
        "keep", description="what to do with NaN or infinite activations: count them, or stop the run"
    )
    formats: Formats = Field((), description=f"image formats to open besides {', '.join(STANDARD)}")
    image_timeout: Seconds = Field(10.0, description="seconds in which an image must be decoded and prepared")
    image_memory: Mebibytes = Field(
        MEMORY // 2**20, description="MiB that decoding and preparing one image may take, its encoded bytes included"
    )
    max_pixels: Positive = Field(MAX_IMAGE_PIXELS, description="pixels that an image may have")
    isolation: Literal["thread", "process"] = Field(
        "thread",
        description="where images are decoded and prepared: in threads, or in processes that a hostile one may kill",
    )
    early_stop: Annotated[bool, Field(strict=True)] = Field(True, description="stop a forward after the last tap")
    profile: NamedProfile = Field(
        PROFILES["exact"],
        description="exact, fast, or a mapping of switches: what may change values a little",
    )
    autocast: Literal["bfloat16", "float16"] | None = Field(
        None, description="the dtype in which the model computes where that is safe; null: that of its weights"
    )
    nondeterministic: Literal["refuse", "seed"] = Field(
        "refuse",
        description="what to do with a model that gives different values for the same images: refuse it, or seed each "
        "batch with its number",
    )
    threads: Threads | None = Field(
        None, description="torch's threads per process; by default its own choice, or what the engine gives a worker"
    )
    engine: PathSpec | None = Field(
        None, description="what computes the shards in other processes, here or on other machines; null: this process"
    )
    processors: Literal["same", "any"] = Field(
        "same",
        description="whether all shards must come from one kind of processor; other kinds differ in last bits",
    )
    observers: Specs = Field((Spec(type="progress"),), description="the observers of the run")

    _document: Document = pydantic.PrivateAttr(default_factory=lambda: Document("config", {}))

    @pydantic.field_validator("shard_rows")
    @classmethod
    def _whole_batches(cls, shard_rows: int | None, info: pydantic.ValidationInfo) -> int | None:
        # An invalid batch size is missing from `data`.
        batch_size = info.data.get("batch_size")
        if isinstance(batch_size, int) and shard_rows is not None and shard_rows % batch_size:
            raise ValueError(f"{shard_rows} is not a multiple of batch_size ({batch_size})")
        return shard_rows

    def __eq__(self, other: object) -> bool:
        # Two equal configurations may come from different places.
        return self.plain() == other.plain() if isinstance(other, RunConfig) else NotImplemented

    @classmethod
    def of(cls, document: Document, plugins: Plugins, of: Collection[str]) -> RunConfig:
        """The configuration in a document, with the plugins under the keys `of` checked.

        Raises `ConfigError` that carries every fault known at this point, in the order of the file.
        """
        document.data = document.plain(document.data, (), data_of)
        faults: list[LayertapError] = []
        broken: Collection[Where] = ()
        try:
            result = cls.model_validate(document.data)
        except pydantic.ValidationError as error:
            for found in faults_of(error, document.data):
                faults.append(document.fault(found.where, _advised(found, _fields_at(found.where))))
            result, broken = cls._sound(document.data, [fault.where for fault in faults])
        result._document = document
        for fault in result._faults_of_plugins(plugins, of):
            if not any(fault.where[: len(where)] == where for where in broken):
                faults.append(fault)
        if faults:
            raise combined(sorted(faults, key=lambda fault: document.position(fault.where)))
        return result

    @classmethod
    def _sound(cls, data: Mapping[str, Any], broken: Iterable[Where]) -> tuple[RunConfig, Collection[Where]]:
        """The configuration with a passing value in every broken place, and those places."""
        places: set[Where] = set()
        data = dict(data)
        while True:
            for where in dict.fromkeys(_replaceable(where, data, places) for where in broken):
                key: Any = where[0]
                if len(where) > 1:
                    data[key] = data[key].copy()
                    data[key][where[1]] = _PASSING
                else:
                    data.pop(key, None)
                    data |= {key: _PASSING} if key in _EXAMPLES else {}
                places.add(where)
            try:
                return cls.model_validate(data), places
            except pydantic.ValidationError as error:
                # A default instead of a broken value can conflict with another value.
                broken = [fault.where for fault in faults_of(error, data)]

    def document(self) -> Document:
        """A document of the same content, to apply overrides to; changing it does not change this configuration."""
        known = self._document
        return Document(known.name, self.plain(), dict(known.places), dict(known.overridden))

    def plain(self) -> dict[str, Any]:
        """The configuration as plain data, from which `load_config` makes the same configuration."""
        data = {key: getattr(self, key) for key in type(self).model_fields}
        return {key: self._document.plain(value, (key,), data_of) for key, value in data.items()}

    def build(self, key: str, plugins: Plugins) -> Plugin:
        """The plugin that `key` names (`source`, `sink`, `model` ...), with its parameters validated."""
        return build_part(PARTS[key], getattr(self, key), plugins, self._document, (key,))

    def build_observers(self, plugins: Plugins) -> list[Plugin]:
        """The observers in the order written."""
        found = enumerate(self.observers)
        return [build_part("observer", s, plugins, self._document, ("observers", i)) for i, s in found]

    @contextmanager
    def at(self, *where: str | int) -> Iterator[None]:
        """Locate the errors that the block raises inside `where` of the configuration."""
        with self._document.located(), within(*where):
            yield

    def _faults_of_plugins(self, plugins: Plugins, of: Collection[str]) -> Iterator[LayertapError]:
        """Every type and parameter under the keys `of` that no installed plugin knows."""
        document = self._document
        for where, kind, spec in self._specs():
            if where[0] not in of:
                continue
            if where == ("preprocess",) and spec.type == MODEL_PREPROCESSOR:
                for key in spec.params:
                    yield document.fault((*where, key), "unknown key: `type: model` has no parameters")
                continue
            try:
                _params(_registered(kind, spec, plugins, document, where), spec, document, where)
            except LayertapError as error:
                yield from error.faults

    def _specs(self) -> Iterable[tuple[Where, str, Spec]]:
        for key, kind in PARTS.items():
            if getattr(self, key) is not None:
                yield (key,), kind, getattr(self, key)
        for number, tap in enumerate(self.taps):
            for place, spec in enumerate(tap.reduce):
                yield ("taps", number, "reduce", place), "reducer", spec
        for index, spec in enumerate(self.observers):
            yield ("observers", index), "observer", spec


def build_part(kind: str, spec: Spec, plugins: Plugins, document: Document, where: Where) -> Plugin:
    """A plugin built from its type name and validated parameters; its faults are located in `document`."""
    spec = with_home(spec)
    registered = _registered(kind, spec, plugins, document, where)
    params = _params(registered, spec, document, where)
    with document.located(), within(*where), guard(registered.cls):
        return registered.cls(params)


def _registered(kind: str, spec: Spec, plugins: Plugins, document: Document, where: Where) -> Registered:
    try:
        return plugins.find(kind, spec.type)
    except ConfigError as error:
        hint = ""
        if kind == "source" and ("/" in spec.type or Path(spec.type).exists()):
            hint = f" (for a folder of images: {{type: folder, path: {spec.type}}})"
        if kind == "preprocessor":
            hint = f" (or `{MODEL_PREPROCESSOR}`, the one that came with the model)"
        if kind == "model" and plugins.tables[kind]:
            hint = f" (TYPE/NAME, as in {next(iter(plugins.tables[kind]))}/{spec.type.rpartition('/')[2]})"
        raise document.fault((*where, "type"), f"{error.message}{hint}") from error


def _params(registered: Registered, spec: Spec, document: Document, where: Where) -> pydantic.BaseModel:
    model = registered.cls.Params
    _refuse_variables(spec, document, where)
    # As JSON, so that strict types still let a list be a tuple and a string a path.
    text = json.dumps(document.plain(spec.params, where, data_of))
    with document.located(), within(*where), guard(registered.cls):
        try:
            return model.model_validate_json(text, strict=True)
        except pydantic.ValidationError as error:
            faults = []
            for fault in faults_of(error, spec.params):
                what = _advised(fault, model.model_fields if len(fault.where) == 1 else ())
                if fault.kind == "extra_forbidden" and not model.model_fields:
                    what = f"unknown key: the {registered.kind} {spec.type} has no parameters"
                if fault.kind == "extra_forbidden" and (*where, "type") in document.overridden:
                    what += f" ({where[0]}={spec.type} replaces all of it)"
                faults.append(ConfigError(what, where=fault.where))
            raise combined(faults) from error


def _refuse_variables(spec: Spec, document: Document, where: Where) -> None:
    """Raise `ConfigError` for environment variables in paths, with the way out: only a shell replaces them."""
    faults = []
    for at, variable in variables(spec.params):
        cure = "write the path out"
        if where[0] in PARTS and len(where) == len(at) == 1:
            cure += f', or let the shell expand it: {where[0]}.{at[0]}="{spec.params[str(at[0])]}"'
        faults.append(document.fault((*where, *at), f"{refusal(variable)}; {cure}"))
    if faults:
        raise combined(faults)


def data_of(value: Any) -> Any:
    """layertap's own objects as the data that a user would write for them."""
    if isinstance(value, Spec):
        return {"type": value.type, **value.params}
    if isinstance(value, Profile):
        return next((name for name, profile in PROFILES.items() if profile == value), value.model_dump())
    return _written_tap(value) if isinstance(value, Tap) else value


def _written_tap(tap: Tap) -> str | dict[str, Any]:
    if tap == _reread(tap):
        return str(tap)
    long = tap.model_dump(mode="json", exclude_defaults=True)
    return {**long, "reduce": [data_of(spec) for spec in tap.reduce]} if tap.reduce else long


def _reread(tap: Tap) -> Tap | None:
    try:
        return Tap.model_validate(str(tap))
    except pydantic.ValidationError:
        return None


def _advised(fault: Fault, fields: Iterable[str]) -> str:
    """What a fault is, and its cure; `fields` are the known keys next to an unknown one."""
    if fault.kind == "extra_forbidden":
        known = f" (known: {', '.join(fields)})" if fields else ""
        return fault.what + (did_you_mean(str(fault.where[-1]), fields) or known)
    if fault.kind == "missing" and len(fault.where) == 1 and fault.where[0] in _EXAMPLES:
        return f"{fault.what}, as in `{_EXAMPLES[str(fault.where[0])]}`"
    if fault.kind == "string_type" and isinstance(fault.value, (int, float)):
        return f"{fault.what}; quote it if it is text"
    return fault.what + _CURES.get(fault.kind, "")


def _replaceable(where: Where, data: Mapping[str, Any], replaced: Collection[Where]) -> Where:
    """What is replaced if `where` is broken: one tap, one observer, or the whole value of a key."""
    item = where[:2]
    one = where[0] in ("taps", "observers") and len(item) == 2 and isinstance(data.get(str(where[0])), (list, dict))
    return item if one and item not in replaced else where[:1]


def _fields_at(where: Where) -> Iterable[str]:
    """The static keys that are known where `where` ends."""
    if len(where) == 1:
        return RunConfig.model_fields
    return {"taps": Tap.model_fields, "profile": Profile.model_fields}.get(str(where[0]), {})
