"""YAML, mappings and overrides -> a validated RunConfig; every fault says where it stands."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import pydantic
from pydantic import BeforeValidator, ConfigDict, Field

from layertap.config.document import Document, Where, as_written
from layertap.contracts import PROFILES, Plugin, Profile
from layertap.errors import ConfigError, TapError, UnsafeError, WeightsError, did_you_mean, first_fault
from layertap.images.decoding.formats import STANDARD, Format
from layertap.plugins import Plugins, Registered, guard
from layertap.taps.grammar import Spec, Tap, Taps

MODEL_PREPROCESSOR = "model"
"""The word of `preprocess:` that stands for the preprocessor which came with the model."""

# The keys of the configuration that name one plugin, and its kind.
PARTS: Mapping[str, str] = {"model": "model", "source": "source", "preprocess": "preprocessor", "sink": "sink"}

# What a first configuration lacks, as it would be written.
_EXAMPLES = {"source": "source: {type: folder, path: images/}", "sink": "sink: {type: npy, path: features/}"}

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:[0-9]{1,3})?")
_NO_STRING = re.compile(r"should be a valid string, not [-+.\dTFN]")


def model_short(value: Any) -> Any:
    """`torchvision/alexnet` is `{type: torchvision, name: alexnet}`."""
    if isinstance(value, str) and "/" in value:
        kind, _, name = value.partition("/")
        return {"type": kind, "name": name}
    return value


def _spec_list(value: Any) -> Any:
    return [value] if isinstance(value, (str, Mapping)) else value


def _upper_list(value: Any) -> Any:
    value = [value] if isinstance(value, str) else value
    return [item.upper() if isinstance(item, str) else item for item in value] if isinstance(value, list) else value


def _device(value: Any) -> Any:
    if isinstance(value, str) and not _DEVICE.fullmatch(value):
        raise ValueError(f"is auto, cpu, cuda, cuda:N or mps, not {value!r}")
    return value


def _profile(value: Any) -> Any:
    """The profile of that name; anything else as it is."""
    if isinstance(value, str):
        if value not in PROFILES:
            raise ValueError(f"is {' or '.join(PROFILES)}, or a mapping of switches, not {value!r}")
        return PROFILES[value]
    return value


Positive: TypeAlias = Annotated[int, Field(strict=True, ge=1, le=10**18)]
Threads: TypeAlias = Annotated[int, Field(strict=True, ge=1, le=1_024)]
ModelSpec: TypeAlias = Annotated[Spec, BeforeValidator(model_short)]
Specs: TypeAlias = Annotated[tuple[Spec, ...], BeforeValidator(_spec_list)]
Formats: TypeAlias = Annotated[tuple[Format, ...], BeforeValidator(_upper_list)]
Seconds: TypeAlias = Annotated[float, Field(gt=0, le=86_400)]
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
    device: Annotated[str, BeforeValidator(_device)] = Field(
        "auto", description="auto, cpu, cuda, cuda:N or mps", json_schema_extra={"pattern": f"^({_DEVICE.pattern})$"}
    )
    batch_size: Positive | Literal["auto"] = Field(
        64, description="images in one forward; auto: the largest power of two that fits, at most 1024 (256 on a CPU)"
    )
    workers: Threads | None = Field(None, description="decoding threads; one a core by default")
    limit: Positive | None = Field(None, description="only the first N records")
    shard_rows: Positive | None = Field(None, description="rows in one commit, a multiple of batch_size")
    mode: Literal["resume", "new"] = Field(
        "resume", description="go on with an output of the same configuration, or replace what layertap wrote there"
    )
    on_error: Literal["skip", "fail"] = Field("skip", description="what a bad image does: be listed, or stop the run")
    max_failures: Annotated[int, Field(strict=True, ge=0)] | Share = Field(
        0.05, description="stop after this many failures, or this share of the images (never before 100 failures)"
    )
    nonfinite: Literal["keep", "fail"] = Field(
        "keep", description="what an activation that is NaN or infinite does: be counted, or stop the run"
    )
    formats: Formats = Field((), description=f"image formats to open besides {', '.join(STANDARD)}")
    image_timeout: Seconds = Field(10.0, description="seconds in which an image must be decoded and prepared")
    isolation: Literal["thread", "process"] = Field(
        "thread", description="where images are decoded: in threads, or in processes that a hostile one may kill"
    )
    early_stop: Annotated[bool, Field(strict=True)] = Field(True, description="stop a forward after the last tap")
    profile: Annotated[Profile, BeforeValidator(_profile)] = Field(
        PROFILES["exact"],
        description="exact, fast, or a mapping of switches: what may change values a little",
    )
    autocast: Literal["bfloat16", "float16"] | None = Field(
        None, description="the dtype in which the model computes where that is safe; null: that of its weights"
    )
    observers: Specs = Field((Spec(type="progress"),), description="who watches the run")

    _document: Document = pydantic.PrivateAttr(default_factory=lambda: Document("config", {}))

    @pydantic.model_validator(mode="after")
    def _whole_batches(self) -> RunConfig:
        if isinstance(self.batch_size, int) and self.shard_rows is not None and self.shard_rows % self.batch_size:
            raise ValueError(f"shard_rows: {self.shard_rows} is no multiple of batch_size ({self.batch_size})")
        return self

    def __eq__(self, other: object) -> bool:
        # Where it was read does not make it another configuration.
        return self.plain() == other.plain() if isinstance(other, RunConfig) else NotImplemented

    @classmethod
    def of(cls, document: Document) -> RunConfig:
        """The configuration in a document, whose places tell where its faults stand. Raises `ConfigError`."""
        document.data = document.plain(document.data, (), data_of)
        try:
            result = cls.model_validate(document.data)
        except pydantic.ValidationError as error:
            where, what = _first_fault(error, document.data)
            raise _located(document, where, what, _fields_at(where)) from error
        result._document = document
        return result

    def document(self) -> Document:
        """A document that holds the same, to lay overrides over: what is done to it leaves this one as it is."""
        known = self._document
        return Document(known.name, self.plain(), dict(known.places), dict(known.overridden))

    def plain(self) -> dict[str, Any]:
        """The configuration as it would be written: plain data that `load_config` reads back to the same."""
        data = {key: getattr(self, key) for key in type(self).model_fields}
        return {key: self._document.plain(value, (key,), data_of) for key, value in data.items()}

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
        except (ConfigError, TapError, WeightsError, UnsafeError) as error:
            key, _, said = str(error).partition(": ")
            if said and key.split(".")[0] == where[0]:
                where = tuple(key.split("."))  # the part has named its own key
            else:
                said = str(error)
                where = (*where, *self._inside(where, said))
            # In place: a plugin may have made a class of its own, whose constructor is not ours to call.
            error.args = (str(self._document.fault(where, said)),)
            raise

    def _inside(self, where: Where, said: str) -> Where:
        """Which key below `where` an error is about: the one that it names, or whose value it quotes."""
        if where == ("taps",):
            named = [index for index, tap in enumerate(self.taps) if repr(tap.layer) in said or repr(tap.label) in said]
            return tuple(named[:1])
        spec = getattr(self, str(where[0]))
        if len(where) > 1 or not isinstance(spec, Spec):
            return ()
        return tuple(key for key, value in spec.params.items() if value and repr(value) in said)[:1]

    def check(self, plugins: Plugins, of: Collection[str]) -> None:
        """Raise `ConfigError` for the first type or parameter under the keys `of` that no installed plugin knows."""
        for where, kind, spec in self._specs():
            if where[0] in of:
                _params(_registered(kind, spec, plugins, self._document, where), spec, self._document, where)

    def _specs(self) -> Iterable[tuple[Where, str, Spec]]:
        for key, kind in PARTS.items():
            spec: Spec = getattr(self, key)
            if (key, spec.type) == ("preprocess", MODEL_PREPROCESSOR):
                for parameter in spec.params:
                    raise self._document.fault((key, parameter), "unknown key: `type: model` has no parameters")
                continue
            yield (key,), kind, spec
        written = self._document.data
        names = written["taps"] if isinstance(written.get("taps"), Mapping) else range(len(self.taps))
        for name, tap in zip(names, self.taps, strict=False):
            for place, spec in enumerate(tap.reduce):
                yield as_written(("taps", name, "reduce", place), written), "reducer", spec
        for index, spec in enumerate(self.observers):
            yield as_written(("observers", index), written), "observer", spec


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
        if kind == "preprocessor":
            hint = f" (or `{MODEL_PREPROCESSOR}`, what came with the model)"
        if kind == "model" and plugins.tables[kind]:
            hint = f" (TYPE/NAME, as in {next(iter(plugins.tables[kind]))}/{spec.type.rpartition('/')[2]})"
        raise document.fault((*where, "type"), f"{error}{hint}") from error


def _params(registered: Registered, spec: Spec, document: Document, where: Where) -> pydantic.BaseModel:
    model = registered.cls.Params
    # As JSON, so that strict types still let a list be a tuple and a string a path.
    text = json.dumps(document.plain(spec.params, where, data_of))
    with guard(registered.cls):
        try:
            return model.model_validate_json(text, strict=True)
        except pydantic.ValidationError as error:
            place, what = _first_fault(error, spec.params)
            if what == "unknown key" and not model.model_fields:
                what = f"unknown key: the {registered.kind} {spec.type} has no parameters"
            if what.startswith("unknown key") and (*where, "type") in document.overridden:
                what += f" ({where[0]}={spec.type} replaces all of it)"
            fields = model.model_fields if len(place) == 1 else ()
            raise _located(document, (*where, *place), what, fields) from error


def data_of(value: Any) -> Any:
    """Objects of ours as the data that one would write for them."""
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


def _first_fault(error: pydantic.ValidationError, data: Mapping[str, Any]) -> tuple[Where, str]:
    """Where in `data` the fault lies that is to be told, and what it is."""
    where, what = first_fault(error)
    if where == ("taps",) and isinstance(data.get("taps"), Mapping):
        return _in_mapping(data["taps"], what)
    return as_written(where, data, missing=what == "is required"), what


def _in_mapping(taps: Mapping[str, Any], what: str) -> tuple[Where, str]:
    """A fault of `taps: {name: tap}`, which the grammar tells as `'name': key: what`, put where it stands."""
    for name, tap in taps.items():
        inner = what.removeprefix(f"{name!r}: ")
        if inner != what:
            key, _, rest = inner.partition(": ")
            known = isinstance(tap, Mapping) and key in tap
            return (("taps", name, key), rest) if known else (("taps", name), inner)
    return ("taps",), what


def _located(document: Document, where: Where, what: str, fields: Iterable[str]) -> ConfigError:
    if what == "unknown key":
        known = f" (known: {', '.join(fields)})" if fields else ""
        what += did_you_mean(str(where[-1]), fields) or known
    if what == "is required" and len(where) == 1:
        what += f", as in `{_EXAMPLES[str(where[0])]}`"
    if _NO_STRING.match(what):
        what += "; quote what is text"
    if what.startswith("should be a valid boolean"):
        what += "; write true or false"
    if not where and what.startswith("shard_rows: "):
        where, what = ("shard_rows",), what.removeprefix("shard_rows: ")
    return document.fault(where, what)


def _fields_at(where: Where) -> Iterable[str]:
    return Tap.model_fields if where and where[0] == "taps" else RunConfig.model_fields
