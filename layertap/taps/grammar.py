r"""Tap strings and mappings -> `Tap`; nothing here knows a model.

    tap := ['<'] layer [':' call] ['@' op [':' index]] ('[' key ']')*

`layer` is an exact path, `.` (the model itself), a glob (`*` within one part of the path, `**` for any number of
parts), or `re:` and a regular expression that matches the whole path and takes the rest of the string. `op` is a
function that the layer itself calls, by its name without underscores around it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

import pydantic
from pydantic import BeforeValidator, ConfigDict, Field, NonNegativeInt, StrictStr

from layertap.errors import TapError, Where, combined, faults_of
from layertap.records import FloatDtype
from layertap.taps.patterns import REGEX, check, is_pattern

ROOT = "."

# No leading zero, so that a string says the same after it was read; nine digits are more calls than any forward has.
_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")
_CALL = re.compile(rf"{_NUMBER.pattern}|last|all")
_OP = re.compile(r"[A-Za-z](?:\w*[A-Za-z0-9])?", re.ASCII)


def _call(value: Any) -> Any:
    if value is None or value in ("last", "all") or _is_index(value):
        return value
    raise ValueError(f"must be a call number (from 0), `last` or `all`, not {value!r}")


def _index(value: Any) -> Any:
    if value is None or _is_index(value):
        return value
    raise ValueError(f"must be a number (from 0), not {value!r}")


def _op(value: Any) -> Any:
    if isinstance(value, str) and not _OP.fullmatch(value):
        raise ValueError(f"must be the name of a function, without underscores around it, not {value!r}")
    return value


def _key(value: Any) -> Any:
    if isinstance(value, str) or _is_index(value):
        return value
    raise ValueError(f"must be a name or a position (from 0), not {value!r}")


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _text(value: Any) -> Any:
    if isinstance(value, (int, float)):
        raise ValueError(f"is a string, but this was read as {value!r}: quote it, as in '{value}'")
    return value


Call: TypeAlias = Annotated[NonNegativeInt | Literal["last", "all"] | None, BeforeValidator(_call)]
Index: TypeAlias = Annotated[NonNegativeInt | None, BeforeValidator(_index)]
Key: TypeAlias = Annotated[NonNegativeInt | StrictStr, BeforeValidator(_key)]
Text: TypeAlias = Annotated[StrictStr, Field(min_length=1), BeforeValidator(_text)]
Op: TypeAlias = Annotated[Text | None, BeforeValidator(_op)]
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
        if not isinstance(value, (Mapping, Spec)):
            raise ValueError(f"must be a type name or `{{type: NAME, ...}}`, not {value!r}")
        return value


class Tap(pydantic.BaseModel):
    """A listening point on a layer: which side, call and part of its values, how they are reduced, stored and named.

    With `op` it listens to one of the operations that the layer itself runs, not to those of the layers inside it.
    `Tap.model_validate("features.*")` reads the string form, which `str(tap)` gives back; keyword arguments are the
    long form, in which `layer` is taken whole (`:`, `[` and `<` mean nothing in it).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: Text = Field(description="an exact module path, `.`, a glob, or `re:` and a pattern")
    side: Literal["output", "input"] = Field("output", description="listen to what the layer returns or receives")
    call: Call = Field(None, description="which call of a layer that runs several times, `last`, or `all`")
    op: Op = Field(None, description="a function that the layer itself calls, such as `add`")
    index: Index = Field(None, description="which run of `op` in one call of the layer, from 0")
    batch_axis: Index = Field(None, description="which axis of the value is the batch; it is moved to the front")
    windows: Literal["merge"] | None = Field(None, description="put windows together again to the map of each image")
    select: tuple[Key, ...] = Field((), description="the path to one tensor in a structure")
    name: Text | None = Field(None, description="the values' name; the tap's string by default")
    reduce: tuple[Spec, ...] = Field((), description="reducers, applied in order on the device")
    dtype: FloatDtype | None = Field(None, description="how it is stored")

    @pydantic.model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        if isinstance(value, _Named):
            return value.long()
        return value if isinstance(value, Tap) else _long(value)

    @pydantic.model_validator(mode="after")
    def _checked(self) -> Tap:
        check(self.layer)
        if self.index is not None and self.op is None:
            raise ValueError("`index` numbers the runs of an operation: it needs `op`")
        if self.op == "attention" and (self.side == "input" or self.select):
            raise ValueError(f"{str(self)!r}: `@attention` gives one tensor, and has no input")
        return self

    @property
    def is_pattern(self) -> bool:
        """Whether the layer may be many: a glob or a regular expression."""
        return is_pattern(self.layer)

    @property
    def label(self) -> str:
        """The name of the values: `name`, or the tap's string."""
        return self.name if self.name is not None else str(self)

    def __str__(self) -> str:
        call = "" if self.call is None else f":{self.call}"
        op = "" if self.op is None else f"@{self.op}" + ("" if self.index is None else f":{self.index}")
        keys = "".join(f"[{key}]" for key in self.select)
        return ("<" if self.side == "input" else "") + self.layer + call + op + keys


