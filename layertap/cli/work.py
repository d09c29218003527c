"""`layertap work`: a worker that joins a run through its output folder."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from layertap.cli.options import Own, own_plugins
from layertap.errors import FOREIGN, ConfigError, StoreError, UnsafeError
from layertap.pipeline.malloc import uncollected

if TYPE_CHECKING:
    from layertap.records import Job

# How often a worker looks whether its run has begun.
_LOOK_SECONDS = 0.2


def work(
    context: typer.Context,
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The output folder of a run that has an engine.")],
    plugin: Own = None,
    name: Annotated[str | None, typer.Option("--name", help="This worker's name; by default host and process.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="Where to compute, instead of CONFIG's.")] = None,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="How many decoding threads.")] = None,
    patience: Annotated[
        float, typer.Option("--patience", min=5, help="Seconds without a sign of the coordinator before giving up.")
    ] = 120.0,
    wait: Annotated[float, typer.Option("--wait", min=0, help="Seconds to wait for the run to begin.")] = 0.0,
    attached: Annotated[bool, typer.Option("--attached", hidden=True)] = False,
) -> None:
    """Join a run that is in progress, from any machine that sees its folder: compute shards until it is over."""
    from layertap.store.board import checked
    from layertap.store.paths import user_path

    if attached:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        name = checked(name or f"{socket.gethostname()}-{os.getpid()}")
    except ValueError as error:
        raise ConfigError(f"--name: {error}") from None
    job = _job(user_path(output), wait)
    _refuse_unnamed(job, own_plugins(context, plugin))
    with uncollected():
        from layertap.pipeline.worker import Worker

    with Worker(job, name, device=device, workers=workers) as worker:
        done = sum(1 for _ in worker.serve(patience))
    typer.echo(f"the run is over; this worker has computed {done} shards", err=True)


def _job(path: Path, wait: float) -> Job:
    """The job in the folder of an output, or in that of the one which is to replace it.

    Raises `StoreError` (6) where there is none after `wait` seconds.
    """
    from layertap.store.board import Board
    from layertap.store.replace import staging

    until = time.monotonic() + wait
    beside, here = Board(staging(path)), Board(path)
    while (found := beside if beside.pulse() is not None else here).pulse() is None and time.monotonic() < until:
        time.sleep(_LOOK_SECONDS)
    job = found.job()[0]
    if not os.path.isdir(job.folder):
        raise StoreError(
            f"{path}: the run calls this folder {job.folder}, which this machine does not have; every machine must see "
            "it under one path",
            code=FOREIGN,
        )
    return job


def _refuse_unnamed(job: Job, own: Sequence[str]) -> None:
    named = {os.path.abspath(each) if each.endswith(".py") else each for each in own}
    missing = [each for each in job.plugins if each not in named]
    if missing:
        options = " ".join(f"--plugin {each}" for each in missing)
        raise UnsafeError(f"this run uses plugins of somebody's own, which are code; to run them here, add {options}")


def _end_with_stdin() -> None:
    # Not through sys.stdin: Python aborts where it ends while a thread has the lock of that.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
