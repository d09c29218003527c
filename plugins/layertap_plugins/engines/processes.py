"""What the engines have in common that start processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

REFUSED = 6
"""The exit code of a worker that would compute otherwise than the run: another one would be refused too."""


def environment(**more: str) -> dict[str, str]:
    """The environment of this process, in which another one finds the same modules, and `more`."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **more}


def plugin_options(plugins: Iterable[str]) -> list[str]:
    """The options of `layertap work` that name the user's own plugins."""
    return [word for plugin in plugins for word in ("--plugin", plugin)]


def how_it_ended(code: int) -> str:
    """A process's exit code in words."""
    return f"ended with exit code {code}" if code >= 0 else f"was killed by signal {-code}"


def log_of(logs: Path, worker: str) -> str:
    """The log of a worker in that folder; empty where there is none."""
    path = logs / f"{worker}.log"
    return str(path) if path.exists() else ""


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
