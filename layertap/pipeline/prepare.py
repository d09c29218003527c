"""Everything a run can know before its first image: parts, records and the probe. Nothing is written."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch

from layertap.config.model import RunConfig
from layertap.contracts import Engine, FileSink, Preprocessor, Sink, Source
from layertap.errors import ConfigError
from layertap.images.batches import Decoding, Slot, batches, default_workers
from layertap.images.decoding.bounds import Bounds
from layertap.images.decoding.decode import Enough
from layertap.images.plan import Plan
from layertap.pipeline import inputs, memory
from layertap.pipeline.device import computing_threads, find_device, ready, rounding
from layertap.pipeline.events import Events
from layertap.pipeline.first_images import looked, settled
from layertap.pipeline.forward import ForwardPass
from layertap.pipeline.shards import default_rows
from layertap.plugins import Plugins, guard
from layertap.records import Batch, Column, Planned, RunInfo
from layertap.store.manifest import read_manifest
from layertap.taps.tapped import TappedModel
from layertap.timing import Stopwatch

# Over a network with a latency of 50 ms this many hide the waiting, for images of some 100 KB.
_READERS_A_CORE = 16

Check: TypeAlias = Callable[[Path, Plan, torch.device], None]
Listed: TypeAlias = Callable[[Source, int | None], Plan]

_FORMATS = {"contiguous": "preserve_format", "channels_last": "channels_last"}


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run that could start now."""

    config: RunConfig
    plugins: Plugins
    plan: Plan
    workers: int
    forward: ForwardPass
    sink: Sink
    events: Events
    info: RunInfo
    engine: Engine | None = None

    @property
    def enough(self) -> Enough | None:
        """What says how much of a JPEG is decoded; None where all of it is."""
        return _decoding(self.config, self.forward.preprocessor).enough

    def batches(
        self, planned: Iterable[Planned], stopwatch: Stopwatch | None = None, *, workers: int | None = None
    ) -> Generator[Batch, None, None]:
        """The images of some records, prepared as the configuration says."""
        return batches(
            planned,
            self.forward.preprocessor,
            self.forward.slot,
            batch_size=self.info.batch_size,
            workers=workers or self.workers,
            decoding=_decoding(self.config, self.forward.preprocessor),
            stopwatch=stopwatch,
        )


def _decoding(config: RunConfig, preprocessor: Preprocessor) -> Decoding:
    scaled = config.profile.decode == "scaled" and config.isolation == "thread"
    return Decoding(
        config.formats,
        config.image_timeout,
        config.isolation,
        Bounds(config.max_pixels, config.image_memory * 2**20),
        preprocessor.enough if scaled else None,
    )


@contextmanager
def prepared(
    config: RunConfig,
    plugins: Plugins,
    check: Check | None = None,
    *,
    source: Source | None = None,
    listed: Listed = Plan,
) -> Iterator[Prepared]:
    """The parts of a run, with the model tapped and on its device for as long as the block lasts.

    An engine's workers compute where they are, so that with one the model is only looked at here, on the CPU. `listed`
    makes the plan of the source, where it is not to be listed here.

    What is quick to check comes first: a missing folder is reported before a model is loaded. So is what `check` raises
    about a sink's path. A `source` that is given replaces the configured one. Raises `LayertapError`; whatever knows
    its key, here or later in the block, says where in the configuration that is.
    """
    with config.at(), _prepared(config, plugins, check, source, listed) as this:
        yield this


