r"""Tap strings and mappings -> `Tap`; nothing here knows a model.

    tap := ['<'] layer [':' call] ('[' key ']')*

`layer` is an exact path, `.` (the model itself), a glob (`*` within one part of the path, `**` for any number of
parts), or `re:` and a regular expression that matches the whole path and takes the rest of the string.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from re import _constants, _parser  # type: ignore[attr-defined]  # how Python itself reads a pattern
from typing import Annotated, Any, Literal, TypeAlias

import pydantic
from pydantic import BeforeValidator, ConfigDict, Field, NonNegativeInt, StrictStr

from layertap.errors import TapError, first_fault
from layertap.records import FloatDtype

REGEX = "re:"
ROOT = "."

# No leading zero, so that a string says the same after it was read; nine digits are more calls than any forward has.
_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")
# Four repeats of anything: a hundredth of a second for the longest name of a large model, and ten times that for each
# one more.
_MOST_WAYS = 10**8
_CALL = re.compile(rf"{_NUMBER.pattern}|last|all")


def _call(value: Any) -> Any:
    if value is None or value in ("last", "all") or _is_index(value):
        return value
    raise ValueError(f"is a call's number from 0 on, `last` or `all`, not {value!r}")


def _key(value: Any) -> Any:
    if isinstance(value, str) or _is_index(value):
        return value
    raise ValueError(f"is a name, or a position from 0 on, not {value!r}")


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _text(value: Any) -> Any:
    if isinstance(value, (int, float)):
        raise ValueError(f"is a string, and this was read as {value!r}: quote it, as in '{value}'")
    return value


Call: TypeAlias = Annotated[NonNegativeInt | Literal["last", "all"] | None, BeforeValidator(_call)]
Key: TypeAlias = Annotated[NonNegativeInt | StrictStr, BeforeValidator(_key)]
Text: TypeAlias = Annotated[StrictStr, Field(min_length=1), BeforeValidator(_text)]
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
            raise ValueError(f"is a type name or `{{type: NAME, ...}}`, not {value!r}")
        return value


class Tap(pydantic.BaseModel):
    """A listening point on a layer: which side, which call, which part, how reduced and stored, under which name.

    `Tap.model_validate("features.*")` reads the string form, which `str(tap)` gives back; keyword arguments are the
    long form, in which `layer` is taken whole (`:`, `[` and `<` mean nothing in it).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: Text = Field(description="an exact module path, `.`, a glob, or `re:` and a pattern")
    side: Literal["output", "input"] = Field("output", description="listen to what the layer returns or receives")
    call: Call = Field(None, description="which call of a layer that runs several times, `last`, or `all`")
    select: tuple[Key, ...] = Field((), description="the way to one tensor in a structure")
    name: Text | None = Field(None, description="the values' name; the tap's string by default")
    reduce: tuple[Spec, ...] = Field((), description="reducers, applied in order on the device")
    dtype: FloatDtype | None = Field(None, description="how it is stored")

    @pydantic.model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        return value if isinstance(value, Tap) else _long(value)

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
        if layer == REGEX:
            raise ValueError(f"{layer!r}: expected a regular expression after `{REGEX}`")
        try:
            pattern = re.compile(layer.removeprefix(REGEX))
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"{layer!r} is no regular expression: {error}") from error
        if _ways(_parser.parse(layer.removeprefix(REGEX))) > _MOST_WAYS:
            raise ValueError(
                f"{layer!r} could take hours: it repeats what itself repeats or chooses, or repeats too often; write a "
                "glob, or several taps"
            )
        return pattern
    if "*" not in layer:
        return re.compile(re.escape(layer))
    blocks = [""]
    for part in layer.split("."):
        if part == "**":
            blocks.append("")
        elif "**" in part:
            raise ValueError(f"{layer!r}: `**` stands alone between dots")
        else:
            first, *pieces = map(re.escape, part.split("*"))
            inner = "".join(rf"(?>[^.]*?{piece})" for piece in pieces[:-1] if piece)
            blocks[-1] += r"\." + first + inner + "".join(rf"[^.]*{piece}" for piece in pieces[-1:])
    # Every part brings its own dot, so that `**` may be no part at all; `matches` puts one before the first. What
    # stands between two stars is taken where it is first found, for good: a later place would never match more.
    first, *others = blocks
    inner = "".join(rf"(?>(?:\.[^.]+)*?{block}(?=\.|\Z))" for block in others[:-1] if block)
    return re.compile(first + inner + "".join(rf"(?:\.[^.]+)*{block}" for block in others[-1:]))


