"""Runs that are killed, really and without a chance to tidy up, in the middle of what a sink does.

`python -m layertap.testing.killed` is a process of its own: the sink's module is imported in it afresh.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layertap.contracts import FileSink
from layertap.testing import trial

if TYPE_CHECKING:
    from layertap.records import Shard

_PATIENCE = 120.0


def moments(cls: type[FileSink]) -> list[str]:
    """When a run is killed: with a shard saved and not committed, and with all of them merged and not renamed."""
    return ["save", "merge"] if cls.merge is not FileSink.merge else ["save"]


def run_until_killed(sink: FileSink, path: Path) -> str | None:
    """Run into `path`, killed at one moment after the other. What went otherwise; None where nothing did."""
    import torch

    cls = type(sink)
    if "<locals>" in cls.__qualname__:
        return f"{cls.__qualname__} stands inside a function; put it at the top of its module"
    job = {
        "moments": moments(cls),
        "module": cls.__module__,
        "name": cls.__qualname__,
        "sink": trial.spec(sink, path=str(path)),
        "threads": torch.get_num_threads(),
    }
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "layertap.testing.killed", json.dumps(job)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=_PATIENCE)
    said = (done.stdout + done.stderr).strip()
    return said[-500:] or f"its process ended with {done.returncode}" if done.returncode else None


def deadly(cls: type[FileSink], moment: str) -> type[FileSink]:
    """The sink, whose process ends once the third shard is saved, or the parts are merged."""

    class Deadly(cls):  # type: ignore[misc, valid-type]
        def save(self, shard: Shard, folder: Path) -> None:
            super().save(shard, folder)
            if moment == "save" and shard.number == 2:
                _die()

    def merge(self: FileSink, parts: Sequence[Path], folder: Path) -> None:
        cls.merge(self, parts, folder)
        if moment == "merge":
            _die()

    if "merge" in moments(cls):
        Deadly.merge = merge
    return Deadly


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _main(job: dict[str, Any]) -> None:
    import torch

    torch.set_num_threads(job["threads"])  # a part of what a resumed run must meet
    found: Any = importlib.import_module(job["module"])
    for name in job["name"].split("."):
        found = getattr(found, name)
    for moment in job["moments"]:
        plugins = trial.tables(sink=deadly(found, moment))
        # Forked, because every new process would have to import torch; this one has no other thread.
        child = os.fork()
        if not child:
            try:
                trial.run(plugins, job["sink"])
            finally:
                traceback.print_exc()
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status != -signal.SIGKILL:
            sys.exit(f"it ended with {status} before it could be killed in {moment}()")


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
