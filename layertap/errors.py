"""What can go wrong, as a tree; every error carries the exit code of the command line.

    LayertapError         1   a bug, or an error without a more precise class
    ├── ConfigError       2   the configuration, a name in it, or something that this machine does not have
    ├── TapError          2   a tap that the model cannot serve truthfully
    ├── WeightsError      2   weights that are missing or do not fit the model
    ├── PluginError       1   a plugin or a model raised (2 where it cannot be loaded at all)
    ├── ImageError        4   an image failed and `on_error` or `max_failures` stops the run
    ├── StoreError        7   storage; 5 locked by a live run, 6 the output is another run's or not layertap's
    └── UnsafeError       8   refused for safety

A command that raises nothing exits with 0, with 3 if it finished and some images failed, with 130 or 143 if a
signal stopped it, and with 141 if whoever read its output has closed the pipe.

An error is one line: where, what, what to do. A plugin gives `where` relative to its own part of the configuration, as
in `ConfigError("is not a folder", where=("path",))`, and the core puts the part's key before it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import pydantic

Where: TypeAlias = "tuple[str | int, ...]"

# A message is one line on a screen, whatever a hostile file has in its keys and values.
_LONGEST_MESSAGE = 2_000


# Every exit code of the command line except 0.
BUG, CONFIG, SOME_FAILED, STOPPED, LOCKED, FOREIGN, STORAGE, UNSAFE = 1, 2, 3, 4, 5, 6, 7, 8
INTERRUPTED, PIPE_CLOSED, TERMINATED = 130, 141, 143


class LayertapError(Exception):
    """Base of every error that layertap raises on purpose; `code` is the exit code of the command line."""

    code: int = BUG
    where: Where = ()
    """The path of keys and indices to what is wrong, such as `("taps", 1)`; empty if there is no such path."""
    place: str = ""
    """Where that was written: `file:line:column`, or `command line`; set once, where the configuration is known."""
    _faults: tuple[LayertapError, ...] = ()

    def __init__(self, message: str, *, code: int | None = None, where: Where = ()) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code
        if where:
            self.where = where

    @property
    def message(self) -> str:
        """What is wrong and what to do, without the place."""
        return str(self.args[0]) if self.args else ""

    @property
    def faults(self) -> tuple[LayertapError, ...]:
        """The faults that this error reports at once; the error itself where there is one."""
        return self._faults or (self,)

    def __str__(self) -> str:
        """The error in one line; one line per fault where it carries several."""
        if self._faults:
            return "\n".join(map(str, self._faults))
        return _one_line(": ".join(part for part in (self.place, _key(self.where), self.message) if part))


class ConfigError(LayertapError):
    """The configuration is wrong, or asks for something that this machine does not have."""

    code = CONFIG


class TapError(LayertapError):
    """A tap names no layer, never ran, is ambiguous, or its value is not one row per image."""

    code = CONFIG


class WeightsError(LayertapError):
    """Weights are missing, unreadable, or do not fit the model."""

    code = CONFIG


class PluginError(LayertapError):
    """A plugin or a model raised, or two plugins claim one type name."""

    code = BUG


class ImageError(LayertapError):
    """One image cannot be used; `reason` is a short fixed code such as `truncated`.

    A preprocessor raises it to refuse an image: the record is listed in `failures.csv` and the run continues.
    """

    code = STOPPED

    def __init__(self, reason: str, message: str | None = None, *, where: Where = ()) -> None:
        super().__init__(message or reason, where=where)
        self.reason = reason


class StoreError(LayertapError):
    """The output folder cannot be written, or belongs to something else."""

    code = STORAGE


class UnsafeError(LayertapError):
    """Refused, because continuing could run code or trust data from an unknown source."""

    code = UNSAFE


def did_you_mean(wrong: str, known: Iterable[str], *, most: int = 3, cutoff: float = 0.6) -> str:
    """`"; did you mean 'a' or 'b'?"` for the names nearest to `wrong`, or an empty string."""
    near = difflib.get_close_matches(wrong, list(known), n=most, cutoff=cutoff)
    return f"; did you mean {' or '.join(repr(name) for name in near)}?" if near else ""


def missing_extra(who: str, package: str | None, extra: str, distribution: str = "layertap") -> str:
    """The message for an import that failed: `who` needs `package`, which an extra of `distribution` installs."""
    needed = f"the package {package!r}" if package else "another package"
    return f"{who} needs {needed}: {install_command(extra, distribution)}"


def install_command(extra: str, distribution: str = "layertap") -> str:
    """The command that installs an extra of `distribution`."""
    return f"pip install '{distribution}[{extra}]'"


def combined(faults: Sequence[LayertapError]) -> LayertapError:
    """One error that reports all `faults`, of the kind and with the exit code of the first."""
    first = faults[0]
    if len(faults) == 1:
        return first
    # A plugin may have its own subclass, whose constructor may take other arguments.
    kinds = (ConfigError, TapError, WeightsError, PluginError, StoreError, UnsafeError, LayertapError)
    result = next(kind for kind in kinds if isinstance(first, kind))(first.message, code=first.code)
    result._faults = tuple(faults)
    return result


@contextmanager
def within(*where: str | int) -> Iterator[None]:
    """Put `where` before that of the errors which the block raises, unless they have a place already."""
    try:
        yield
    except LayertapError as error:
        set_within(error, where)
        raise


def set_within(error: LayertapError, where: Where) -> None:
    """Put `where` before that of `error`, unless it has a place already.

    An error of storage or of an image without a `where` does not concern a key, and is left unchanged.
    """
    for fault in error.faults:
        if not fault.place and (fault.where or not isinstance(fault, (StoreError, ImageError))):
            fault.where = (*where, *fault.where)


class Fault(NamedTuple):
    """One fault of a pydantic validation: where in the data, pydantic's name for it, what it is, and the value."""

    where: Where
    kind: str
    what: str
    value: Any


