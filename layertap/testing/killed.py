"""Runs that are killed with a real signal, without a chance to clean up, in the middle of a sink's work.

`python -m layertap.testing.killed` is a separate process, which imports the sink's module again.
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

_TIMEOUT = 120.0


def moments(cls: type[FileSink]) -> list[str]:
    """When a run is killed: after a shard is saved but not committed, and after all are merged but not renamed."""
    return ["save", "merge"] if cls.merge is not FileSink.merge else ["save"]


def run_until_killed(sink: FileSink, path: Path) -> str | None:
    """Run into `path`, killed at each moment in turn. The unexpected outcome; None if there was none."""
    import torch

    cls = type(sink)
    if "<locals>" in cls.__qualname__:
        return f"{cls.__qualname__} is defined inside a function; move it to the top level of its module"
    job = {
        "moments": moments(cls),
        "module": cls.__module__,
        "name": cls.__qualname__,
        "sink": trial.spec(sink, path=str(path)),
        "threads": torch.get_num_threads(),
    }
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "layertap.testing.killed", json.dumps(job)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=_TIMEOUT)
    said = (done.stdout + done.stderr).strip()
    return said[-500:] or f"its process ended with {done.returncode}" if done.returncode else None


def killed_at(cls: type[FileSink], moment: str) -> type[FileSink]:
    """A sink that kills its process after the third shard is saved, or after the parts are merged."""

    class Killed(cls):  # type: ignore[misc, valid-type]
        def save(self, shard: Shard, folder: Path) -> None:
            super().save(shard, folder)
            if moment == "save" and shard.number == 2:
                _kill_this_process()

    def merge(self: FileSink, parts: Sequence[Path], folder: Path) -> None:
        cls.merge(self, parts, folder)
        if moment == "merge":
            _kill_this_process()

    if "merge" in moments(cls):
        Killed.merge = merge
    return Killed


def _kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _main(job: dict[str, Any]) -> None:
    import torch

    torch.set_num_threads(job["threads"])  # a resumed run must have the same number of threads
    found: Any = importlib.import_module(job["module"])
    for name in job["name"].split("."):
        found = getattr(found, name)
    for moment in job["moments"]:
        plugins = trial.tables(sink=killed_at(found, moment))
        # Forked, because a new process would have to import torch; this process has no other threads.
        child = os.fork()
        if not child:
            try:
                trial.run(plugins, job["sink"])
            finally:
                traceback.print_exc()
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status != -signal.SIGKILL:
            sys.exit(f"the process ended with {status} before it could be killed in {moment}()")


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