def _ways(tree: Iterable[Any]) -> int:
    """In how many ways a parsed pattern can share a text among its parts, about: `re` may try them all in vain.

    A repeat of what itself repeats or chooses has no bound.
    """
    ways = 1
    for kind, what in tree:
        if kind in (_constants.MAX_REPEAT, _constants.MIN_REPEAT, _constants.POSSESSIVE_REPEAT):
            low, high, repeated = what
            inner = _ways(repeated)
            if inner > 1 and high > 1:
                return _MOST_WAYS + 1
            ways *= inner * (4 if high == 1 > low else max(1, min(high, 99) - low + 1))
        elif kind is _constants.BRANCH:
            ways *= len(what[1]) * sum(_ways(branch) for branch in what[1])
        else:  # whatever else holds a pattern has it among its arguments
            for part in what if isinstance(what, tuple) else (what,):
                ways *= _ways(part) if isinstance(part, _parser.SubPattern) else 1
    return ways


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


def _named(name: str, tap: Any) -> Tap:
    """The tap of a mapping under its name; what is wrong with it is told with that name, as a list's is by number."""
    try:
        long = {key: getattr(tap, key) for key in Tap.model_fields} if isinstance(tap, Tap) else _long(tap)
        if long.get("name") not in (None, name):
            raise ValueError(f"has another name inside, {long['name']!r}: leave that out")
        return Tap(**{**long, "name": name})
    except pydantic.ValidationError as error:
        where, what = first_fault(error)
        raise ValueError(f"{name!r}: {''.join(f'{key}: ' for key in where)}{what}") from error
    except ValueError as error:
        raise ValueError(f"{name!r}: {error}") from error


def _long(value: Any) -> dict[str, Any]:
    """The long form of a tap string or of a mapping that leaves out a list's brackets."""
    if isinstance(value, str):
        return _parsed(value)
    if isinstance(value, (int, float)):
        raise ValueError(f"a tap is a string, and this was read as {value!r}: quote it, as in '{value}'")
    if not isinstance(value, Mapping):
        raise ValueError(f"a tap is a string or a mapping with `layer`, not {value!r}")
    lists = ("reduce", "select")
    return {str(key): [part] if key in lists and _is_single(part) else part for key, part in value.items()}


def _is_single(part: Any) -> bool:
    return isinstance(part, (str, int, Mapping, Spec))


Taps: TypeAlias = Annotated[tuple[Tap, ...], BeforeValidator(_listed)]
_TAPS: pydantic.TypeAdapter[tuple[Tap, ...]] = pydantic.TypeAdapter(Taps)

_LONG = "the long form takes any name: {layer: NAME, ...}"


def _parsed(text: str) -> dict[str, Any]:
    """The long form of a tap string; raises ValueError that says at which character it stops making sense."""
    at = 1 if text.startswith("<") else 0
    side = "input" if at else "output"
    if text.startswith(REGEX, at):
        if len(text) == at + len(REGEX):
            raise _fault(text, at + len(REGEX), f"expected a regular expression after `{REGEX}`")
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
        call = found[0] if found[0] in ("last", "all") else int(found[0])
        at = found.end()
    while text.startswith("[", at):
        end = text.find("]", at)
        key = text[at + 1 : end] if end >= 0 else ""
        if not key or "[" in key:
            raise _fault(text, at, "expected `[key]`; in YAML, quote a tap that holds `[`, `]` or `*`")
        select.append(int(key) if _NUMBER.fullmatch(key) else key)
        at = end + 1
    if at < len(text):
        raise _fault(text, at, "expected the end or `[key]`")
    return {"layer": layer, "side": side, "call": call, "select": select}


def _fault(text: str, at: int, what: str) -> ValueError:
    return ValueError(f"the tap {text!r}, at character {at + 1}: {what} ({_LONG})")
