r"""Tap strings and mappings -> `Tap`; nothing here knows a model.

    tap := ['<'] layer [':' call] ('[' key ']')*

`layer` is an exact path, `.` (the model itself), a glob (`*` within one part of the path, `**` for any number of
parts), or `re:` and a regular expression that matches the whole path and takes the rest of the string.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeAlias

import pydantic
from pydantic import BeforeValidator, ConfigDict, Field, NonNegativeInt, StrictStr

from layertap.errors import TapError, first_fault

REGEX = "re:"
ROOT = "."

Call: TypeAlias = NonNegativeInt | Literal["last", "all"]
TapsLike: TypeAlias = (
    "str | Tap | Iterable[str | Tap | Mapping[str, Any]] | Mapping[str, str | Tap | Mapping[str, Any]]"
)


class Spec(pydantic.BaseModel):
    """A plugin by its type name, and its parameters. Written `type` or `{type: ..., parameter: value}`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    type: str = Field(min_length=1)
    params: dict[str, Any] = {}

    @pydantic.model_validator(mode="before")
    @classmethod
    def _folded(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"type": value}
        if isinstance(value, Mapping) and not (set(value) == {"type", "params"} and isinstance(value["params"], dict)):
            if "type" not in value:
                raise ValueError("has no `type`: write `{type: NAME, ...}`")
            return {"type": value["type"], "params": {key: value[key] for key in value if key != "type"}}
        return value


class Tap(pydantic.BaseModel):
    """A listening point on a layer: which side, which call, which part, how reduced and stored, under which name.

    `Tap.model_validate("features.*")` reads the string form, which `str(tap)` gives back; keyword arguments are the
    long form, in which `layer` is taken whole (`:`, `[` and `<` mean nothing in it).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: StrictStr = Field(min_length=1, description="an exact module path, `.`, a glob, or `re:` and a pattern")
    side: Literal["output", "input"] = Field("output", description="listen to what the layer returns or receives")
    call: Call | None = Field(None, description="which call of a layer that runs several times, `last`, or `all`")
    select: tuple[NonNegativeInt | StrictStr, ...] = Field((), description="the way to one tensor in a structure")
    name: StrictStr | None = Field(None, min_length=1, description="the values' name; the tap's string by default")
    reduce: tuple[Spec, ...] = Field((), description="reducers, applied in order on the device")
    dtype: Literal["float16", "bfloat16", "float32", "float64"] | None = Field(None, description="how it is stored")

    @pydantic.model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        if isinstance(value, str):
            return _parsed(value)
        if isinstance(value, (bool, int, float)):
            raise ValueError(f"a tap is a string, and this was read as the number {value!r}: quote it, '{value}'")
        if isinstance(value, Mapping):
            return {
                key: [part] if key in ("reduce", "select") and _single(part) else part for key, part in value.items()
            }
        if isinstance(value, Tap):
            return value
        raise ValueError(f"a tap is a string or a mapping with `layer`, not {value!r}")

    @pydantic.model_validator(mode="after")
    def _checked(self) -> Tap:
        matcher(self.layer)
        return self

    @property
    def is_pattern(self) -> bool:
        """Whether the layer may be many: a glob or a regular expression."""
        return self.layer.startswith(REGEX) or "*" in self.layer

    @property
    def label(self) -> str:
        """The name of the values: `name`, or the tap's string."""
        return self.name if self.name is not None else str(self)

    def __str__(self) -> str:
        call = "" if self.call is None else f":{self.call}"
        return ("<" if self.side == "input" else "") + self.layer + call + "".join(f"[{key}]" for key in self.select)


def matcher(layer: str) -> re.Pattern[str]:
    """The regular expression that a layer's whole path must match. Raises ValueError for a pattern that is none."""
    if layer.startswith(REGEX):
        try:
            return re.compile(layer.removeprefix(REGEX))
        except re.error as error:
            raise ValueError(f"{layer!r} is no regular expression: {error}") from error
    if "*" not in layer:
        return re.compile(re.escape(layer))
    pattern = ""
    for part in layer.split("."):
        if part == "**":
            pattern += r"(?:\.[^.]+)*"
        elif "**" in part:
            raise ValueError(f"{layer!r}: `**` stands alone between dots")
        else:
            pattern += r"\." + r"[^.]*".join(map(re.escape, part.split("*")))
    # Every part brings its own dot, so that `**` may be no part at all; the lookahead puts one before the first.
    return re.compile(pattern)


