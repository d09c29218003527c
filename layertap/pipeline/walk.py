"""One run from its first image to its report."""

from __future__ import annotations

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial

from layertap.contracts import Sink
from layertap.errors import LayertapError, within
from layertap.pipeline import limits
from layertap.pipeline.line import Done, computed
from layertap.pipeline.prepare import Prepared
from layertap.pipeline.work import Work
from layertap.pipeline.writer import Destination, Writer
from layertap.plugins import guard
from layertap.records import Failure, Report, RunInfo
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

    def report_failures(self, failures: Iterable[Failure], info: RunInfo, tally: Tally) -> None:
        """Tell the observers of images that failed and are in `tally`. Raises `ImageError` where that stops the run."""
        for failure in failures:
            self.run.events.image_failed(info, failure.record, failure.reason)
            if self.run.config.on_error == "fail":
                raise limits.refused(failure)
        limits.refuse_too_many(self.run.config, info, tally)

    @abstractmethod
    def extract(self, info: RunInfo, tally: Tally) -> None:
        """Write every shard after those in `tally`, and count them there."""


@dataclass(frozen=True, slots=True)
class WalkHere(Walk):
    """A run that computes in this process."""

    work: Work

    def extract(self, info: RunInfo, tally: Tally) -> None:
        """Each batch through the model; a shard is written during the next forwards."""
        events, work, first = self.run.events, self.work, tally.shards
        numbers, watched = partial(work.numbers, first), partial(self._watched, info, tally)
        line = computed(self.run, work.planned(first), numbers, watched, self.stopwatch)
        with closing(line), Writer(self.output, self.stopwatch) as writer:
            for gathered in work.shards(line, first):
                if not work.is_computed(gathered.shard.number):
                    tally.count_images(gathered.planned, (failure.reason for failure in gathered.failures))
                    tally.causes.add_counted(gathered.causes)
                    events.batch_done(info, gathered.planned)
                tally.count_shard(gathered.nonfinite, gathered.notes)
                self._committed(writer.put(gathered), info)
            self._committed(writer.wait(), info)

    def _watched(self, info: RunInfo, tally: Tally, done: Iterable[Done]) -> Iterator[Done]:
        config, events = self.run.config, self.run.events
        for batch, activations in done:
            tally.count_images(len(batch.records), (failure.reason for failure in batch.failures.values()))
            tally.causes.add_failures(batch.failures.values())
            tally.batches += 1
            tally.forwards += len(batch.groups())
            self.report_failures(batch.failures.values(), info, tally)
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
