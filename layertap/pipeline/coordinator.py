"""A run whose shards are computed by an engine's workers: each is made true here, once, in the order of the plan."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pydantic
import torch

from layertap.contracts import Engine
from layertap.errors import LayertapError
from layertap.images.plan import Plan
from layertap.pipeline import limits
from layertap.pipeline.first_images import LOOK
from layertap.pipeline.sent import sent
from layertap.pipeline.walk import Walk
from layertap.plugins import guard
from layertap.records import Failure, ImageRecord, Job, Planned, Receipt, RunInfo, WorkerReport
from layertap.store import replace
from layertap.store.attempts import Attempts
from layertap.store.board import Board
from layertap.store.commits import Commit
from layertap.store.store import Store, storage
from layertap.store.tally import Tally

# How long what is ready may wait for more.
_COMMIT_SECONDS = 0.1

# How often an engine may end without a receipt, with shards still missing.
_MOST_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Coordinated(Walk):
    """A run that an engine's workers compute. `holds` says whether a record is one of the plan."""

    store: Store
    engine: Engine
    holds: Callable[[Commit], bool]

    def extract(self, info: RunInfo, tally: Tally) -> None:
        """Let the engine work, and commit what it brings; receipts that an earlier run left come first."""
        path = self.store.path
        board, attempts = Board(path), Attempts(path)
        with storage(path):
            attempts.begin()
        job = self._job()
        shards = _Shards(self.run.plan, info.shard_rows, path, board, job.directory, tally.shards)
        adoption = _Adoption(self, info, tally, shards, attempts, board, job)
        with storage(path):
            try:
                board.open(job, sent(islice(self.run.plan.records(), LOOK), job.directory))
                for receipt in attempts.receipts():
                    adoption.receive(receipt)
                adoption.commit()
                self._collect(job, shards, adoption, info)
            except BaseException:
                # The next run adopts the receipts.
                replace.discard_attempts(path, keep_receipts=True)
                raise
            replace.discard_attempts(path)

    def _collect(self, job: Job, shards: _Shards, adoption: _Adoption, info: RunInfo) -> None:
        rounds = 0
        while not shards.is_complete:
            before = shards.committed
            with closing(_brought(self.engine, job, shards)) as brought:
                for each in brought:
                    if isinstance(each, WorkerReport):
                        adoption.commit()
                        self.run.events.worker_reported(info, each)
                    else:
                        adoption.receive(each)
                    if shards.is_complete:
                        break
            adoption.commit()
            shards.lost()
            rounds = 0 if shards.committed > before else rounds + 1
            if rounds >= _MOST_ROUNDS:
                raise LayertapError(
                    f"the engine {info.device} has ended {rounds} times without a receipt, and shard "
                    f"{shards.committed} is missing"
                )

    def _job(self) -> Job:
        this, manifest = self.run, self.store.manifest
        # The folder of an output that replaces another one is beside it. Its absolute path need not be UTF-8.
        config = {**this.info.config, "sink": {**this.info.config["sink"], "path": os.path.relpath(self.store.path)}}
        return Job(
            run=manifest.run,
            folder=os.path.realpath(self.store.path),
            logs=f"{os.path.realpath(this.info.path or self.store.path)}.logs",
            directory=os.getcwd(),
            config=config,
            manifest=manifest.model_dump(mode="json"),
            threads=torch.get_num_threads(),
            plugins=tuple(os.path.abspath(own) if own.endswith(".py") else own for own in this.plugins.own),
        )


def _brought(engine: Engine, job: Job, shards: _Shards) -> Generator[Receipt | WorkerReport, None, None]:
    """What the engine brings, in a generator that closes it whatever it returns."""
    with guard(engine):
        yield from engine.run(job, shards)


