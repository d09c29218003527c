"""run() and extract(): build the parts, then walk the line once."""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from layertap import parts, provenance
from layertap.config import ConfigLike, RunConfig, load_config
from layertap.contracts import FileSink, Sink, Source
from layertap.errors import ImageError
from layertap.events import Events
from layertap.grammar import TapsLike
from layertap.line import Line, find_device, ready
from layertap.outputs import FolderOutput, Output, SinkOutput, Tally, Writer
from layertap.plan import Plan
from layertap.plugins import Plugins, guard
from layertap.records import Activations, Batch, Failure, Report, RunInfo
from layertap.shards import default_rows, gather
from layertap.store import open_store
from layertap.stream import Slot, batches, default_workers
from layertap.taps import TappedModel

# A share of a small plan would stop a run at its first bad file.
_FEWEST_FAILURES = 100


def run(config: ConfigLike, *, overrides: Mapping[str, Any] | None = None, plugins: Sequence[str] = ()) -> Report:
    """Extract what a configuration asks for, and say how it went.

    Args:
        config: the path of a YAML file, a mapping with the same keys, or a `RunConfig`.
        overrides: values laid over it; keys may be dotted, as in `{"source.path": "photos/"}`.
        plugins: Python files or modules with plugins of your own.

    Returns:
        A report: `planned`, `kept`, `failed`, `path`, and `values` where the sink returns them. Every planned image is
        kept or failed. A complete output of the same configuration is left as it is; an unfinished one is finished.

    Raises:
        LayertapError: before the first image for all that can be known then, and then nothing is written.
    """
    known = Plugins.load(plugins)
    config = load_config(config, overrides, known)
    started = time.monotonic()
    source, sink = config.build("source", known), config.build("sink", known)
    assert isinstance(source, Source)
    assert isinstance(sink, Sink)
    events = Events(config.build_observers(known))
    with config.at("device"):
        device = find_device(config.device)
    with config.at("source"):
        plan = Plan(source, config.limit)
    loaded = parts.configured_model(config, known)
    preprocessor = parts.configured_preprocessor(config, known, loaded)
    with ExitStack() as stack:
        stack.enter_context(ready(loaded.module, device))
        with config.at("taps"):
            tapped = TappedModel(
                loaded.module, config.taps, early_stop=config.early_stop, about=loaded.about, plugins=known
            )
            line = Line(stack.enter_context(tapped), preprocessor, Slot.of(preprocessor), device)
            columns = line.probe()
        info = RunInfo(
            id=uuid.uuid4().hex,
            planned=plan.count,
            columns=columns,
            batch_size=config.batch_size,
            shard_rows=config.shard_rows or default_rows(columns, config.batch_size),
            device=str(device),
            path=Path(sink.params.path) if isinstance(sink, FileSink) else None,
            config=config.plain(),
            about=loaded.about,
        )
        output: Output = SinkOutput(sink)
        if isinstance(sink, FileSink):
            prints = provenance.fingerprint(config, known, info, plan, preprocessor)
            facts = provenance.manifest(config, info, prints)
            store = stack.enter_context(open_store(Path(sink.params.path), sink, facts))
            output = FolderOutput(store)
            if store.is_complete:
                return _report(info, output.tally(), output, sink, 0.0, already=True)
        return _Walk(config, plan, line, sink, output, events, info, started).run()


