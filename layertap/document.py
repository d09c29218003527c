"""YAML text -> plain data that remembers where each key stood. No tags, no duplicate keys, nothing that becomes code.

The scalars are those of YAML 1.2's core schema (https://yaml.org/spec/1.2.2/#103-core-schema): `no` and `on` are
strings, and `12:30:45` is not a number.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from layertap.errors import ConfigError

Where: TypeAlias = "tuple[str | int, ...]"

# A configuration is a page; what is larger is a mistake or an attack on the parser.
_MOST_BYTES = 1_000_000
_MOST_NODES = 10_000
_MOST_DEPTH = 32

_BOOL, _INT, _FLOAT, _NULL = (f"tag:yaml.org,2002:{name}" for name in ("bool", "int", "float", "null"))
_STR, _MAP, _SEQ = (f"tag:yaml.org,2002:{name}" for name in ("str", "map", "seq"))


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  (PyYAML's own shape)


for _tag, _pattern in (
    (_BOOL, r"true|True|TRUE|false|False|FALSE"),
    (_INT, r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
    (_FLOAT, r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
    (_NULL, r"~|null|Null|NULL|"),
):
    _Loader.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), None)


@dataclass(slots=True)
class Document:
    """Plain data, and where it came from: `places` maps the way to a value to its line and column, from 1."""

    name: str
    data: dict[str, Any]
    places: dict[Where, tuple[int, int]] = field(default_factory=dict)
    overridden: dict[Where, str] = field(default_factory=dict)

    def fault(self, where: Where, what: str) -> ConfigError:
        """The error `file:line:column: key: what` for the value at `where`, or for the nearest thing around it."""
        key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).removeprefix(".")
        what = f"{key}: {what}" if key else what
        for length in range(len(where), -1, -1):
            if where[:length] in self.overridden:
                return ConfigError(f"{self.overridden[where[:length]]}: {what}")
            if where[:length] in self.places:
                line, column = self.places[where[:length]]
                return ConfigError(f"{self.name}:{line}:{column}: {what}")
        return ConfigError(f"{self.name}: {what}")


def read_document(path: Path) -> Document:
    """The mapping in a YAML file. Raises `ConfigError` with line and column."""
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > _MOST_BYTES:
        raise ConfigError(f"{path}: is larger than {_MOST_BYTES:,} bytes: is it a configuration?")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    document = Document(str(path), {})
    data = _Reader(document).read(text)
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: holds no mapping of keys such as `source:` and `sink:`")
    document.data = data
    return document


def parse_value(text: str, name: str) -> Any:
    """A YAML value on its own, as in `key=value`. Raises `ConfigError`."""
    return _Reader(Document(name, {})).read(text)


class _Reader:
    """Builds plain data out of PyYAML's nodes, noting places and holding limits."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.nodes = 0

    def read(self, text: str) -> Any:
        name = self.document.name
        try:
            loader = _Loader(text)
            try:
                node = loader.get_single_node()
            finally:
                loader.dispose()
            return self.build(node, ()) if node is not None else None
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
            raise ConfigError(f"{name}{place}: {error.problem or error.context}{_quoting(text, mark)}") from error
        except yaml.YAMLError as error:
            raise ConfigError(f"{name}: is no YAML: {' '.join(str(error).split())}") from error
        except RecursionError as error:
            raise ConfigError(f"{name}: is nested more than {_MOST_DEPTH} deep") from error

    def build(self, node: yaml.Node, where: Where) -> Any:
        self.nodes += 1
        if self.nodes > _MOST_NODES or len(where) > _MOST_DEPTH:
            raise self.fault(node, f"holds more than {_MOST_NODES:,} values, or is nested more than {_MOST_DEPTH} deep")
        self.document.places.setdefault(where, (node.start_mark.line + 1, node.start_mark.column + 1))
        if isinstance(node, yaml.MappingNode) and node.tag == _MAP:
            return self.mapping(node, where)
        if isinstance(node, yaml.SequenceNode) and node.tag == _SEQ:
            return [self.build(item, (*where, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node)
        raise self.fault(node, f"the tag {node.tag} is not allowed: a configuration is plain data")

    def mapping(self, node: yaml.MappingNode, where: Where) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != _STR:
                raise self.fault(key_node, "a key must be a string: quote it")
            key = key_node.value
            if key in result:
                line = self.document.places[(*where, key)][0]
                raise self.fault(key_node, f"the key {key!r} stands twice (first in line {line})")
            self.document.places[(*where, key)] = (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            result[key] = self.build(value_node, (*where, key))
        return result

    def scalar(self, node: yaml.ScalarNode) -> Any:
        text = node.value
        try:
            match node.tag:
                case tag if tag == _STR:
                    return text
                case tag if tag == _NULL:
                    return None
                case tag if tag == _BOOL:
                    return text.lower() == "true"
                case tag if tag == _INT:
                    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
                case tag if tag == _FLOAT:
                    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError as error:
            raise self.fault(node, f"cannot read the number: {error}") from error
        raise self.fault(node, f"the tag {node.tag} is not allowed: a configuration is plain data")

    def fault(self, node: yaml.Node, what: str) -> ConfigError:
        return ConfigError(f"{self.document.name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}: {what}")


def _quoting(text: str, mark: yaml.Mark | None) -> str:
    """A hint where the faulty line holds what YAML takes for its own."""
    lines = text.splitlines()
    line = lines[mark.line] if mark and mark.line < len(lines) else ""
    return '; quote what holds `*`, `[` or `]`, as in "**.relu"' if any(c in line for c in "*[]") else ""
