"""One run from its first image to its report."""

from __future__ import annotations

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

from layertap.contracts import Sink
from layertap.errors import LayertapError, within
from layertap.pipeline import limits, malloc
from layertap.pipeline.prepare import Prepared
from layertap.pipeline.shards import gather
from layertap.pipeline.work import Work
from layertap.pipeline.writer import Destination, Writer
from layertap.plugins import guard
from layertap.records import Activations, Batch, Report, RunInfo
from layertap.store.tally import Tally
from layertap.timing import Stopwatch


@dataclass(frozen=True, slots=True)
class Walk(ABC):
    """One run from its first image to its report."""

    run: Prepared
    output: Destination
    started: float
    stopwatch: Stopwatch

    def walk(self) -> Report:
        """Extract what is not there yet, finish the output, and tell sink and observers. Raises what ends the run."""
        sink, events, tally = self.run.sink, self.run.events, self.output.tally()
        info = dataclasses.replace(self.run.info, resumed=tally.planned)
        with within("sink"), guard(sink):
            sink.open(info)
        try:
            with _aborted(sink):
                events.run_started(info)
                self.extract(info, tally)
                seconds = time.monotonic() - self.started
                self.output.finish(seconds, self.stopwatch)
                extracting = seconds - self.stopwatch.seconds.get("start", 0.0)
                report = report_of(self.run, info, tally, self.output, seconds, extracting=extracting)
            with within("sink"), guard(sink):
                sink.close(report)
        except BaseException as error:
            events.run_finished(info, None, error)
            raise
        events.run_finished(info, report, None)
        return report

    @abstractmethod
    def extract(self, info: RunInfo, tally: Tally) -> None:
        """Write every shard after those in `tally`, and count them there."""


@dataclass(frozen=True, slots=True)
class WalkHere(Walk):
    """A run that computes in this process."""

    work: Work

    def extract(self, info: RunInfo, tally: Tally) -> None:
        """Each batch through the model; a shard is written during the next forwards."""
        forward, events, work, first = self.run.forward, self.run.events, self.work, tally.shards
        stream = self.run.batches(work.planned(first), self.stopwatch)
        size = info.shard_rows // info.batch_size
        places = (place for number in work.numbers(first) for place in range(number * size, (number + 1) * size))
        computing = forward.activations(stream, info.columns, self.stopwatch, numbers=places)
        activations = malloc.keeping(computing)
        with closing(stream), closing(activations), Writer(self.output, self.stopwatch) as writer:
            done = self._watched(activations, info, tally)
            computed = gather(done, info.columns, min(info.shard_rows, info.planned), work.numbers(first))
            for gathered in work.shards(computed, first):
                if not work.is_computed(gathered.shard.number):
                    tally.count_images(gathered.planned, (failure.reason for failure in gathered.failures))
                    tally.causes.add_counted(gathered.causes)
                    events.batch_done(info, gathered.planned)
                tally.count_shard(gathered.nonfinite, gathered.notes)
                self._committed(writer.put(gathered), info)
            self._committed(writer.wait(), info)

    def _watched(
        self, done: Iterable[tuple[Batch, Activations]], info: RunInfo, tally: Tally
    ) -> Iterator[tuple[Batch, Activations]]:
        config, events = self.run.config, self.run.events
        for batch, activations in done:
            tally.count_images(len(batch.records), (failure.reason for failure in batch.failures.values()))
            tally.causes.add_failures(batch.failures.values())
            tally.batches += 1
            tally.forwards += len(batch.groups())
            for failure in batch.failures.values():
                events.image_failed(info, failure.record, failure.reason)
                if config.on_error == "fail":
                    raise limits.refused(failure)
            limits.refuse_too_many(config, info, tally)
            if config.nonfinite == "fail":
                limits.refuse_nonfinite(activations)
            events.batch_done(info, len(batch.records))
            yield batch, activations

    def _committed(self, number: int | None, info: RunInfo) -> None:
        if number is not None:
            self.run.events.shard_committed(info, number)


@contextmanager
def _aborted(sink: Sink) -> Iterator[None]:
    """Report to the sink what ends the run inside the block, even an interrupt."""
    try:
        yield
    except BaseException as error:
        try:
            with guard(sink):
                sink.abort(error)
        except LayertapError as fault:
            error.add_note(f"layertap: afterwards {fault}")
        raise


def report_of(
    this: Prepared,
    info: RunInfo,
    tally: Tally,
    output: Destination,
    seconds: float,
    *,
    extracting: float = 0.0,
    already: bool = False,
) -> Report:
    """The report of a run, with what its sink hands back."""
    sink = this.sink
    with guard(sink):
        ids, values = sink.result() or (None, None)
    report = tally.report(info, seconds, stored=output.stored)
    return dataclasses.replace(
        report,
        ids=ids,
        values=values,
        already=already,
        extracting=extracting,
        remarks=[*this.plan.remarks, *output.remarks, *report.remarks],
    )
