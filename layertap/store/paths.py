"""Paths as users and JSON have them: `~` is expanded, an environment variable is refused, and any byte can be text."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from layertap.errors import ConfigError, Where

# `$NAME` at the start of one part of a path, and `${NAME}` anywhere, as in `/data/${RUN}-1`.
_VARIABLE = re.compile(r"(?:^|(?<=/))\$[A-Za-z_]\w*|\$\{[A-Za-z_][^{}/]*\}")


def expanded(value: Any) -> Any:
    """The value with `~` and `~user` expanded where a path starts with it, in every text of lists and mappings.

    A `~name` that is not a user is left as it is.
    """
    if isinstance(value, Mapping):
        return {key: expanded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(expanded, value)) if type(value) in (list, tuple) else value
    if isinstance(value, (str, os.PathLike)):
        text = os.fspath(value)
        # No user has a name with a null character, and the system's look-up raises for it.
        if isinstance(text, str) and text.startswith("~") and "\0" not in text:
            return os.path.expanduser(text)
    return value


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path that a user gave, with `~` expanded. Raises `ConfigError` for an environment variable in it."""
    found = Path(expanded(os.fspath(path)))
    if variable := _variable(str(found)):
        raise ConfigError(f"{found}: {refusal(variable)}; write the path out, or let the shell expand it")
    return found


def path_text(path: str) -> str:
    """A path as text that JSON can hold: a character per byte, since a file's name need not be UTF-8."""
    return path if path.isascii() else os.fsencode(path).decode("latin-1")


def text_path(text: str) -> str:
    """The path that `path_text` gave the text of."""
    return text if text.isascii() else os.fsdecode(text.encode("latin-1"))


def variables(value: Any, where: Where = ()) -> Iterator[tuple[Where, str]]:
    """Each environment variable in a path among a plugin's parameters, and where."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from variables(item, (*where, str(key)))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from variables(item, (*where, index))
    elif isinstance(value, str) and (variable := _variable(value)) and _is_a_path(value, where):
        yield where, variable


def refusal(variable: str) -> str:
    """What is wrong with a path that holds this variable."""
    return f"the environment variable {variable} is not replaced in a path"


def _is_a_path(text: str, where: Where) -> bool:
    """Deeper down, among options that another library defines, a word with a `$` may be a password."""
    return "/" in text or sum(isinstance(part, str) for part in where) == 1


def _variable(path: str) -> str | None:
    found = _VARIABLE.search(path)
    # A file may really have such a name.
    return found[0] if found and not os.path.lexists(path) else None