def faults_of(error: pydantic.ValidationError, data: Any, where: Where = ()) -> list[Fault]:
    """The faults that a validation found in what `data` has at `where`, one for each value that is wrong.

    Of a union's branches the first one is reported; for a misspelt key, that key and not the missing right one.
    """
    found: dict[Where, Fault] = {}
    spoken: dict[tuple[Where, int], str] = {}
    for each in error.errors(include_url=False):
        path, kind = (*where, *each["loc"]), each["type"]
        written, branches = _as_written(path, data, len(path) - (kind == "missing"))
        if all(spoken.setdefault(at, branch) == branch for at, branch in branches.items()):
            found.setdefault(written, Fault(written, kind, _said(each), each["input"]))
    meant = [fault.where for fault in found.values() if fault.kind == "missing"]
    for fault in list(found.values()):
        if fault.kind == "extra_forbidden":
            beside = {str(path[-1]): path for path in meant if path[:-1] == fault.where[:-1]}
            for key in difflib.get_close_matches(str(fault.where[-1]), beside, n=1):
                found.pop(beside[key], None)
    return list(found.values())


def as_written(where: Where, data: Any) -> Where:
    """The path to a value as the user wrote it: no index into a single thing, a tap's name where taps have names."""
    return _as_written(where, data, 0)[0]


_ABSENT = object()


def _as_written(where: Where, data: Any, branched: int) -> tuple[Where, dict[tuple[Where, int], str]]:
    """The path as written, and the branches of unions that pydantic names among its first `branched` parts."""
    result: list[str | int] = []
    branches: dict[tuple[Where, int], str] = {}
    value = data
    for number, part in enumerate(where):
        if isinstance(part, int):
            if result == ["taps"] and isinstance(value, Mapping) and part < len(value):
                part = list(value)[part]
            elif value is not _ABSENT and not isinstance(value, (list, tuple)):
                continue
        elif 0 < number < branched and not (isinstance(value, Mapping) and part in value):
            branches[tuple(result), sum(at == tuple(result) for at, _ in branches)] = part
            continue
        result.append(part)
        try:
            value = value[part]
        except (TypeError, LookupError):
            value = _ABSENT
    return tuple(result), branches


def _said(fault: Any) -> str:
    kind = fault["type"]
    if kind == "extra_forbidden":
        return "unknown key"
    if kind == "missing":
        return "is required"
    if kind == "value_error":
        return str(fault["ctx"]["error"])
    return f"{fault['msg'].removeprefix('Input ')}, not {fault['input']!r}"


def _key(where: Where) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).removeprefix(".")


def _one_line(text: str) -> str:
    """The text in one line: characters unsafe for a terminal are escaped, and the middle of a long text is left out."""
    if len(text) > _LONGEST_MESSAGE:
        text = f"{text[: _LONGEST_MESSAGE - 400]} ... {text[-400:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
