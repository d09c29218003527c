"""What can go wrong, as a tree; every error carries the exit code of the command line.

    LayertapError         1   a bug, or nothing more precise fits
    ├── ConfigError       2   the configuration, a name in it, or what it asks of this machine
    ├── TapError          2   a tap that the model cannot serve truthfully
    ├── WeightsError      2   weights that are missing or do not fit the model
    ├── PluginError       1   a plugin or a model raised (2 where it cannot be loaded at all)
    ├── ImageError        4   an image failed and `on_error` or `max_failures` stops the run
    ├── StoreError        7   storage; 5 locked by a live run, 6 the output is another run's or not ours
    └── UnsafeError       8   refused for safety

A command that raises nothing exits with 0, with 3 if it finished and some images failed, and with 130 or 143 if a
signal stopped it.

A message is one line: what, where, what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pydantic


# Every exit code of the command line but 0.
BUG, CONFIG, SOME_FAILED, STOPPED, LOCKED, FOREIGN, STORAGE, UNSAFE = 1, 2, 3, 4, 5, 6, 7, 8
INTERRUPTED, TERMINATED = 130, 143


class LayertapError(Exception):
    """Base of every error that layertap raises on purpose; `code` is the exit code of the command line."""

    code: int = BUG

    def __init__(self, message: str, *, code: int | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class ConfigError(LayertapError):
    """The configuration is wrong, or asks for something that this machine does not have."""

    code = CONFIG


class TapError(LayertapError):
    """A tap names no layer, never fired, is ambiguous, or its value is not one row an image."""

    code = CONFIG


class WeightsError(LayertapError):
    """Weights are missing, unreadable, or do not fit the model."""

    code = CONFIG


class PluginError(LayertapError):
    """A plugin or a model raised, or two plugins claim one type name."""

    code = BUG


class ImageError(LayertapError):
    """One image cannot be used; `reason` is a short fixed code such as `truncated`.

    A preprocessor raises it to refuse an image: the record is listed in `failures.csv` and the run goes on.
    """

    code = STOPPED

    def __init__(self, reason: str, message: str | None = None) -> None:
        super().__init__(message or reason)
        self.reason = reason


class StoreError(LayertapError):
    """The output folder cannot be written, or belongs to something else."""

    code = STORAGE


class UnsafeError(LayertapError):
    """Refused, because going on could run code or trust data that nobody vouched for."""

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


def first_fault(error: pydantic.ValidationError) -> tuple[tuple[int | str, ...], str]:
    """Where the first fault of a pydantic validation lies, and what it is, in one line for the user."""
    faults = error.errors(include_url=False)
    # A misspelt key is why another one is missing, not the other way round.
    fault = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
    where, kind, value = fault["loc"], fault["type"], fault["input"]
    if kind == "extra_forbidden":
        return where, "unknown key"
    if kind == "missing":
        return where, "is required"
    text = fault["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if kind == "value_error":
        return where, text
    return where, f"{text}, not {value!r}"
