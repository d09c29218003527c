"""The output folder: who owns it, what is committed, and the files of a finished run.

    manifest.json     what the folder is; `status` is `running` or `complete`
    index.csv         one row per image kept; row k of every tap is line k
    failures.csv      one row per image that failed, in the order of the plan
    parts/ commits/   while it runs: a commit record is the only proof that a part exists

A commit: temporary name, write, fsync, rename, fsync of the folder, commit record by exclusive creation, fsync.
"""

from __future__ import annotations

import copy
import errno
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from layertap.contracts import FileSink
from layertap.errors import FOREIGN, LOCKED, StoreError, within
from layertap.plugins import guard
from layertap.records import Gathered
from layertap.store import durable, place, replace, safe_files
from layertap.store.commits import COMMITS, PARTS, Commit, Commits, add_meta_types, durable_facts
from layertap.store.listings import FAILURES, INDEX, listings
from layertap.store.lock import Lock
from layertap.store.manifest import FILES, MANIFEST, FileFacts, Manifest, Owner, read_manifest
from layertap.store.tally import Tally


class Store:
    """The output folder of one run, locked and open for writing. Made by `open_store`."""

    def __init__(self, path: Path, sink: FileSink, manifest: Manifest, target: Path | None = None) -> None:
        self.path = path
        self.manifest = manifest
        self.commits = Commits(path)
        self._sink = sink
        self._target = target
        self.processor: Mapping[str, Any] | None = None
        """What computes the shards, recorded with each of them if it is set."""
        # Known of the committed shards without reading their records again.
        self._tally = Tally(nonfinite=Counter(dict.fromkeys(manifest.taps, 0)))
        self._meta: dict[str, str] = {}
        sink.stems = {name: tap.file for name, tap in manifest.taps.items()}

    @property
    def is_complete(self) -> bool:
        """Whether an earlier run has finished this very output."""
        return self.manifest.status == "complete"

    def tally(self) -> Tally:
        """The counts of the committed shards, in a copy that the caller may add to."""
        return self.manifest.tally() if self.is_complete else copy.deepcopy(self._tally)

    def begin(self, holds: Callable[[Commit], bool]) -> None:
        """Record who writes here, and go back to before the first shard that is incomplete or not the plan's.

        `holds` says whether a record is one of the plan. Raises `StoreError` where nothing can be written.
        """
        self.manifest.owner = Owner(host=socket.gethostname(), pid=os.getpid(), since=_now())
        with storage(self.path):
            self._write_manifest()
            for name in (PARTS, COMMITS):
                durable.make_folder(self.path / name)
            self.commits.tidy()
            for number in range(len(self.commits)):
                record = self._sound(number, holds)
                if record is None:
                    break
                self._count(record)
            for number in reversed(range(self._tally.shards, len(self.commits))):
                self.commits.remove(number)
            # A power cut must not restore what is removed here once later records exist.
            durable.sync(self.path / COMMITS)

    def _sound(self, number: int, holds: Callable[[Commit], bool]) -> Commit | None:
        try:
            record = self.commits.read(number)
            if record is None or not holds(record):
                return None
            for name, facts in record.placed_files().items():
                if FileFacts.of(safe_files.regular(self.path, name)) != facts:
                    return None
        except (OSError, StoreError):
            return None
        return record

    def commit(self, gathered: Gathered, source: str) -> None:
        """Make a shard durable, then true by its commit record. Raises `StoreError` for a full or broken disk.

        `source` is the digest of the images of its rows.
        """
        part = self.commits.part(gathered.shard.number)
        temporary = part.with_name(f"{part.name}.tmp")
        with storage(self.path):
            durable.fresh_folder(temporary)
        with guard(self._sink), storage(self.path), within("sink"):
            self._sink.save(gathered.shard, temporary)
        with storage(self.path):
            record = Commit.of(gathered, source, durable_facts(temporary), self.processor)
            self._place(record, temporary)
            durable.sync(part.parent)
            with self._refusing_twice(record):
                self.commits.create(record)
        self._count(record)

    def adopt(self, written: Sequence[tuple[Commit, Path, Path]]) -> None:
        """Make shards true, in this order: each with its record, the folder of its files, and the file of the record.

        All of it is durable already. The folders become the parts, and the files are linked as commit records.
        """
        with storage(self.path):
            for record, folder, _ in written:
                self._place(record, folder)
            durable.sync(self.path / PARTS)
            for record, _, file in written:
                with self._refusing_twice(record):
                    self.commits.link(record, file)
            durable.sync(self.path / COMMITS)
        for record, _, _ in written:
            self._count(record)

    def _place(self, record: Commit, folder: Path) -> None:
        part = self.commits.part(record.shard)
        if folder != part:
            durable.clear_folder(part)
            os.rename(folder, part)

    @contextmanager
    def _refusing_twice(self, record: Commit) -> Iterator[None]:
        try:
            yield
        except FileExistsError as error:
            raise StoreError(f"{self.path}: another run has committed shard {record.shard}", code=LOCKED) from error

    def computed_on(self, facts: Mapping[str, Any]) -> None:
        """Record in the fingerprint on what the shards are computed, which an engine's first worker knows."""
        self.manifest.fingerprint |= facts
        self.manifest.device = str(facts["device"])
        with storage(self.path):
            self._write_manifest()

    def _count(self, record: Commit) -> None:
        record.count_into(self._tally)
        add_meta_types(self._meta, record.kept)

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Merge the parts, write index and failures, and mark the output complete. May be repeated after a crash."""
        manifest = self.manifest
        manifest.merged = type(self._sink).merge is not FileSink.merge
        with storage(self.path):
            manifest.files = self._merge(self._tally.shards) if manifest.merged else {}
            manifest.meta, manifest.shards = self._meta, []
            with listings(self.path, manifest.meta) as listed:
                for record in self.commits:
                    listed(record)
                    manifest.shards.append(record.facts())
                    if not manifest.merged:
                        manifest.files |= record.placed_files()
            manifest.files |= {name: FileFacts.of(self.path / name) for name in (INDEX, FAILURES)}
            manifest.count(self._tally)
            for key, value in facts.items():
                setattr(manifest, key, value)
            manifest.status, manifest.finished, manifest.owner = "complete", _now(), None
            self._write_manifest()
            self.sweep()
            self.take_place()

    def take_place(self) -> None:
        """Put a complete output where it belongs, if it was built beside another one."""
        if self._target:
            with storage(self._target):
                replace.switch(self._target)
            self.path = self._target

    def refuse_lost(self) -> None:
        """Raise `StoreError` for a file of a complete output that is gone or has another length."""
        for name, facts in self.manifest.files.items():
            try:
                size = safe_files.regular(self.path, name).stat().st_size
            except FileNotFoundError:
                size = -1
            if size != facts.bytes:
                lost = "is missing" if size < 0 else f"has {size} bytes, but was written with {facts.bytes}"
                raise StoreError(f"{self.path / name}: {lost}; mode=new extracts everything again")

    def sweep(self) -> None:
        """Remove the parts of a complete, merged output, and what workers left: by recorded names, and no others."""
        replace.discard_attempts(self.path)
        if self.manifest.merged:
            replace.discard_shards(self.path, len(self.manifest.shards))

    def _merge(self, count: int) -> dict[str, FileFacts]:
        folder = self.path / replace.MERGE
        durable.fresh_folder(folder)
        with guard(self._sink), storage(self.path), within("sink"):
            self._sink.merge([self.commits.part(number) for number in range(count)], folder)
        files = durable_facts(folder)
        # A rename puts a file in another one's place, and no folder in that of one which an earlier try has filled.
        replace.remove_files(self.path, self.manifest.files)
        durable.sync(self.path)
        self.manifest.files = files
        # Their names are recorded before they exist, so that layertap leaves no file without a record.
        self._write_manifest()
        durable.move_into(folder, self.path)
        return files

    def _write_manifest(self) -> None:
        with durable.replacing(self.path / MANIFEST) as file:
            file.write(f"{self.manifest.model_dump_json(indent=2)}\n")


@contextmanager
def open_store(
    path: Path,
    sink: FileSink,
    manifest: Manifest,
    *,
    mode: Literal["resume", "new"] = "resume",
    retry: bool = False,
    holds: Callable[[Commit], bool] = lambda record: True,
) -> Iterator[Store]:
    """The output folder, made if need be, locked, and checked to belong to this very configuration.

    An unfinished output without a committed shard is taken over by any configuration.
    `new` replaces what layertap has finished there, by a folder beside it that takes its place when it is complete.
    `retry` takes files that have changed as no difference; `holds` says whether a record is one of the plan.
    Raises `StoreError`: 5 another run holds it, 6 it is another configuration's or not layertap's, 7 it cannot be
    written.
    """
    place.refuse_file(path)
    with ExitStack() as stack:
        with storage(path):
            replace.recover(path)
            durable.make_folder(path)
            stack.enter_context(Lock(path))
            replace.sweep_retired(path)
        replace.refuse_links(path)
        found = read_manifest(path)
        if found is None:
            place.refuse_foreign(path)
        changed = found.different(manifest, besides=(FILES,) if retry else ()) if found else []
        if found and (changed or found.unknown(manifest)) and place.is_free(path, found):
            found, changed = None, []
        if found and mode == "resume":
            place.refuse_another(path, found, changed)
        if found and mode == "new" and (changed or found.status == "complete"):
            yield stack.enter_context(beside(path, sink, manifest, found.run, holds))
            return
        store = Store(path, sink, found or manifest)
        if store.is_complete:
            with storage(path):
                store.sweep()
                store.refuse_lost()
        else:
            store.begin(holds)
        yield store


@contextmanager
def beside(
    path: Path,
    sink: FileSink,
    manifest: Manifest,
    replaced: str,
    holds: Callable[[Commit], bool],
) -> Iterator[Store]:
    """A store next to the output at `path`, which is already locked: the folder replaces it when it is complete.

    One that was begun for the same purpose is resumed.
    """
    folder = replace.staging(path)
    manifest = manifest.model_copy(update={"replaces": replaced})
    with ExitStack() as stack:
        with storage(folder):
            durable.make_folder(folder)
            stack.enter_context(Lock(folder))
            replace.refuse_links(folder)
            found = read_manifest(folder)
            if found is None:
                place.refuse_foreign(folder)
            elif found.replaces is None:
                raise StoreError(f"{folder}: is in the way of replacing {path}; move it", code=FOREIGN)
            elif found.replaces != replaced or found.different(manifest):
                replace.discard(folder)
                durable.make_folder(folder)
                stack.enter_context(Lock(folder))
                found = None
            durable.prune(replace.retired(path))
            if os.path.lexists(replace.retired(path)):
                raise StoreError(f"{replace.retired(path)}: is in the way of replacing {path}; move it", code=FOREIGN)
        store = Store(folder, sink, found or manifest, target=path)
        if store.is_complete:  # and was stopped just before it could be moved to its path
            with storage(folder):
                store.sweep()
            store.take_place()
        else:
            store.begin(holds)
        yield store


@contextmanager
def storage(path: Path) -> Iterator[None]:
    """Turn the system's errors about files below `path` into a `StoreError`."""
    try:
        yield
    except OSError as error:
        cure = (
            "; free some space, then run the same command again to resume"
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else ""
        )
        raise StoreError(f"{error.filename or path}: {error.strerror or error}{cure}") from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
