"""A real run on some of its images, with its output in a temporary folder."""

from __future__ import annotations

import dataclasses
import tempfile
import time
import uuid
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from layertap.contracts import FileSink, Observer, Sink, Source
from layertap.images.plan import Plan
from layertap.pipeline import fingerprint, walk
from layertap.pipeline.events import Events
from layertap.pipeline.first_images import of_one_size
from layertap.pipeline.prepare import Prepared
from layertap.pipeline.shards import default_rows
from layertap.pipeline.work import WholePlan
from layertap.pipeline.writer import Destination, FolderDestination, SinkDestination
from layertap.records import Batch, Report, RunInfo, Shard
from layertap.store.store import open_store, storage
from layertap.timing import Stopwatch


@dataclass(frozen=True, slots=True)
class Pass:
    """One run over the images, and the times at which it reached its steps.

    `seconds` is from the first image read to the last commit; `first_batch` to the first batch through the model;
    `closing` from the last commit to the finished output, with parts merged and the index written.
    """

    images: int
    seconds: float
    first_batch: float
    closing: float

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.images / self.seconds


class Trial:
    """A run that can be repeated, each time into a new folder below `folder`, which is removed afterwards."""

    def __init__(self, this: Prepared, folder: Path) -> None:
        self.this = this
        self._folder = folder

    def once(self) -> Pass:
        """The run, measured."""
        clock = _Clock()
        with self.output() as (sink, info, output):
            this = dataclasses.replace(self.this, sink=sink, events=Events([clock]), info=info)
            work = WholePlan(this.plan, info.shard_rows)
            walk.WalkHere(this, output, time.monotonic(), Stopwatch(), work).walk()
        return clock.read(self.this.plan.count)

    @contextmanager
    def output(self) -> Iterator[tuple[Sink, RunInfo, Destination]]:
        """An output like that of the run, but in another folder."""
        with tempfile.TemporaryDirectory(dir=self._folder) as place:
            config, path = self.this.config, Path(place) / "out"
            if not isinstance(self.this.sink, FileSink):
                yield _Nowhere(), self.this.info, SinkDestination(_Nowhere())
                return
            there = config.sink.model_copy(update={"params": {**config.sink.params, "path": str(path)}})
            sink = config.model_copy(update={"sink": there}).build("sink", self.this.plugins)
            assert isinstance(sink, FileSink)
            info = dataclasses.replace(self.this.info, id=uuid.uuid4().hex, path=path)
            manifest = fingerprint.manifest(dataclasses.replace(self.this, sink=sink, info=info))
            with open_store(path, sink, manifest) as store:
                yield sink, info, FolderDestination(store, self.this.plan)

    def changed(self, key: str, value: int) -> Trial:
        """The same run with another `batch_size` or another number of `workers`, and the same model."""
        this = self.this
        config = this.config.model_copy(update={key: value})
        if key == "workers":
            return Trial(dataclasses.replace(this, config=config, workers=value), self._folder)
        info = dataclasses.replace(this.info, batch_size=value, shard_rows=default_rows(this.info.columns, value))
        return Trial(dataclasses.replace(this, config=config, info=info), self._folder)


class _Clock(Observer):
    """Records the times at which a run reaches its steps."""

    def __init__(self) -> None:
        super().__init__()
        self._started = self._first = self._committed = self._finished = 0.0

    def run_started(self, run: RunInfo) -> None:
        self._started = time.perf_counter()

    def batch_done(self, run: RunInfo, count: int) -> None:
        self._first = self._first or time.perf_counter()

    def shard_committed(self, run: RunInfo, number: int) -> None:
        self._committed = time.perf_counter()

    def run_finished(self, run: RunInfo, report: Report | None, error: BaseException | None) -> None:
        self._finished = time.perf_counter()

    def read(self, images: int) -> Pass:
        return Pass(
            images,
            seconds=self._committed - self._started,
            first_batch=self._first - self._started,
            closing=self._finished - self._committed,
        )


class _Nowhere(Sink):
    """Replaces a sink that cannot be redirected to another folder."""

    def write(self, shard: Shard) -> None:
        """Nothing."""


def sampled(this: Prepared) -> Prepared:
    """The run with whole batches only, if there is at least one: a short batch costs more per image."""
    count, batch = this.plan.count, min(this.info.batch_size, this.plan.count)
    whole = count - count % batch
    source = this.config.build("source", this.plugins)
    assert isinstance(source, Source)
    plan = this.plan if whole == count else Plan(source, whole)
    info = dataclasses.replace(this.info, planned=plan.count, batch_size=batch)
    # Stages and baselines stack a batch, so images of another size than the first are left out.
    return dataclasses.replace(this, plan=plan, info=info, forward=of_one_size(this.forward))


def stream(this: Prepared, *, workers: int, stopwatch: Stopwatch | None = None) -> Generator[Batch, None, None]:
    """The batches of the run, made by the given number of workers."""
    return this.batches(this.plan.records(), stopwatch, workers=workers)


@contextmanager
def folder_beside(this: Prepared) -> Iterator[Path]:
    """A separate folder on the file system that the run would write to; it is removed afterwards."""
    place = None
    if this.info.path is not None:
        place = this.info.path.absolute().parent
        while not place.is_dir():
            place = place.parent
    with storage(place or Path(tempfile.gettempdir())):
        made = tempfile.TemporaryDirectory(prefix=".layertap-bench-", dir=place)
    with made as folder:
        yield Path(folder)


def settle(device: torch.device | None) -> None:
    """Wait until a device has finished its work."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device is not None and device.type == "mps":
        torch.mps.synchronize()