@contextmanager
def _prepared(
    config: RunConfig, plugins: Plugins, check: Check | None, given: Source | None, listed: Listed
) -> Iterator[Prepared]:
    source, sink = given or config.build("source", plugins), config.build("sink", plugins)
    assert isinstance(source, Source)
    assert isinstance(sink, Sink)
    engine = _engine(config, plugins, sink)
    # The engine is asked even so: it may have to refuse its parameters.
    for_each = _threads(config, engine)
    threads = config.threads or for_each
    if isinstance(sink, FileSink):
        with config.at("sink", "path"):
            _refuse_inside(Path(sink.params.path), getattr(source.params, "path", None))
    events = Events(config.build_observers(plugins))
    with config.at("device"):
        device = find_device(config.device if engine is None else "cpu")
    plan = listed(source, config.limit)
    if check and isinstance(sink, FileSink):
        check(Path(sink.params.path), plan, device)
    loaded = inputs.configured_model(config, plugins)
    preprocessor = inputs.configured_preprocessor(config, plugins, loaded)
    preprocessor.profile = config.profile
    workers = config.workers or default_workers() * (_READERS_A_CORE if source.waits else 1)
    slot = looked(Slot.of(preprocessor, device), plan.records(), preprocessor, _decoding(config, preprocessor), workers)
    tapped = TappedModel(loaded.module, config.taps, early_stop=config.early_stop, about=loaded.about, plugins=plugins)
    memory_format = getattr(torch, _FORMATS[config.profile.memory_format])
    autocast = getattr(torch, config.autocast) if config.autocast else None
    with computing_threads(threads), rounding(config.profile.tf32), ready(loaded.module, device, memory_format), tapped:
        forward = ForwardPass(
            tapped, preprocessor, slot, device, memory_format, autocast, nondeterministic=config.nondeterministic
        )
        columns = forward.probe()
        forward = settled(forward, columns)
        forward.refuse_random()
        batch_size = _batch_size(config, sink, forward, columns, plan.count)
        shard_rows = config.shard_rows or default_rows(columns, batch_size)
        memory.refuse_more_than_there_is(forward, columns, min(batch_size, plan.count), min(shard_rows, plan.count))
        if device.type != "cpu":
            memory.rehearse(forward, min(batch_size, plan.count))
        info = RunInfo(
            id=uuid.uuid4().hex,
            planned=plan.count,
            columns=columns,
            batch_size=batch_size,
            shard_rows=shard_rows,
            device=str(device) if config.engine is None else config.engine.type,
            path=Path(sink.params.path) if isinstance(sink, FileSink) else None,
            config=config.plain(),
            about=loaded.about,
        )
        yield Prepared(config, plugins, plan, workers, forward, sink, events, info, engine)


def _engine(config: RunConfig, plugins: Plugins, sink: Sink) -> Engine | None:
    if config.engine is None:
        return None
    engine = config.build("engine", plugins)
    assert isinstance(engine, Engine)
    if not isinstance(sink, FileSink):
        raise ConfigError(
            f"the workers of an engine write into an output folder, which the sink {config.sink.type} does not keep",
            where=("engine",),
        )
    if config.batch_size == "auto":
        raise ConfigError("an engine's workers need one batch size; set it to a number", where=("batch_size",))
    return engine


def _threads(config: RunConfig, engine: Engine | None) -> int | None:
    if engine is None:
        return None
    with config.at("engine"), guard(engine):
        return engine.threads()


def _batch_size(config: RunConfig, sink: Sink, forward: ForwardPass, columns: Mapping[str, Column], images: int) -> int:
    """The configured one; `auto` takes that of an existing output, so that a run can resume."""
    if isinstance(config.batch_size, int):
        return config.batch_size
    if isinstance(sink, FileSink) and config.mode == "resume":
        found = read_manifest(Path(sink.params.path))
        if found is not None:
            return found.batch_size
    size = memory.largest_batch(forward, columns, images)
    while config.shard_rows and config.shard_rows % size:
        size //= 2
    return size


def _refuse_inside(output: Path, images: object) -> None:
    """Raise `ConfigError` for an output in the folder that images are read from, which would change by being read."""
    if isinstance(images, str) and os.path.isdir(images):
        inside, outside = os.path.realpath(output), os.path.realpath(images)
        # The folder itself is refused as one that holds something else.
        if inside != outside and os.path.commonpath([inside, outside]) == outside:
            raise ConfigError(
                f"{str(output)!r} is inside the folder of the images, {images!r}; choose a path outside it"
            )
