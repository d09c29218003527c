"""YAML text -> plain data that remembers where each key was. No tags, no duplicate keys, nothing that becomes code.

The scalars are those of YAML 1.2's core schema (https://yaml.org/spec/1.2.2/#103-core-schema): `no` and `on` are
strings, and `12:30:45` is not a number.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, AnyStr, NoReturn

import yaml

from layertap.errors import ConfigError, LayertapError, Where, as_written

# A configuration is about a page; anything larger is a mistake or an attack on the parser.
_MOST_BYTES = 1_000_000
_MOST_NODES = 10_000
_MOST_DEPTH = 32
_MOST_DIGITS = 100
_TOO_MUCH = f"holds more than {_MOST_NODES:,} values, or is nested more than {_MOST_DEPTH} deep"

_BOOL, _INT, _FLOAT, _NULL = (f"tag:yaml.org,2002:{name}" for name in ("bool", "int", "float", "null"))
_STR = "tag:yaml.org,2002:str"

_HINTS = (
    ("'\\t'", "; indent with spaces"),
    ("mapping values are not allowed", "; quote text that contains `: `"),
)


class _Loader(yaml.SafeLoader):
    """Composes nodes with the limits and without the tags; nothing is ever constructed from them."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  (PyYAML's own shape)

    def __init__(self, text: str, name: str) -> None:
        super().__init__(text)
        self._name = name
        self._nodes = self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        self._nodes += 1
        self._depth += 1
        # Counted here and not afterwards: PyYAML needs ten seconds and all the stack for a megabyte of brackets.
        if self._nodes > _MOST_NODES or self._depth > _MOST_DEPTH:
            raise _fault(self._name, event.start_mark, _TOO_MUCH)
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise _fault(self._name, event.start_mark, f"the tag {tag} is not allowed: a configuration is plain data")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


for _tag, _pattern in (
    (_BOOL, r"true|True|TRUE|false|False|FALSE"),
    (_INT, r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
    (_FLOAT, r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
    (_NULL, r"~|null|Null|NULL|"),
):
    _Loader.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), None)


@dataclass(slots=True)
class Document:
    """Plain data, and where it came from: `places` maps the path of a value to its line and column, from 1."""

    name: str
    data: dict[str, Any]
    places: dict[Where, tuple[int, int]] = field(default_factory=dict)
    overridden: dict[Where, str] = field(default_factory=dict)

    def fault(self, where: Where, what: str) -> ConfigError:
        """The error `file:line:column: key: what` for the value at `where`, or for the nearest value around it."""
        where = as_written(where, self.data)
        return _placed(self.place(where), what, where)

    def locate(self, error: LayertapError) -> None:
        """Set the place in this document of each fault that has a `where` and no place yet."""
        for fault in error.faults:
            if fault.where and not fault.place:
                fault.where = as_written(fault.where, self.data)
                fault.place = self.place(fault.where)

    @contextmanager
    def located(self) -> Iterator[None]:
        """Locate what the block raises."""
        try:
            yield
        except LayertapError as error:
            self.locate(error)
            raise

    def position(self, where: Where) -> tuple[int, int]:
        """Line and column of the nearest value around `where` that was written in the file; 0, 0 if none was."""
        found = self._nearest(where)
        return self.places.get(found, (0, 0)) if found is not None else (0, 0)

    def place(self, where: Where) -> str:
        """The `file:line:column` of the value at `where`, or of the nearest value around it; or its override."""
        found = self._nearest(where)
        if found is None:
            return self.name
        if found in self.overridden:
            return self.overridden[found]
        line, column = self.places[found]
        return f"{self.name}:{line}:{column}"

    def _nearest(self, where: Where) -> Where | None:
        around = (where[:length] for length in range(len(where), -1, -1))
        return next((place for place in around if place in self.overridden or place in self.places), None)

    def override(self, where: Where, label: str) -> None:
        """Note that the value at `where` now comes from `label`; earlier places at and below it are forgotten."""
        for known in (self.places, self.overridden):
            for place in [place for place in known if place[: len(where)] == where]:
                del known[place]
        self.overridden[where] = label

    def plain(self, value: Any, where: Where, known: Callable[[Any], Any] = lambda value: value) -> Any:
        """`value` as JSON has it: paths as strings, tuples as lists; `known` turns layertap's objects into data first.

        A run's configuration goes into its manifest and comes back to be compared: what JSON cannot hold would fail
        there, after the work. Raises `ConfigError`.
        """
        value = known(value)
        if len(where) > _MOST_DEPTH:
            raise self.fault(where[:1], f"is nested more than {_MOST_DEPTH} deep")
        if isinstance(value, os.PathLike):
            value = os.fsdecode(value)
        if isinstance(value, Mapping):
            return {self._text(str(key), where): self.plain(v, (*where, str(key)), known) for key, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.plain(item, (*where, index), known) for index, item in enumerate(value)]
        if isinstance(value, str):
            return self._text(value, where)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int) and abs(value) < 10**_MOST_DIGITS:
            return int(value)
        if isinstance(value, float) and math.isfinite(value):
            return float(value)
        if isinstance(value, (int, float)):
            raise self.fault(where, "is a number that a manifest cannot hold")
        raise self.fault(where, f"must be plain data (text, numbers, lists, mappings), not {type(value).__name__}")

    def _text(self, text: str, where: Where) -> str:
        try:
            text.encode()
        except UnicodeEncodeError:
            what = f"{text!r} is not UTF-8 text; for a path: change into that folder and write `.`"
            raise self.fault(where, what) from None
        return str(text)