def parse_taps(taps: TapsLike) -> tuple[Tap, ...]:
    """The taps of a string, a `Tap`, a list of either or of long forms, or a mapping of name to tap.

    Raises `TapError` with every tap that the grammar does not know.
    """
    if isinstance(taps, Iterable) and not isinstance(taps, (str, bytes, bytearray, Tap, Mapping, Sequence)):
        taps = list(taps)
    try:
        return _TAPS.validate_python(taps)
    except pydantic.ValidationError as error:
        faults = faults_of(error, {"taps": taps}, ("taps",))
        raise combined([TapError(fault.what, where=fault.where) for fault in faults]) from error


def where_of(taps: TapsLike, number: int, tap: Tap) -> Where:
    """Where the tap of that number is in the input of `parse_taps`; empty for a single tap."""
    if isinstance(taps, (str, Tap)):
        return ()
    return ("taps", tap.label if isinstance(taps, Mapping) else number)


def _listed(value: Any) -> Any:
    if isinstance(value, (str, int, float, Tap)):
        return [value]
    if isinstance(value, Mapping) and value:
        if "layer" in value and set(value) <= set(Tap.model_fields):
            raise ValueError("the long form of a tap belongs in a list: `taps: [{layer: ..., ...}]`")
        return [_Named(str(name), tap) for name, tap in value.items()]
    if isinstance(value, Iterable) and not isinstance(value, (bytes, bytearray)):
        listed = list(value)
        if not listed:
            raise ValueError("names no tap; give at least one layer")
        return listed
    raise ValueError(f"must be a tap, a list of taps, or a mapping of name to tap, not {value!r}")


@dataclass(frozen=True, slots=True)
class _Named:
    """A tap of a mapping, with its name there."""

    name: str
    tap: Any

    def long(self) -> dict[str, Any]:
        tap = self.tap
        long = {key: getattr(tap, key) for key in Tap.model_fields} if isinstance(tap, Tap) else _long(tap)
        if long.get("name") not in (None, self.name):
            raise ValueError(f"has another name inside, {long['name']!r}: leave that out")
        return {**long, "name": self.name}


def _long(value: Any) -> dict[str, Any]:
    """The long form of a tap string or of a mapping that leaves out a list's brackets."""
    if isinstance(value, str):
        return _parsed(value)
    if isinstance(value, (int, float)):
        raise ValueError(f"a tap is a string, but this was read as {value!r}: quote it, as in '{value}'")
    if not isinstance(value, Mapping):
        raise ValueError(f"a tap must be a string or a mapping with `layer`, not {value!r}")
    lists = ("reduce", "select")
    return {str(key): [part] if key in lists and _is_single(part) else part for key, part in value.items()}


def _is_single(part: Any) -> bool:
    return isinstance(part, (str, int, Mapping, Spec))


Taps: TypeAlias = Annotated[tuple[Tap, ...], BeforeValidator(_listed)]
_TAPS: pydantic.TypeAdapter[tuple[Tap, ...]] = pydantic.TypeAdapter(Taps)

_LONG = "the long form takes any name: {layer: NAME, ...}"


def _parsed(text: str) -> dict[str, Any]:
    """The long form of a tap string; raises ValueError with the character at which it is wrong."""
    at = 1 if text.startswith("<") else 0
    side = "input" if at else "output"
    if text.startswith(REGEX, at):
        if len(text) == at + len(REGEX):
            raise _fault(text, at + len(REGEX), f"expected a regular expression after `{REGEX}`")
        return {"layer": text[at:], "side": side}
    end = min((i for i in map(text.find, ":@[", (at, at, at)) if i >= 0), default=len(text))
    layer, select = text[at:end], []
    if not layer or layer != layer.strip() or "]" in layer:
        raise _fault(text, at, "expected a layer's path")
    if layer != ROOT and "" in layer.split("."):
        raise _fault(text, at, f"the path {layer!r} has an empty part")
    if text.startswith("::", end):
        raise _fault(text, end, "`::` is reserved")
    call, at = _after(":", _CALL, text, end, "a call number, `last` or `all`")
    op, at = _after("@", _OP, text, at, "the name of a function, without underscores around it,")
    index, at = _after(":", _NUMBER, text, at, "a number (from 0)") if op is not None else (None, at)
    while text.startswith("[", at):
        end = text.find("]", at)
        key = text[at + 1 : end] if end >= 0 else ""
        if not key or "[" in key:
            raise _fault(text, at, "expected `[key]`; in YAML, quote a tap that holds `[`, `]` or `*`")
        select.append(int(key) if _NUMBER.fullmatch(key) else key)
        at = end + 1
    if at < len(text):
        raise _fault(text, at, "expected the end or `[key]`")
    return {"layer": layer, "side": side, "call": call, "op": op, "index": index, "select": select}


def _after(mark: str, pattern: re.Pattern[str], text: str, at: int, what: str) -> tuple[int | str | None, int]:
    """What follows a mark at this character, and the character after it; None where the mark is not there."""
    if not text.startswith(mark, at):
        return None, at
    found = pattern.match(text, at + 1)
    if found is None:
        raise _fault(text, at + 1, f"expected {what} after `{mark}`")
    return int(found[0]) if _NUMBER.fullmatch(found[0]) else found[0], found.end()


def _fault(text: str, at: int, what: str) -> ValueError:
    return ValueError(f"the tap {text!r}, at character {at + 1}: {what} ({_LONG})")