def extract(
    model: parts.ModelLike,
    images: parts.ImagesLike,
    taps: TapsLike = ("classifier.5",),
    *,
    batch_size: int = 64,
    device: str = "auto",
    preprocess: parts.PreprocessLike = None,
    workers: int | None = None,
    on_error: Literal["fail", "skip"] = "fail",
    plugins: Sequence[str] = (),
) -> Iterator[Activations]:
    """Features in memory, batch by batch: `for batch in extract(model, images, taps=[...]): batch.values["..."]`.

    Args:
        model: a module, or `TYPE/NAME` such as `torchvision/alexnet`, or a mapping as in a configuration.
        images: a folder, an image file, a source, or an iterable of paths, bytes, PIL images or uint8 arrays.
        taps: what to listen to.
        batch_size: images in one forward.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`. The model is put back where it was.
        preprocess: a preprocessor, its type, or a function of one RGB image; the model's own by default.
        workers: decoding threads; one a core by default.
        on_error: `skip` leaves bad images out.
        plugins: Python files or modules with plugins of your own.

    Yields:
        `records` and `values`: CPU tensors with one row a record, in the order of `images`.

    Raises:
        ImageError: an image cannot be used, unless `on_error` is `skip`.
        LayertapError: the model, a tap or the device is not as asked for.
    """
    known = Plugins.load(plugins)
    where = find_device(device)
    loaded = parts.given_model(model, known)
    preprocessor = parts.given_preprocessor(preprocess, loaded, known)
    slot = Slot.of(preprocessor)
    with ready(loaded.module, where), TappedModel(loaded.module, taps, about=loaded.about, plugins=known) as tapped:
        line = Line(tapped, preprocessor, slot, where)
        columns = line.probe()
        records = parts.given_records(images, known)
        stream = batches(records, preprocessor, slot, batch_size=batch_size, workers=workers or default_workers())
        with closing(stream):
            for batch, activations in line.activations(stream, columns):
                if on_error == "fail":
                    for failure in batch.failures.values():
                        raise _refused(failure)
                if activations.records:
                    yield activations


@dataclass(frozen=True, slots=True)
class _Walk:
    """One run from its first image to its report, with all its parts built."""

    config: RunConfig
    plan: Plan
    line: Line
    sink: Sink
    output: Output
    events: Events
    info: RunInfo
    started: float

    def run(self) -> Report:
        tally = self.output.tally()
        info = dataclasses.replace(self.info, resumed=tally.planned)
        with guard(self.sink):
            self.sink.open(info)
        self.events.run_started(info)
        try:
            self._extract(info, tally)
            seconds = time.monotonic() - self.started
            self.output.finish(seconds)
            report = _report(info, tally, self.output, self.sink, seconds)
            with guard(self.sink):
                self.sink.close(report)
        except BaseException as error:
            self.events.run_finished(info, None, error)
            raise
        self.events.run_finished(info, report, None)
        return report

    def _extract(self, info: RunInfo, tally: Tally) -> None:
        first = tally.shards
        stream = batches(
            self.plan.records(first * info.shard_rows),
            self.line.preprocessor,
            self.line.slot,
            batch_size=info.batch_size,
            workers=self.config.workers or default_workers(),
        )
        with closing(stream), Writer(self.output) as writer:
            done = self._watched(self.line.activations(stream, info.columns), info, tally)
            for gathered in gather(done, info.columns, info.shard_rows, first):
                tally.nonfinite.update(gathered.nonfinite)
                tally.shards += 1
                self._committed(writer.put(gathered), info)
            self._committed(writer.wait(), info)

    def _watched(
        self, done: Iterable[tuple[Batch, Activations]], info: RunInfo, tally: Tally
    ) -> Iterator[tuple[Batch, Activations]]:
        most = self._most_failures()
        for batch, activations in done:
            for failure in batch.failures.values():
                tally.reasons[failure.reason] += 1
                self.events.image_failed(info, failure.record, failure.reason)
                if self.config.on_error == "fail":
                    raise _refused(failure)
            if tally.failed > most:
                raise ImageError(
                    "max_failures", f"stopped: {tally.failed} images failed, and max_failures allows {most}"
                )
            tally.planned += len(batch.records)
            self.events.batch_done(info, len(batch.records))
            yield batch, activations

    def _most_failures(self) -> int:
        most = self.config.max_failures
        return most if isinstance(most, int) else max(_FEWEST_FAILURES, int(most * self.plan.count))

    def _committed(self, number: int | None, info: RunInfo) -> None:
        if number is not None:
            self.events.shard_committed(info, number)


def _refused(failure: Failure) -> ImageError:
    return ImageError(failure.reason, f"{failure.record.id!r} cannot be used: {failure.reason} ({failure.stage})")


def _report(
    info: RunInfo, tally: Tally, output: Output, sink: Sink, seconds: float, *, already: bool = False
) -> Report:
    with guard(sink):
        ids, values = sink.result() or (None, None)
    return Report(
        planned=tally.planned,
        kept=tally.planned - tally.failed,
        failed=tally.failed,
        shards=tally.shards,
        seconds=seconds,
        path=info.path,
        stored=output.stored,
        columns=info.columns,
        reasons=dict(tally.reasons),
        nonfinite=dict(tally.nonfinite),
        ids=ids,
        values=values,
        already=already,
    )
