"""A worker: one process that computes whole shards of a run which another process coordinates."""

from __future__ import annotations

import dataclasses
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from layertap.config.loading import load_config
from layertap.contracts import FileSink, Source
from layertap.errors import FOREIGN, StoreError, within
from layertap.images.plan import Plan
from layertap.pipeline import fingerprint
from layertap.pipeline.attempting import AttemptDestination, RunOver
from layertap.pipeline.line import Done, computed
from layertap.pipeline.prepare import prepared
from layertap.pipeline.sent import SentPlan, received
from layertap.pipeline.signs import Signs
from layertap.pipeline.writer import Writer
from layertap.plugins import Plugins, guard
from layertap.records import Job, Planned, Receipt
from layertap.store.board import Board, SentRecord, Task
from layertap.store.manifest import FILES, Manifest
from layertap.store.store import storage
from layertap.timing import Stopwatch

# How often a worker without a shard looks for one.
_LOOK_SECONDS = 0.1


class Worker:
    """Computes shards of the run that `job` describes, in this process, which is then its own.

    Entering it builds the run: the model on `device` (by default the configuration's), with `workers` decoding threads.
    `name` tells it from the other workers of the run. Raises `StoreError` (6) where it would compute otherwise than the
    run, with what differs: another version, weight file, number of threads or kind of processor.
    """

    def __init__(self, job: Job, name: str, *, device: str | None = None, workers: int | None = None) -> None:
        self.job = job
        self.name = name
        self._wishes = {key: value for key, value in (("device", device), ("workers", workers)) if value is not None}
        self._board = Board(Path(job.folder))
        self._signs = Signs(self._board, name)
        self._stack = ExitStack()
        self._listing: _Listing | None = None

    def __enter__(self) -> Self:
        with self._signs.failing():
            self._stack.enter_context(self._signs)
            try:
                self._build()
            except BaseException:
                self._stack.close()
                raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()

    def compute(self, numbers: Iterable[int]) -> Iterator[Receipt]:
        """The receipts for shards, in order. Each number is drawn while the images before it are computed.

        A shard that another worker has taken in the meantime is left out.
        """
        return self._compute(task for number in numbers if (task := self._claim(number)))

    def serve(self, patience: float) -> Iterator[Receipt]:
        """The receipts for every shard that is free, until the run is over.

        Raises `StoreError` where the coordinator has given no sign of life for `patience` seconds.
        """
        pulse, since = self._board.pulse(), time.monotonic()
        while (found := self._board.pulse()) is not None:
            if found != pulse:
                pulse, since = found, time.monotonic()
            elif time.monotonic() - since > patience:
                raise StoreError(f"{self.job.folder}: the coordinator has given no sign of life for {patience:.0f} s")
            # Drawing waits for nothing: a shard that is read to its end must not wait for the next one.
            try:
                yield from self._compute(iter(self._take, None))
            except RunOver:
                return
            self._signs.waiting()
            time.sleep(_LOOK_SECONDS)

    def _claim(self, number: int) -> Task | None:
        with storage(Path(self.job.folder)):
            return self._board.claim(number, self.name)

    def _take(self) -> Task | None:
        with storage(Path(self.job.folder)):
            return self._board.take(self.name, self._signs.computing)

    def _build(self) -> None:
        self._enter_directory()
        found = Manifest.model_validate(self.job.manifest)
        plugins = Plugins.load(self.job.plugins)
        as_run: dict[str, Any] = {"engine": None, "observers": [], "threads": self.job.threads, **self._wishes}
        as_run |= {"batch_size": found.batch_size, "shard_rows": found.shard_rows}
        config = load_config(dict(self.job.config), as_run, plugins)
        first = self._board.job()[1]
        this = self._stack.enter_context(prepared(config, plugins, listed=partial(_plan, found, first)))
        mine = fingerprint.manifest(this)
        if changed := found.different(mine):
            raise StoreError(
                f"the worker {self.name} on {socket.gethostname()} would compute otherwise than the run: "
                f"{'; '.join(changed)}",
                code=FOREIGN,
            )
        sink = this.sink
        assert isinstance(sink, FileSink)
        sink.stems = {name: tap.file for name, tap in found.taps.items()}
        with within("sink"), guard(sink):
            sink.open(dataclasses.replace(this.info, id=self.job.run, path=Path(self.job.folder)))
        self._config, self._plugins, self._found = config, plugins, found
        self._this = this
        self._signs.device = this.info.device
        self._facts = {"device": this.forward.device.type, "processor": fingerprint.computed_by(this)}
        self._signs.waiting()

    def _enter_directory(self) -> None:
        try:
            os.chdir(self.job.directory)
        except OSError as error:
            raise StoreError(
                f"{self.job.directory}: {error.strerror}; the run was started in this folder, where its relative paths "
                "begin, so that every worker needs it",
                code=FOREIGN,
            ) from error

    def _compute(self, tasks: Iterator[Task]) -> Iterator[Receipt]:
        with self._signs.failing():
            # The plan's last shard may end in a short batch, after which a new line has to begin.
            while (task := next(tasks, None)) is not None:
                yield from self._line(task, tasks)

    def _line(self, first: Task, tasks: Iterator[Task]) -> Iterator[Receipt]:
        """The receipts for `first` and the following tasks, up to the plan's last shard, in one line."""
        this, stopwatch = self._this, Stopwatch()
        info, drawn = this.info, list[int]()
        output = AttemptDestination(self.job, self.name, this, self._facts, self._board, stopwatch)

        def planned() -> Iterator[Planned]:
            task: Task | None = first
            while task is not None:
                drawn.append(task.shard)
                self._signs.begun(task.shard)
                yield from output.begin(task, self._records(task))
                if (task.shard + 1) * info.shard_rows >= info.planned:
                    return
                task = next(tasks, None)

        def numbers() -> Iterator[int]:
            place = 0
            while True:
                yield drawn[place]
                place += 1

        line = computed(this, planned(), numbers, partial(self._watched, output), stopwatch)
        with closing(line), Writer(output, stopwatch) as writer:
            for gathered in line:
                yield from self._left(writer.put(gathered), output)
            yield from self._left(writer.wait(), output)

    def _watched(self, output: AttemptDestination, done: Iterable[Done]) -> Iterator[Done]:
        for batch, activations in done:
            self._signs.images += len(batch.records)
            output.count(batch)
            yield batch, activations

    def _left(self, number: int | None, output: AttemptDestination) -> Iterator[Receipt]:
        if number is not None:
            self._signs.done(number)
            yield output.left(number)

    def _records(self, task: Task) -> Iterator[Planned]:
        if task.records is not None:
            return iter(received(task.records))
        if self._listing is None:
            self._listing = _Listing(self._listed(), self._found.shard_rows)
        return self._listing.records(task.shard)

    def _listed(self) -> Plan:
        """The plan where it is not sent. Raises `StoreError` (6) where the source gives other images here."""
        if not isinstance(self._this.plan, SentPlan):
            return self._this.plan
        source = self._config.build("source", self._plugins)
        assert isinstance(source, Source)
        with self._config.at():
            plan = Plan(source, self._config.limit)
        if changed := self._found.different_in({"images": plan.count, "ids": plan.digest, FILES: plan.contents}):
            raise StoreError(
                f"the worker {self.name}: its source gives other images: {'; '.join(changed)}", code=FOREIGN
            )
        return plan


class _Listing:
    """The records of shards from a source that is listed once, as long as their numbers rise."""

    def __init__(self, plan: Plan, rows: int) -> None:
        self._plan = plan
        self._rows = rows
        self._place = 0
        self._stream = plan.records()

    def records(self, number: int) -> Iterator[Planned]:
        first = number * self._rows
        if first < self._place:
            self._place, self._stream = 0, self._plan.records()
        for _ in islice(self._stream, first - self._place):
            pass
        self._place = first + self._rows
        return islice(self._stream, self._rows)


def _plan(found: Manifest, first: Sequence[SentRecord] | None, source: Source, limit: int | None) -> Plan:
    if first is None:
        return Plan(source, limit)
    known: Mapping[str, Any] = found.fingerprint
    return SentPlan(found.planned, str(known.get("ids")), str(known.get(FILES)), first)