class _Shards(Iterator[int]):
    """The numbers of the shards to compute, each posted as it is drawn. More may follow after the last one."""

    def __init__(self, plan: Plan, rows: int, output: Path, board: Board, directory: str, first: int) -> None:
        self.committed = first
        self._output = output
        self._plan = plan
        self._rows = rows
        self._board = board
        self._directory = directory
        self._total = -(-plan.count // rows)
        self._next = first
        self._stream = plan.records(first * rows)
        self._again: deque[int] = deque()
        self.received: dict[int, tuple[Receipt, Commit, Path]] = {}
        """The shards that wait for one before them."""

    @property
    def is_complete(self) -> bool:
        return self.committed == self._total

    @property
    def is_received(self) -> bool:
        """Whether no shard is missing."""
        return self.committed + len(self.received) == self._total

    def is_wanted(self, number: int) -> bool:
        """Whether there is no receipt for a shard."""
        return self.committed <= number < self._total and number not in self.received

    def __next__(self) -> int:
        while self._again:
            number = self._again.popleft()
            if self.is_wanted(number):
                first = number * self._rows
                self._post(number, self._plan.records(first, first + self._rows))
                return number
        while self._next < self._total:
            number, self._next = self._next, self._next + 1
            records = list(islice(self._stream, self._rows))
            if self.is_wanted(number):
                self._post(number, records)
                return number
        raise StopIteration

    def _post(self, number: int, records: Iterable[Planned]) -> None:
        with storage(self._output):  # an engine draws numbers, and a full disk is not a fault of its own
            self._board.post(number, sent(records, self._directory))

    def lost(self) -> None:
        """Hand out once more what has been handed out and has no receipt: the engine has ended."""
        self._again.clear()
        self._again.extend(filter(self.is_wanted, range(self.committed, self._next)))

    def again(self, number: int) -> None:
        """Hand out a shard once more."""
        self._again.append(number)


class _Adoption:
    """Receipts -> commits, several at once where they come fast: most of a commit's time is waiting for the disk."""

    def __init__(
        self,
        walk: Coordinated,
        info: RunInfo,
        tally: Tally,
        shards: _Shards,
        attempts: Attempts,
        board: Board,
        job: Job,
    ) -> None:
        self.walk = walk
        self.info = info
        self.tally = tally
        self.shards = shards
        self.attempts = attempts
        self.board = board
        self.job = job
        self._since = time.monotonic()

    def receive(self, receipt: Receipt) -> None:
        """Check a receipt, and commit what is complete by now. One that is not this run's, or late, is dropped."""
        held = self.shards.received.get(receipt.shard)
        if held is not None and held[0].attempt == receipt.attempt:
            return
        if receipt.run != self.job.run or not self.shards.is_wanted(receipt.shard):
            self.attempts.discard(receipt.attempt)
            return
        record = _parsed(receipt)
        part = self.walk.store.commits.part(receipt.shard)
        folder = self.attempts.found(record, receipt.attempt, part) if record and self._is_planned(record) else None
        if record is None or folder is None or self._is_another_kind(receipt):
            self.attempts.discard(receipt.attempt)
            self.shards.again(receipt.shard)
            return
        self.shards.received[receipt.shard] = receipt, record, folder
        # A receipt is durable: what is not committed yet is not lost.
        if time.monotonic() - self._since > _COMMIT_SECONDS or self.shards.is_received:
            self.commit()

    def commit(self) -> None:
        """Make every shard true that has all shards before it."""
        self._since = time.monotonic()
        ready: list[tuple[Receipt, Commit, Path]] = []
        try:
            while (following := self.shards.received.get(self.shards.committed + len(ready))) is not None:
                self._count(*following[:2])
                ready.append(following)
        finally:
            if ready:
                self._adopt(ready)

    def _adopt(self, ready: Sequence[tuple[Receipt, Commit, Path]]) -> None:
        written = [(record, folder, self.attempts.receipt(receipt.attempt)) for receipt, record, folder in ready]
        self.walk.store.adopt(written)
        for receipt, record, _ in ready:
            self.attempts.forget(receipt.attempt)
            self.board.forget(receipt)
            del self.shards.received[record.shard]
            self.shards.committed += 1
            self.walk.run.events.batch_done(self.info, record.planned)
            self.walk.run.events.shard_committed(self.info, record.shard)

    def _is_planned(self, record: Commit) -> bool:
        rows, plan = self.info.shard_rows, self.walk.run.plan
        failed = {failure.id for failure in record.failures}
        return (
            record.first == record.shard * rows
            and record.planned == min(rows, plan.count - record.first)
            and self.walk.holds(record)
            and record.source == plan.digest_of(record.first, record.planned, failed)
        )

    def _count(self, receipt: Receipt, record: Commit) -> None:
        """Count what has become of a shard's images. Raises `ImageError` where that stops the run."""
        tally = self.tally
        record.count_into(tally)
        tally.batches += receipt.batches
        tally.forwards += receipt.forwards
        for stage, seconds in receipt.seconds.items():
            self.walk.stopwatch.add(stage, seconds)
        failures = (Failure(ImageRecord(each.id, b""), each.stage, each.reason) for each in record.failures)
        self.walk.report_failures(failures, self.info, tally)
        if self.walk.run.config.nonfinite == "fail":
            limits.refuse_nonfinite_shard(record)

    def _is_another_kind(self, receipt: Receipt) -> bool:
        """Whether another kind of processor computed it than the first shard. The first receipt says which that is.

        Workers that began before then look at the board before they write, and are refused.
        """
        if self.walk.run.config.processors == "any":
            return False
        store = self.walk.store
        found: dict[str, Any] = {"device": receipt.device, "processor": dict(receipt.processor)}
        if "processor" not in store.manifest.fingerprint:
            store.computed_on(found)
            self.board.change(store.manifest.model_dump(mode="json"))
        return bool(store.manifest.different_in(found))


def _parsed(receipt: Receipt) -> Commit | None:
    try:
        record = Commit.model_validate(dict(receipt.record))
    except pydantic.ValidationError:
        return None
    return record if record.shard == receipt.shard else None
