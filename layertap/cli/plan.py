"""The dry run: what a run would return, cost and write, found out without reading an image."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layertap.config.loading import ConfigLike, load_config
from layertap.pipeline.forward import model_guard
from layertap.pipeline.prepare import Prepared, prepared
from layertap.pipeline.shards import row_bytes
from layertap.plugins import Plugins
from layertap.records import Column
from layertap.store.manifest import read_manifest
from layertap.taps.survey import survey


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a run would do.

    `row_bytes` is the size of one image on disk, `stop` the layer after which the forward ends (None if it runs to its
    end), `compute` the share of the model's multiplications up to there (None if it has none), `silent` the taps of a
    pattern whose layers never run, `state` what is already at `path`.
    """

    about: Mapping[str, Any]
    device: str
    images: int
    batch_size: int
    shard_rows: int
    columns: Mapping[str, Column]
    row_bytes: int
    stop: str | None
    compute: float | None
    silent: Sequence[str]
    path: Path | None
    free_bytes: int | None
    state: str

    @property
    def bytes(self) -> int:
        """The size of all images on disk, if none fails."""
        return self.images * self.row_bytes


def forecast(config: ConfigLike, overrides: Mapping[str, Any] | None = None, plugins: Sequence[str] = ()) -> Forecast:
    """Everything that `run` would find out before its first image. Writes nothing. Raises what `run` would raise."""
    known = Plugins.load(plugins)
    with prepared(load_config(config, overrides, known), known) as this:
        info = this.info
        stop, compute = _stop(this)
        return Forecast(
            about=info.about,
            device=info.device,
            images=info.planned,
            batch_size=info.batch_size,
            shard_rows=info.shard_rows,
            columns=info.columns,
            row_bytes=row_bytes(info.columns),
            stop=stop,
            compute=compute,
            silent=this.forward.tapped.silent,
            path=info.path,
            free_bytes=None if info.path is None else shutil.disk_usage(_existing(info.path)).free,
            state=_state(info.path),
        )


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
    if not any(compute.values()):
        return tap.layer, None
    began, done = compute[tap.layer][call]
    return tap.layer, began if tap.side == "input" else done


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