def matches(pattern: re.Pattern[str], layer: str, path: str) -> bool:
    """Whether the compiled `pattern` of `layer` matches a module's whole `path`."""
    is_glob = "*" in layer and not layer.startswith(REGEX)
    return pattern.fullmatch(f".{path}" if is_glob else path) is not None


def parse_taps(taps: TapsLike) -> tuple[Tap, ...]:
    """The taps of a string, a `Tap`, a list of either or of long forms, or a mapping of name to tap.

    Raises `TapError` for anything that the grammar does not know.
    """
    try:
        return _TAPS.validate_python(taps)
    except pydantic.ValidationError as error:
        where, what = first_fault(error)
        raise TapError(f"taps{''.join(f'[{key!r}]' for key in where)}: {what}") from error


def _listed(value: Any) -> Any:
    if isinstance(value, (str, int, float, Tap)):
        return [value]
    if isinstance(value, Mapping) and value:
        if "layer" in value and set(value) <= set(Tap.model_fields):
            raise ValueError("the long form of a tap stands in a list: `taps: [{layer: ..., ...}]`")
        return [_named(str(name), tap) for name, tap in value.items()]
    if isinstance(value, Iterable) and not isinstance(value, (bytes, bytearray)):
        listed = list(value)
        if not listed:
            raise ValueError("names no tap; give at least one layer")
        return listed
    raise ValueError(f"is a tap, a list of taps, or a mapping of name to tap, not {value!r}")


def _named(name: str, tap: Any) -> Any:
    if isinstance(tap, Mapping):
        return {**tap, "name": name}
    return Tap.model_validate(tap).model_copy(update={"name": name})


def _single(part: Any) -> bool:
    return isinstance(part, (str, int, Mapping))


Taps: TypeAlias = Annotated[tuple[Tap, ...], BeforeValidator(_listed)]
_TAPS: pydantic.TypeAdapter[tuple[Tap, ...]] = pydantic.TypeAdapter(Taps)

_CALL = re.compile(r"\d+|last|all")
_LONG = "the long form takes any name: {layer: NAME, ...}"


def _parsed(text: str) -> dict[str, Any]:
    """The long form of a tap string; raises ValueError that says at which character it stops making sense."""
    at = 1 if text.startswith("<") else 0
    side = "input" if at else "output"
    if text.startswith(REGEX, at):
        return {"layer": text[at:], "side": side}
    end = min((i for i in (text.find(":", at), text.find("[", at)) if i >= 0), default=len(text))
    layer, call, select = text[at:end], None, []
    if not layer or layer != layer.strip() or "]" in layer:
        raise _fault(text, at, "expected a layer's path")
    if layer != ROOT and "" in layer.split("."):
        raise _fault(text, at, f"the path {layer!r} has an empty part")
    at = end
    if text.startswith("::", at):
        raise _fault(text, at, "`::` is reserved")
    if text.startswith(":", at):
        found = _CALL.match(text, at + 1)
        if found is None:
            raise _fault(text, at + 1, "expected a call number, `last` or `all` after `:`")
        call = int(found[0]) if found[0].isdigit() else found[0]
        at = found.end()
    while text.startswith("[", at):
        end = text.find("]", at)
        key = text[at + 1 : end] if end >= 0 else ""
        if not key or "[" in key:
            raise _fault(text, at, "expected `[key]`; in YAML, quote a tap that holds `[`, `]` or `*`")
        select.append(int(key) if key.isascii() and key.isdigit() else key)
        at = end + 1
    if at < len(text):
        raise _fault(text, at, "expected the end, `:call` or `[key]`")
    return {"layer": layer, "side": side, "call": call, "select": select}


def _fault(text: str, at: int, what: str) -> ValueError:
    return ValueError(f"the tap {text!r}, at character {at + 1}: {what} ({_LONG})")
