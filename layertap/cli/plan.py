"""The dry run: what a run would return, cost and write, found out without reading an image."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from layertap.config.loading import ConfigLike, load_config
from layertap.config.model import RunConfig
from layertap.errors import ConfigError
from layertap.pipeline.forward import model_guard
from layertap.pipeline.prepare import Prepared, prepared
from layertap.pipeline.shards import row_bytes
from layertap.plugins import Plugins
from layertap.records import Column
from layertap.store.manifest import read_manifest
from layertap.taps.survey import survey

_MEASURED = 12
"""Batches whose rate is measured."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a run would do.

    `engine` and `workers` say what computes, where a configuration has an engine; `rate` is what one worker computes in
    images per second, None where it was not measured. `row_bytes` is the size of one image on disk, `stop` the layer
    after which the forward ends (None if it runs to its end), `compute` the share of the model's multiplications up to
    there (None if it has none), `silent` the taps of a pattern whose layers never run, `state` what is already at
    `path`.
    """

    about: Mapping[str, Any]
    device: str
    images: int
    batch_size: int
    shard_rows: int
    engine: str | None
    workers: int | None
    rate: float | None
    columns: Mapping[str, Column]
    row_bytes: int
    stop: str | None
    compute: float | None
    silent: Sequence[str]
    path: Path | None
    free_bytes: int | None
    state: str

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return -(-self.images // self.shard_rows)

    @property
    def seconds(self) -> float | None:
        """How long extracting takes at the measured rate, without starting and finishing; None where it is not known.

        The last shards of many workers do not end together: the time is that of the worker with the most shards.
        """
        if self.rate is None or (self.engine and self.workers is None):
            return None
        rows = -(-self.shards // self.workers) * self.shard_rows if self.workers else self.images
        return min(rows, self.images) / self.rate

    @property
    def bytes(self) -> int:
        """The size of all images on disk, if none fails."""
        return self.images * self.row_bytes


def forecast(
    config: ConfigLike,
    overrides: Mapping[str, Any] | None = None,
    plugins: Sequence[str] = (),
    *,
    measure: bool = False,
) -> Forecast:
    """Everything that `run` would find out before its first image. Writes nothing. Raises what `run` would raise.

    `measure` also computes a few batches, as one worker would.
    """
    known = Plugins.load(plugins)
    loaded = load_config(config, overrides, known)
    with prepared(loaded, known) as this:
        info, engine, threads = this.info, this.engine, torch.get_num_threads()
        stop, compute = _stop(this)
        return Forecast(
            about=info.about,
            device=info.device,
            images=info.planned,
            batch_size=info.batch_size,
            shard_rows=info.shard_rows,
            engine=loaded.engine.type if loaded.engine else None,
            workers=engine.workers() if engine else None,
            rate=_rate(loaded, known, threads) if measure else None,
            columns=info.columns,
            row_bytes=row_bytes(info.columns),
            stop=stop,
            compute=compute,
            silent=this.forward.tapped.silent,
            path=info.path,
            free_bytes=None if info.path is None else shutil.disk_usage(_existing(info.path)).free,
            state=_state(info.path),
        )


def _rate(config: RunConfig, plugins: Plugins, threads: int) -> float:
    """Images per second of one worker, on the device that it would have here. The first batch warms up."""
    alone = config.model_copy(update={"engine": None, "threads": threads, "observers": ()})
    with prepared(alone, plugins) as this:
        size = this.info.batch_size
        images = min(this.info.planned, _MEASURED * size)
        if images <= size:
            raise ConfigError(f"a rate needs more than one batch of {size} images", where=("batch_size",))
        with closing(this.batches(islice(this.plan.records(), images))) as stream:
            times = [time.perf_counter() for _ in this.forward.activations(stream, this.info.columns)]
        return (images - size) / (times[-1] - times[0])


def _stop(this: Prepared) -> tuple[str | None, float | None]:
    """The layer after which a forward ends, and the share of the compute done by then."""
    if not this.config.early_stop:
        return None, 1.0
    forward = this.forward
    inputs = forward.inputs(forward.slot.zeros(2))
    with model_guard(inputs):
        layers = survey(forward.tapped.module, inputs)
    compute = {name: layer.compute for layer in layers for name in (layer.name, *layer.aliases)}
    assert forward.tapped.last is not None
    tap, call = forward.tapped.last
    where = tap.layer if tap.op is None else str(tap)
    if not any(compute.values()):
        return where, None
    began, done = compute[tap.layer][call]
    # Inside a layer it is not known how much is done: at most all of it.
    return where, began if tap.side == "input" and tap.op is None else done


def _existing(path: Path) -> Path:
    """The nearest folder above an output that already exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _state(path: Path | None) -> str:
    if path is None:
        return "nothing is kept on disk"
    manifest = read_manifest(path)
    if manifest is not None:
        return "unfinished" if manifest.status == "running" else manifest.status
    return "new" if not path.exists() or not any(path.iterdir()) else "not ours"
