"""Where a worker's shards go: each into an attempt of its own, with a receipt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from layertap.contracts import FileSink
from layertap.errors import FOREIGN, StoreError, within
from layertap.images.plan import digest_of
from layertap.pipeline.prepare import Prepared
from layertap.pipeline.writer import Destination
from layertap.plugins import guard
from layertap.records import Batch, Gathered, Job, Planned, Receipt
from layertap.store.attempts import Attempts
from layertap.store.board import Board, Task
from layertap.store.commits import Commit
from layertap.store.store import storage
from layertap.timing import Stopwatch


class RunOver(StoreError):
    """The run has ended, or another one has its folder."""

    code = FOREIGN


class AttemptDestination(Destination):
    """The attempts of one worker in one line."""

    stored = True

    def __init__(
        self,
        job: Job,
        worker: str,
        this: Prepared,
        facts: Mapping[str, Any],
        board: Board,
        stopwatch: Stopwatch,
    ) -> None:
        self._job = job
        self._worker = worker
        self._this = this
        self._facts = facts
        self._board = board
        self._begun: dict[int, tuple[str, list[tuple[str, str | None]]]] = {}
        self._left: dict[int, Receipt] = {}
        self._stopwatch = stopwatch
        self._folder = Path(job.folder)
        self._attempts = Attempts(self._folder)
        self._told: dict[str, float] = {}
        self._batches = self._forwards = 0

    def begin(self, task: Task, planned: Iterable[Planned]) -> Iterator[Planned]:
        """The images of a shard that is about to be computed."""
        entries = list[tuple[str, str | None]]()
        self._begun[task.shard] = task.attempt, entries
        for each in planned:
            entries.append((each.record.id, each.stamp))
            yield each

    def left(self, number: int) -> Receipt:
        """The receipt of a shard that has been written."""
        return self._left.pop(number)

    def count(self, batch: Batch) -> None:
        """Count a batch that has been through the model."""
        self._batches += 1
        self._forwards += len(batch.groups())

    def write(self, gathered: Gathered) -> None:
        shard, sink = gathered.shard, self._this.sink
        assert isinstance(sink, FileSink)
        attempt, entries = self._begun.pop(shard.number)
        failed = {failure.record.id for failure in gathered.failures}
        with self._while_it_runs(), guard(sink), storage(self._folder), within("sink"):
            files = self._attempts.save(attempt, lambda folder: sink.save(shard, folder))
        mixed = self._this.config.processors == "any"
        record = Commit.of(gathered, digest_of(entries, failed), files, self._facts["processor"] if mixed else None)
        spent, (batches, forwards) = self._spent(), (self._batches, self._forwards)
        self._batches = self._forwards = 0
        receipt = Receipt(
            self._job.run,
            shard.number,
            attempt,
            self._worker,
            record.model_dump(),
            seconds=spent,
            batches=batches,
            forwards=forwards,
            **self._facts,
        )
        with self._while_it_runs(), storage(self._folder):
            self._attempts.leave(receipt)
        self._left[shard.number] = receipt

    def _spent(self) -> dict[str, float]:
        now = self._stopwatch.seconds
        found = {stage: round(seconds - self._told.get(stage, 0.0), 3) for stage, seconds in now.items()}
        self._told = now
        return found

    @contextmanager
    def _while_it_runs(self) -> Iterator[None]:
        """Raise `RunOver` where the run is over before the block, or ends in it and removes what is being written."""
        self._refuse_over()
        try:
            yield
        except StoreError:
            self._refuse_over()
            raise

    def _refuse_over(self) -> None:
        """Raise `RunOver` if it is: the run of another output may have the folder by now."""
        try:
            job, _ = self._board.job()
        except StoreError:
            job = None
        if job is None or job.run != self._job.run:
            raise RunOver(f"{self._folder}: the run that this worker computed for is over")
        # The first shard may have come from another kind of processor after this worker had begun.
        wanted = job.manifest["fingerprint"]
        if wanted.get("processor", "any") not in ("any", self._facts["processor"]):
            raise StoreError(
                f"the worker {self._worker} has another kind of processor than the first shard's: "
                f"{self._facts['processor']}, not {wanted['processor']}; or set processors=any",
                code=FOREIGN,
            )
