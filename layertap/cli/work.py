"""A worker that joins a run through its output folder."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from layertap.errors import ConfigError, UnsafeError
from layertap.jobs import Job
from layertap.pipeline.worker import Worker
from layertap.store.board import Board, checked
from layertap.store.paths import user_path
from layertap.store.replace import staging


def joined(
    output: Path,
    own: Sequence[str],
    name: str | None,
    *,
    device: str | None,
    workers: int | None,
    patience: float,
    attached: bool,
) -> int:
    """How many shards this process has computed by the time the run is over.

    `attached` ends the process when its standard input is closed, as it is when the process at the other end dies.
    Raises `UnsafeError` (8) where the run uses plugin files that are not in `own`.
    """
    if attached:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        name = checked(name or f"{socket.gethostname()}-{os.getpid()}")
    except ValueError as error:
        raise ConfigError(f"--name: {error}") from None
    job = _job(user_path(output))
    _refuse_unnamed(job, own)
    with Worker(job, name, device=device, workers=workers) as worker:
        return sum(1 for _ in worker.serve(patience))


def _job(path: Path) -> Job:
    """The job in the folder of an output, or in that of the one which is to replace it."""
    beside = Board(staging(path))
    return (beside if beside.pulse() is not None else Board(path)).job()[0]


def _refuse_unnamed(job: Job, own: Sequence[str]) -> None:
    named = {os.path.abspath(each) if each.endswith(".py") else each for each in own}
    missing = [each for each in job.plugins if each not in named]
    if missing:
        options = " ".join(f"--plugin {each}" for each in missing)
        raise UnsafeError(f"this run uses plugins of somebody's own, which are code; to run them here, add {options}")


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)
