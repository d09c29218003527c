"""What travels between the coordinator of a run and its workers: the job, receipts, and reports of progress.

All of it is plain data: an engine may pickle it, or pass it on as JSON.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

WorkerState: TypeAlias = Literal["starting", "computing", "waiting", "left", "refused", "failed", "lost"]


@dataclass(frozen=True, slots=True)
class Job:
    """A run, as data from which a worker builds it again.

    `run` is the id of the run that began the output, `folder` the path of the output, which every worker must see under
    this name, and `directory` the working directory that relative paths refer to. `manifest` holds what a worker must
    meet: the fingerprint, the batch size, the rows of a shard. `threads` is torch's number of threads. `plugins` names
    the user's own plugin files.
    """

    run: str
    folder: str
    directory: str
    config: Mapping[str, Any]
    manifest: Mapping[str, Any]
    threads: int
    plugins: tuple[str, ...] = ()

    def data(self) -> dict[str, Any]:
        """The job as JSON can hold it."""
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Job:
        """The job that `data` gave."""
        return cls(**{**data, "plugins": tuple(data["plugins"])})


@dataclass(frozen=True, slots=True)
class Receipt:
    """The proof that a worker has computed a shard and made its files durable.

    The files are in the folder `attempts/ATTEMPT` of the output, and `record` is the commit record for them. The rows
    themselves never travel. `device` and `processor` say what computed them, `seconds` where the time went.
    """

    run: str
    shard: int
    attempt: str
    worker: str
    record: Mapping[str, Any]
    device: str
    processor: Mapping[str, Any]
    seconds: Mapping[str, float] = field(default_factory=dict)
    batches: int = 0
    forwards: int = 0


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """What a worker is doing: `images` done so far, at `rate` images per second, the `shard` in progress.

    `error` is what it ended with, in one line, and `code` that error's exit code; `log` is the file with what it
    printed, where there is one.
    """

    worker: str
    state: WorkerState
    host: str = ""
    pid: int = 0
    device: str = ""
    shard: int | None = None
    images: int = 0
    rate: float = 0.0
    error: str = ""
    code: int = 0
    log: str = ""
