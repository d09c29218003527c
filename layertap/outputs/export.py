"""Copies of an output in another form: by another sink, or in the layout of another library.

An export is built in a folder next to its path, `NAME.export`, and renamed when all of it is durable. An export by a
sink uses the same store and commits as a run, shard by shard, so that an interrupted one resumes where it stopped.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pydantic

from layertap.contracts import FileSink
from layertap.errors import FOREIGN, ConfigError, StoreError, combined, did_you_mean, faults_of
from layertap.outputs.export_manifest import carried, run_info
from layertap.outputs.foreign_formats import LAYOUTS, Layout
from layertap.outputs.output import Output
from layertap.outputs.stored import Damaged, StoredShards
from layertap.plugins import Plugins, guard
from layertap.store import durable, replace, safe_files
from layertap.store.commits import Commit
from layertap.store.listings import FAILURES, INDEX
from layertap.store.lock import Lock
from layertap.store.manifest import MANIFEST, FileFacts, Manifest, ShardFacts, read_manifest
from layertap.store.store import Store, storage


def export(features: Output, type_name: str, path: Path, taps: Sequence[str], plugins: Plugins) -> Path:
    """`Features.export`, of these taps."""
    source = Manifest.model_validate(features.manifest)
    if not features.is_complete:
        raise StoreError(f"{features.path}: is unfinished; finish it with the command that began it, then export it")
    if not taps:
        raise ConfigError("export: name at least one tap")
    _refuse_damaged(features, source, taps)
    with _as_written(features.path):
        shards = [_of_taps(facts, taps) for facts in source.shards]
    layout = LAYOUTS.get(type_name)
    if layout:
        _in_layout(features, type_name, layout, path, taps, shards)
    else:
        sink = _built(type_name, path, plugins)
        with _as_written(features.path):
            manifest = carried(source, plugins.find("sink", type_name), path, taps, plugins)
        _by_sink(features, sink, path, manifest, shards, {"seconds": source.seconds, "timing": source.timing})
    return path


def _in_layout(
    features: Output, type_name: str, layout: Layout, path: Path, taps: Sequence[str], shards: Sequence[ShardFacts]
) -> None:
    if len(taps) != 1:
        raise ConfigError(
            f"{type_name} holds one tap, but {len(taps)} were given; choose one with --tap or taps=: {', '.join(taps)}"
        )
    layout.check(features, taps[0])
    with _staged(features.path, path, lambda folder: False) as folder, storage(folder):
        stored = StoredShards(features, shards, taps)
        layout.write(features, taps[0], (found.shard for found in stored.gathered(range(len(stored)))), folder)
        durable.sync_tree(folder)


def _by_sink(
    features: Output,
    sink: FileSink,
    path: Path,
    manifest: Manifest,
    shards: Sequence[ShardFacts],
    facts: Mapping[str, Any],
) -> None:
    started = time.monotonic()
    with _staged(features.path, path, lambda folder: _resumes(folder, manifest, shards)) as folder:
        store = Store(folder, sink, read_manifest(folder) or manifest)
        if store.is_complete:  # and was stopped just before it could be moved to its path
            store.sweep()
            return
        store.begin(lambda record: _holds(record, shards))
        tally = store.tally()
        info = run_info(manifest, path, tally.planned)
        with guard(sink):
            sink.open(info)
        stored = StoredShards(features, shards, list(manifest.taps))
        for gathered in stored.gathered(range(tally.shards, len(stored))):
            store.commit(gathered, shards[gathered.shard.number].source)
        store.finish(facts)
        with guard(sink):
            sink.close(store.tally().report(info, time.monotonic() - started, stored=True))


def _built(type_name: str, path: Path, plugins: Plugins) -> FileSink:
    try:
        cls = plugins.find("sink", type_name).cls
    except ConfigError as error:
        if near := did_you_mean(type_name, [*plugins.tables["sink"], *LAYOUTS]):
            raise ConfigError(f"export: no sink or layout is named {type_name!r}{near}") from error
        raise
    if not issubclass(cls, FileSink):
        raise ConfigError(f"the sink {type_name!r} keeps no output folder to export into")
    try:
        params = cls.Params.model_validate({"path": str(path)})
    except pydantic.ValidationError as error:
        faults = faults_of(error, {"path": str(path)})
        raise combined(
            [ConfigError(f"the sink {type_name!r}: {fault.what}", where=fault.where) for fault in faults]
        ) from error
    with guard(cls):
        return cls(params)


@contextmanager
def _staged(source: Path, path: Path, resumes: Callable[[Path], bool]) -> Iterator[Path]:
    """A locked folder next to `path`, which is renamed to `path` at the end.

    `resumes` says whether an interrupted export that it contains can be resumed; if not, its files are removed.
    """
    place = Path(os.path.realpath(path))
    folder = place.with_name(f"{place.name}.export")
    _refuse_taken(path, place, folder, source)
    with ExitStack() as stack:
        with storage(folder):
            durable.make_folder(folder)
            stack.enter_context(Lock(folder))
            replace.refuse_links(folder)
            if not resumes(folder) and any(folder.iterdir()):
                _clear(folder)
                durable.make_folder(folder)
                stack.enter_context(Lock(folder))
        try:
            yield folder
        except Damaged:
            with storage(folder):
                _clear(folder)
            raise
        with storage(path):
            os.rename(folder, place)  # onto nothing or an empty folder; the system allows nothing else
            durable.sync(place.parent)


def _refuse_taken(path: Path, place: Path, folder: Path, source: Path) -> None:
    if place.exists() and not place.is_dir():
        raise StoreError(f"{path}: is a file, but an export is a folder; choose another path", code=FOREIGN)
    if place.is_dir() and any(place.iterdir()):
        raise StoreError(f"{path}: is not empty; an export goes into a new folder or an empty one", code=FOREIGN)
    inside = Path(os.path.realpath(source))
    if place.is_relative_to(inside) or folder.is_relative_to(inside):
        raise StoreError(f"{path}: would be inside the output that is exported; choose another path", code=FOREIGN)


def _clear(folder: Path) -> None:
    """Remove the files of an unfinished export, by the names that it writes. Raises `StoreError` for anything else."""
    found = read_manifest(folder)
    if found is None:
        safe_files.remove(folder, [f"{MANIFEST}.tmp", *(name for layout in LAYOUTS.values() for name in layout.files)])
        durable.prune(folder)
    elif found.status == "running":
        replace.discard(folder)
    if folder.exists():
        raise StoreError(f"{folder}: is in the way of an export, which is built there; move it", code=FOREIGN)


def _resumes(folder: Path, manifest: Manifest, shards: Sequence[ShardFacts]) -> bool:
    found = read_manifest(folder)
    if found is None or found.different(manifest) or list(found.taps) != list(manifest.taps):
        return False
    return found.status == "running" or found.shards == shards


def _holds(record: Commit, shards: Sequence[ShardFacts]) -> bool:
    """Whether a committed shard is the same as in the original."""
    return record.shard < len(shards) and record.facts() == shards[record.shard]


@contextmanager
def _as_written(path: Path) -> Iterator[None]:
    """Turn the error of a missing or wrongly typed part of a manifest into a `StoreError`."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        what = " ".join(str(error).split())
        raise StoreError(f"{path / MANIFEST}: was modified after it was written: {what}", code=FOREIGN) from error


def _of_taps(facts: ShardFacts, taps: Sequence[str]) -> ShardFacts:
    def only(values: Mapping[str, object]) -> dict[str, object]:
        return {tap: values[tap] for tap in taps}

    return facts.model_copy(update={"values": only(facts.values), "nonfinite": only(facts.nonfinite)})


def _refuse_damaged(features: Output, source: Manifest, taps: Sequence[str]) -> None:
    """Raise `StoreError` for the faults of an output that can be found without reading all of it."""
    path = features.path
    for tap in taps:
        if len(features[tap]) != sum(facts.kept for facts in source.shards):
            raise Damaged(f"{path}: {tap!r} has {len(features[tap])} rows, but its manifest records another number")
    for name in (INDEX, FAILURES):
        try:
            sound = FileFacts.of(safe_files.regular(path, name)) == source.files.get(name)
        except OSError as error:
            raise Damaged(f"{path / name}: {error.strerror or error}") from error
        if not sound:
            raise Damaged(f"{path / name}: is damaged: its sha256 is not the one it was written with")
