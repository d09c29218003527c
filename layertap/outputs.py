"""Where a run's shards go: a folder with commits, or a sink that looks after itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from layertap.contracts import Sink
from layertap.plugins import guard
from layertap.shards import Gathered
from layertap.store import Store


@dataclass(slots=True)
class Tally:
    """What has become of the images so far."""

    planned: int = 0
    shards: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    nonfinite: Counter[str] = field(default_factory=Counter)

    @property
    def failed(self) -> int:
        return self.reasons.total()


class Output(ABC):
    """The far end of the line."""

    stored = False

    def tally(self) -> Tally:
        """What earlier runs have written here already: the run goes on after it."""
        return Tally()

    @abstractmethod
    def write(self, gathered: Gathered) -> None:
        """Make a shard durable."""

    def finish(self, seconds: float) -> None:  # noqa: B027  (only a folder has anything left to do)
        """All shards are written."""


class FolderOutput(Output):
    """An output folder, with commits and resume."""

    stored = True

    def __init__(self, store: Store) -> None:
        self._store = store

    def tally(self) -> Tally:
        totals = self._store.totals()
        return Tally(totals.planned, self._store.committed, totals.reasons, totals.nonfinite)

    def write(self, gathered: Gathered) -> None:
        self._store.commit(gathered)

    def finish(self, seconds: float) -> None:
        self._store.finish({"seconds": round(seconds, 3)})


class SinkOutput(Output):
    """A sink without a folder of ours: nothing of it can be resumed."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def write(self, gathered: Gathered) -> None:
        with guard(self._sink):
            self._sink.write(gathered.shard)


class Writer:
    """Writes one shard beside the next forwards; what goes wrong is raised at the next call."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="layertap-write")
        self._pending: tuple[int, Future[None]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._pool.shutdown(wait=True)

    def put(self, gathered: Gathered) -> int | None:
        """Hand over a shard, once the one before is written: that one's number."""
        written = self.wait()
        self._pending = gathered.shard.number, self._pool.submit(self._output.write, gathered)
        return written

    def wait(self) -> int | None:
        """The number of the shard that was still being written, once it is; None where there was none."""
        if self._pending is None:
            return None
        number, future = self._pending
        self._pending = None
        future.result()
        return number