def read_document(path: Path) -> Document:
    """The mapping in a YAML file. Raises `ConfigError` with line and column."""
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise _placed(str(path), f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(content) > _MOST_BYTES:
        raise _placed(str(path), f"is larger than {_MOST_BYTES:,} bytes: is it a configuration?")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _placed(f"{path}:{_place(content, error.start)}", "is not UTF-8 text") from error
    document = Document(str(path), {})
    data = _Reader(document).read(text)
    if not isinstance(data, dict):
        raise _placed(f"{path}:1:1", "does not hold a mapping with keys such as `source:` and `sink:`")
    document.data = data
    return document


def parse_value(text: str, name: str) -> Any:
    """A YAML value on its own, as in `key=value`. Raises `ConfigError`."""
    return _Reader(Document(name, {})).read(text)


class _Reader:
    """Builds plain data from PyYAML's nodes, recording places and enforcing limits."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.nodes = 0

    def read(self, text: str) -> Any:
        try:
            loader = _Loader(text, self.document.name)
            try:
                node = loader.get_single_node()
            finally:
                loader.dispose()
        except yaml.MarkedYAMLError as error:
            _refuse(self.document.name, text, error)
        except yaml.reader.ReaderError as error:
            what = f"the character U+{ord(text[error.position]):04X} is not allowed in YAML"
            raise _placed(f"{self.document.name}:{_place(text, error.position)}", what) from error
        return self.build(node, ()) if node is not None else None

    def build(self, node: yaml.Node, where: Where) -> Any:
        # Counted again, because an alias is one node for the composer and is expanded here.
        self.nodes += 1
        if self.nodes > _MOST_NODES or len(where) > _MOST_DEPTH:
            raise self.fault(node, _TOO_MUCH)
        self.document.places.setdefault(where, (node.start_mark.line + 1, node.start_mark.column + 1))
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, where)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*where, index)) for index, item in enumerate(node.value)]
        return self.scalar(node)

    def mapping(self, node: yaml.MappingNode, where: Where) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != _STR:
                raise self.fault(key_node, "a key must be a string: quote it")
            key = key_node.value
            if key in result:
                line = self.document.places[(*where, key)][0]
                raise self.fault(key_node, f"duplicate key {key!r} (first on line {line})")
            self.document.places[(*where, key)] = (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            result[key] = self.build(value_node, (*where, key))
        return result

    def scalar(self, node: yaml.Node) -> Any:
        text: str = node.value
        if node.tag == _NULL:
            return None
        if node.tag == _BOOL:
            return text.lower() == "true"
        if node.tag == _INT:
            if len(text) > _MOST_DIGITS:
                raise self.fault(node, f"a number of {len(text):,} digits: quote it if it is text")
            return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
        if node.tag == _FLOAT:
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        return text

    def fault(self, node: yaml.Node, what: str) -> ConfigError:
        return _fault(self.document.name, node.start_mark, what)


def _place(text: AnyStr, position: int) -> str:
    newline: Any = "\n" if isinstance(text, str) else b"\n"
    return f"{text.count(newline, 0, position) + 1}:{position - text.rfind(newline, 0, position)}"


def _fault(name: str, mark: yaml.Mark, what: str) -> ConfigError:
    return _placed(f"{name}:{mark.line + 1}:{mark.column + 1}", what)


def _placed(place: str, what: str, where: Where = ()) -> ConfigError:
    error = ConfigError(what, where=where)
    error.place = place
    return error


def _refuse(name: str, text: str, error: yaml.MarkedYAMLError) -> NoReturn:
    """Report what PyYAML does not understand, where, and inside which construct that began on an earlier line."""
    mark, context = error.problem_mark or error.context_mark, error.context_mark
    what = error.problem or ""
    if error.context:
        began = f" (from line {context.line + 1})" if context and mark and context.line != mark.line else ""
        what = f"{error.context}{began}, {what}"
    what += "".join(hint for sign, hint in _HINTS if sign in what)
    what += _quoting(text, {each.line for each in (mark, context) if each})
    if mark is None:
        raise _placed(name, what) from error
    raise _fault(name, mark, what) from error


def _quoting(text: str, lines: set[int]) -> str:
    """A hint if a faulty line contains characters that are YAML syntax."""
    held = "".join(line for number, line in enumerate(text.split("\n")) if number in lines)
    return '; quote text that contains `*`, `[` or `]`, as in "**.relu"' if any(c in held for c in "*[]") else ""
