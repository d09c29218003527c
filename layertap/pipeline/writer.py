"""Where a run's shards go: a folder with commits, or a sink that manages its own storage."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from layertap.contracts import Sink
from layertap.errors import within
from layertap.images.plan import Plan
from layertap.pipeline.malloc import uncollected
from layertap.plugins import guard
from layertap.records import Gathered
from layertap.store.store import Store
from layertap.store.tally import Tally
from layertap.timing import Stopwatch


class Destination(ABC):
    """The end of the line of a run."""

    stored = False
    remarks: Sequence[str] = ()
    """Sentences for the report: what a user should know about an earlier output here."""

    def tally(self) -> Tally:
        """What earlier runs have already written here: the run resumes after it."""
        return Tally()

    @abstractmethod
    def write(self, gathered: Gathered) -> None:
        """Make a shard durable."""

    def finish(self, seconds: float, stopwatch: Stopwatch) -> None:  # noqa: B027  (only a folder has anything left)
        """All shards are written."""


class FolderDestination(Destination):
    """An output folder, with commits and resume."""

    stored = True

    def __init__(self, store: Store, plan: Plan, unknown: Sequence[str] = ()) -> None:
        """`unknown` are the facts that an older version did not record about the shards written before this run."""
        self._store = store
        self._plan = plan
        if unknown:
            self.remarks = [
                "an older version of layertap began this output and did not record its "
                f"{', '.join(unknown)}: whether these rows were computed in the same way is not known"
            ]

    def tally(self) -> Tally:
        return self._store.tally()

    def write(self, gathered: Gathered) -> None:
        failed = {failure.record.id for failure in gathered.failures}
        self._store.commit(gathered, self._plan.digest_of(gathered.first, gathered.planned, without=failed))

    def finish(self, seconds: float, stopwatch: Stopwatch) -> None:
        timing = {stage: round(spent, 3) for stage, spent in stopwatch.seconds.items()}
        remarks = list(self._plan.remarks)
        # The records of ten million rows have no cycles: looking for some takes a third of the time.
        with uncollected():
            self._store.finish({"seconds": round(seconds, 3), "timing": timing, "remarks": remarks})


class SinkDestination(Destination):
    """A sink without an output folder: it cannot be resumed."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def write(self, gathered: Gathered) -> None:
        with within("sink"), guard(self._sink):
            self._sink.write(gathered.shard)


class Writer:
    """Writes one shard during the next forwards; an error is raised at the next call."""

    def __init__(self, output: Destination, stopwatch: Stopwatch) -> None:
        self._output = output
        self._stopwatch = stopwatch
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="layertap-write")
        self._pending: tuple[int, Future[None]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._pool.shutdown(wait=True)

    def put(self, gathered: Gathered) -> int | None:
        """Hand over a shard, once the one before is written: that one's number."""
        written = self.wait()
        self._pending = gathered.shard.number, self._pool.submit(self._write, gathered)
        return written

    def wait(self) -> int | None:
        """The number of the shard that was still being written, once it is; None where there was none."""
        if self._pending is None:
            return None
        number, future = self._pending
        self._pending = None
        future.result()
        return number

    def _write(self, gathered: Gathered) -> None:
        with self._stopwatch.measure("write"):
            self._output.write(gathered)
