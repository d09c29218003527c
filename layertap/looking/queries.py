"""What is searched for: rows of the output itself, or images, which go through the model of its manifest."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layertap.contracts import Source
from layertap.errors import FOREIGN, ConfigError, StoreError, did_you_mean
from layertap.looking.neighbours import Query
from layertap.looking.vectors import Vectors
from layertap.outputs.output import Output
from layertap.records import Failure, ImageRecord
from layertap.store.paths import user_path

if TYPE_CHECKING:
    from layertap.config.model import RunConfig
    from layertap.plugins import Plugins

# Among more ids, looking for one that is spelled alike takes too long.
_MOST_SPELLED = 10_000

Failed = Callable[[Failure], None]


def queries_of(
    features: Output,
    asked: Any,
    tap: str,
    failed: Failed,
    *,
    overrides: Mapping[str, Any] | None = None,
    plugins: Sequence[str] = (),
) -> Iterator[Query]:
    """The queries that `asked` means: ids of the output, the paths of images, images; of a folder, each image.

    Images are computed in batches, as the output's own were; `failed` is called with each that cannot be used. Raises
    `ConfigError` where `asked` is none of these, and `StoreError` (6) where the model is another one now.
    """
    items = list(asked) if isinstance(asked, (list, tuple)) else [asked]
    names = [item for item in items if isinstance(item, str)]
    rows = _rows_of(features, names)
    others = [item for item in items if not (isinstance(item, str) and item in rows)]
    if rows and others:
        raise ConfigError(f"{next(iter(rows))!r} is an id of {features.path}, and others are not; give all as images")
    if rows:
        vectors = Vectors(features, tap)
        return (Query(name, vectors.row(rows[name])) for name in names)
    items = [user_path(item) if isinstance(item, (str, os.PathLike)) else item for item in items]
    for item in items:
        if isinstance(item, Path) and not item.exists():
            raise _neither(features, str(item))
    return _computed(features, items if len(items) > 1 else items[0], tap, failed, overrides, plugins)


def _axes(asked: Any) -> int:
    """How many axes an array or a tensor has."""
    return int(getattr(asked, "ndim", 0))


def _rows_of(features: Output, names: Collection[str]) -> dict[str, int]:
    """The rows of those names that are ids."""
    wanted = set(names)
    return {found: row for row, found in enumerate(features.ids) if found in wanted} if wanted else {}


def _neither(features: Output, name: str) -> ConfigError:
    ids = features.ids
    near = did_you_mean(name, ids) if len(ids) <= _MOST_SPELLED else ""
    return ConfigError(f"{name!r} is neither an id of {features.path} nor a file{near}")


def _computed(
    features: Output, asked: Any, tap: str, failed: Failed, overrides: Mapping[str, Any] | None, own: Sequence[str]
) -> Iterator[Query]:
    from layertap.pipeline.prepare import prepared
    from layertap.pipeline.shards import to_numpy
    from layertap.plugins import Plugins
    from layertap.records import Planned

    known = Plugins.load(own)
    source, config, dtype = given(asked, known), as_then(features, overrides, known), Vectors(features, tap).dtype
    with prepared(config, known, source=source) as this:
        refuse_another(features, this, tap)
        shape = tuple(features.facts(tap).shape)
        stream = this.batches(Planned(record) for record in source.records())
        with closing(stream), closing(this.forward.activations(stream, this.info.columns)) as computed:
            for batch, activations in computed:
                for failure in batch.failures.values():
                    failed(failure)
                for record, value in zip(activations.records, activations.values[tap], strict=True):
                    if tuple(value.shape) == shape:
                        yield Query(record.id, to_numpy(value).reshape(-1).astype(dtype))
                    else:
                        failed(Failure(record, "prepare", "shape"))


def given(asked: Any, plugins: Plugins) -> Source:
    """The images that are asked for, as the source of a run: of a folder, of a file, or in memory."""
    from layertap.pipeline.inputs import given_records

    is_file = isinstance(asked, (str, os.PathLike)) and not Path(asked).is_dir()
    images = [asked] if is_file or _axes(asked) in (2, 3) else asked

    return source_of(lambda: given_records(images, plugins))


def source_of(given: Callable[[], Iterator[ImageRecord]]) -> Source:
    """A source of the records that a function gives."""

    class Given(Source):
        def records(self) -> Iterator[ImageRecord]:
            return given()

    return Given.of()


def as_then(features: Output, overrides: Mapping[str, Any] | None, plugins: Plugins, **changes: Any) -> RunConfig:
    """The configuration of the manifest, for any images, with some keys changed."""
    from layertap.config.loading import load_config
    from layertap.config.model import RunConfig

    manifest = features.manifest
    here = {"batch_size": manifest["batch_size"], "observers": [], "limit": None, "engine": None}
    matter: Iterable[str] = set(RunConfig.model_fields) - {"source"}
    return load_config(dict(manifest["config"]), {**(overrides or {}), **here, **changes}, plugins, of=tuple(matter))


def refuse_another(features: Output, this: Any, tap: str | None = None, besides: Sequence[str] = ()) -> None:
    """Raise `StoreError` if model, weights or preprocessing are not the output's; keys in `besides` do not count.

    The images may have other sizes than those of the run where only the values of `tap` are needed.
    """
    from layertap.images.batches import Slot
    from layertap.pipeline import fingerprint
    from layertap.store.manifest import Manifest

    written, now = Manifest.model_validate(features.manifest), fingerprint.manifest(this)
    besides = (*fingerprint.soft(written, now), *fingerprint.OF_IMAGES, *besides)
    sized = Slot.of(this.forward.preprocessor, this.forward.device).other is not None
    if tap and sized and written.taps[tap].dtype == now.taps[tap].dtype:
        besides = (*besides, "columns")  # their shapes are those of the images that are asked for
    if changed := written.different(now, besides=besides):
        raise StoreError(
            f"{features.path}: its model cannot be used for other images: {'; '.join(changed)}; say what has moved as "
            "KEY=VALUE, or search by an id of the output",
            code=FOREIGN,
        )
