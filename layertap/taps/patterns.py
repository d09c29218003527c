"""A tap's layer -> the paths of a model that it matches: exact, a glob, or a regular expression."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence

from layertap.errors import TapError

REGEX = "re:"

_SECONDS = 5.0
_CURE = "write a glob, such as `**.relu`, or several taps"

# Two adjacent repeats or choices take a few thousand steps per path at most; inside a group they may never end.
_MOST_REPEATS = 2
_REPEATS = re.compile(r"[*+?{|]")

# `re` blocks the interpreter until it has an answer, so only another process can be stopped. It needs little memory,
# except for a pattern that counts to a billion.
_MATCHER = """
import json, re, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
except (ImportError, OSError, ValueError):
    pass
pattern, paths = json.load(sys.stdin)
pattern = re.compile(pattern)
json.dump([path for path in paths if pattern.fullmatch(path)], sys.stdout)
"""


def is_pattern(layer: str) -> bool:
    """Whether a layer may match many: a glob or a regular expression."""
    return layer.startswith(REGEX) or "*" in layer


def check(layer: str) -> None:
    """Raise ValueError for an invalid glob or regular expression."""
    if layer.startswith(REGEX):
        _regex(layer)
    elif "*" in layer:
        _glob(layer)


def matching(layer: str, paths: Iterable[str]) -> Sequence[str]:
    """The paths that a glob or a regular expression matches whole, in their order.

    Raises `TapError` for a regular expression that has no answer after some seconds.
    """
    paths = list(paths)
    if not layer.startswith(REGEX):
        # Every part of a glob includes its own dot, so that `**` can match zero parts.
        glob = _glob(layer)
        return [path for path in paths if glob.fullmatch(f".{path}")]
    pattern = _regex(layer)
    if "(" not in pattern.pattern and len(_REPEATS.findall(pattern.pattern)) <= _MOST_REPEATS:
        return [path for path in paths if pattern.fullmatch(path)]
    return _matching_in_time(layer, paths)


def _matching_in_time(layer: str, paths: Sequence[str]) -> Sequence[str]:
    try:
        done = subprocess.run(
            [sys.executable or "python3", "-I", "-S", "-c", _MATCHER],
            input=json.dumps([layer.removeprefix(REGEX), paths]),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise TapError(
            f"{layer!r} is too slow: matching it against {len(paths)} layers took more than {_SECONDS:g} s; {_CURE}"
        ) from error
    except OSError as error:
        raise TapError(f"{layer!r} cannot be matched: no process can be started ({error.strerror}); {_CURE}") from error
    if done.returncode:
        why = (done.stderr.strip().splitlines() or [f"the process ended with {done.returncode}"])[-1]
        raise TapError(f"{layer!r} cannot be matched against {len(paths)} layers ({why}); {_CURE}")
    found: list[str] = json.loads(done.stdout)
    return found


def _regex(layer: str) -> re.Pattern[str]:
    if layer == REGEX:
        raise ValueError(f"{layer!r}: expected a regular expression after `{REGEX}`")
    try:
        return re.compile(layer.removeprefix(REGEX))
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{layer!r} is not a regular expression: {error}") from error


def _glob(layer: str) -> re.Pattern[str]:
    blocks = [""]
    for part in layer.split("."):
        if part == "**":
            blocks.append("")
        elif "**" in part:
            raise ValueError(f"{layer!r}: `**` is only allowed alone between dots")
        else:
            first, *pieces = map(re.escape, part.split("*"))
            inner = "".join(rf"(?>[^.]*?{piece})" for piece in pieces[:-1] if piece)
            blocks[-1] += r"\." + first + inner + "".join(rf"[^.]*{piece}" for piece in pieces[-1:])
    # Text between two stars is matched at its first position, without backtracking: a later one never matches more.
    first, *others = blocks
    inner = "".join(rf"(?>(?:\.[^.]+)*?{block}(?=\.|\Z))" for block in others[:-1] if block)
    return re.compile(first + inner + "".join(rf"(?:\.[^.]+)*{block}" for block in others[-1:]))
