"""The output folder: who owns it, what is committed, and the files of a finished run.

    manifest.json     what the folder is; `status` is `running` or `complete`
    index.csv         one row an image kept; row k of every tap is line k
    failures.csv      one row an image that failed, in the order of the plan
    parts/ commits/   while it runs: a commit record is the only proof that a part exists

A commit: temporary name, write, fsync, rename, fsync of the folder, commit record by exclusive creation, fsync.
"""

from __future__ import annotations

import csv
import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from layertap import durable
from layertap.contracts import FileSink
from layertap.errors import StoreError
from layertap.features import Features
from layertap.plugins import Plugins, guard
from layertap.shards import Gathered

FORMAT = 1
MANIFEST, INDEX, FAILURES, PARTS, COMMITS = "manifest.json", "index.csv", "failures.csv", "parts", "commits"
RUNNING, COMPLETE = "running", "complete"

LOCKED, FOREIGN = 5, 6

_FILES = "file sizes and times"

# Parts of a fingerprint that change with another part, which says more.
_IMPLIED = {"images": ("ids", _FILES), "ids": (_FILES,), "taps": ("columns", "shard_rows"), "model": ("about",)}


class Store:
    """The output folder of one run, open for writing. Made by `open_store`."""

    def __init__(self, path: Path, sink: FileSink, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self._sink = sink
        self._descriptor: int | None = _locked(path)
        sink.stems = {name: tap["file"] for name, tap in manifest["taps"].items()}
        try:
            self._settle()
        except BaseException:
            self.close()
            raise

    @property
    def is_complete(self) -> bool:
        """Whether an earlier run has finished this very output."""
        return bool(self.manifest["status"] == COMPLETE)

    @property
    def committed(self) -> int:
        """How many shards are committed: they are always the first ones."""
        if self.is_complete:
            return int(self.manifest["counts"]["shards"])
        number = 0
        while self._record(number).exists():
            number += 1
        return number

    def totals(self) -> Totals:
        """What the committed shards add up to, or what a complete output's manifest says."""
        totals = Totals(self.manifest["taps"])
        if self.is_complete:
            counts = self.manifest["counts"]
            totals.planned, totals.kept = counts["planned"], counts["kept"]
            totals.reasons.update(self.manifest["failures"])
            totals.nonfinite.update({name: tap["nonfinite"] for name, tap in self.manifest["taps"].items()})
            return totals
        for record in self._records(self.committed):
            totals.add(record)
        return totals

    def close(self) -> None:
        """Let go of the folder."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def commit(self, gathered: Gathered) -> None:
        """Make a shard durable, then true by its commit record. Raises `StoreError` for a full or broken disk."""
        shard = gathered.shard
        part = self.path / PARTS / f"{shard.number:05d}"
        temporary = part.with_name(f"{part.name}.tmp")
        with _storage(self.path):
            durable.fresh_folder(temporary)
        with guard(self._sink), _storage(self.path):
            self._sink.save(shard, temporary)
        with _storage(self.path):
            files = durable.sync_tree(temporary)
            durable.clear_folder(part)
            os.rename(temporary, part)
            durable.sync(part.parent)
            record = _commit_record(gathered, {f.name: (part / f.name).stat().st_size for f in files})
            durable.create(self._record(shard.number), lambda file: _dump(record, file))

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Merge the parts, write index and failures, and mark the output complete. May be repeated after a crash."""
        count = self.committed
        merges = type(self._sink).merge is not FileSink.merge
        with _storage(self.path):
            if merges:
                self._merge([self.path / PARTS / f"{number:05d}" for number in range(count)])
            totals = self.totals()
            durable.replace(self.path / INDEX, lambda file: _write_index(file, self._records(count), totals.meta))
            durable.replace(self.path / FAILURES, lambda file: _write_failures(file, self._records(count)))
            for name, nonfinite in totals.nonfinite.items():
                self.manifest["taps"][name]["nonfinite"] = nonfinite
            self.manifest |= {
                **facts,
                "counts": {"planned": totals.planned, "kept": totals.kept, "failed": totals.failed, "shards": count},
                "failures": dict(sorted(totals.reasons.items())),
                "meta": totals.meta,
                "merged": merges,
                "status": COMPLETE,
                "finished": _now(),
            }
            self._write_manifest()
            self._sweep()

    def _settle(self) -> None:
        """Take the folder as it is: new, ours to go on with, ours and complete, or not ours at all."""
        found = read_manifest(self.path)
        if found is None:
            if any(self.path.iterdir()):
                raise StoreError(f"{self.path}: not empty and not a layertap output; choose another", code=FOREIGN)
            self.manifest |= {"status": RUNNING, "started": _now()}
            with _storage(self.path):
                for name in (PARTS, COMMITS):
                    (self.path / name).mkdir()
                self._write_manifest()
            return
        _refuse_other(self.path, found, self.manifest)
        self.manifest = found
        if self.is_complete:
            self._sweep()
        else:
            with _storage(self.path):
                for name in (PARTS, COMMITS):
                    (self.path / name).mkdir(exist_ok=True)

    def _merge(self, parts: Sequence[Path]) -> None:
        folder = self.path / "merge.tmp"
        durable.fresh_folder(folder)
        with guard(self._sink), _storage(self.path):
            self._sink.merge(parts, folder)
        durable.sync_tree(folder)
        self.manifest["files"] = durable.move_into(folder, self.path)

    def _sweep(self) -> None:
        """Remove the parts of a complete, merged output: by the names that its commits record, and no others."""
        if not self.manifest.get("merged") or not (self.path / COMMITS).is_dir():
            return
        for number in range(self.manifest["counts"]["shards"]):
            record = self._record(number)
            if record.exists():
                part = self.path / PARTS / f"{number:05d}"
                durable.remove(part / name for name in json.loads(record.read_text("utf-8"))["files"])
                if part.is_dir():
                    part.rmdir()
                record.unlink()
        for name in (PARTS, COMMITS):
            if (self.path / name).is_dir() and not any((self.path / name).iterdir()):
                (self.path / name).rmdir()

    def _records(self, count: int) -> Iterator[dict[str, Any]]:
        """The commit records, read one at a time: an index may be larger than memory."""
        for number in range(count):
            yield json.loads(self._record(number).read_text("utf-8"))

    def _record(self, number: int) -> Path:
        return self.path / COMMITS / f"{number:05d}.json"

    def _write_manifest(self) -> None:
        durable.replace(self.path / MANIFEST, lambda file: _dump(self.manifest, file, indent=2))


@contextmanager
def open_store(path: Path, sink: FileSink, manifest: dict[str, Any]) -> Iterator[Store]:
    """The output folder, made if need be, locked, and checked to belong to this very configuration.

    Raises `StoreError`: 5 another run holds it, 6 it is another configuration's or not ours, 7 it cannot be written.
    """
    if path.exists() and not path.is_dir():
        raise StoreError(f"{path}: is a file, and the output is a folder; choose another path", code=FOREIGN)
    with _storage(path):
        path.mkdir(parents=True, exist_ok=True)
    store = Store(path, sink, {"layertap": FORMAT, **manifest})
    try:
        yield store
    finally:
        store.close()


def open_output(path: str | os.PathLike[str], *, plugins: Sequence[str] = ()) -> Features:
    """The features in an output folder, finished or not: `open("features/")["classifier.5"]`.

    `plugins` are files or modules with sinks of your own. Raises `StoreError` where there is no output.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    if manifest is None:
        raise StoreError(f"{folder}: no layertap output here (no {MANIFEST})")
    spec = manifest["config"]["sink"]
    registered = Plugins.load(plugins).find("sink", spec["type"])
    with guard(registered.cls):
        sink = registered.cls(registered.cls.Params.model_validate({k: v for k, v in spec.items() if k != "type"}))
    if not isinstance(sink, FileSink):
        raise StoreError(f"{folder}: the sink {spec['type']!r} keeps no files to open")
    return Features(folder, manifest, sink)


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of an output folder, None where there is none. Raises `StoreError` for one that is not ours."""
    try:
        manifest = json.loads((path / MANIFEST).read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise StoreError(f"{path / MANIFEST}: cannot be read: {error}", code=FOREIGN) from error
    if not isinstance(manifest, dict) or manifest.get("layertap") != FORMAT:
        raise StoreError(f"{path / MANIFEST}: not a manifest of this version of layertap", code=FOREIGN)
    return manifest


def _locked(path: Path) -> int:
    # The lock is on the folder itself, so that it leaves no file behind; the kernel drops it with the process.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise StoreError(f"{path}: another run is writing here", code=LOCKED) from None
    return descriptor


def _refuse_other(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    old, new = found["fingerprint"], wanted["fingerprint"]
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    implied = {after for before in changed for after in _IMPLIED.get(before, ())}
    changed = [key for key in changed if key not in implied]
    if changed:
        shown = "; ".join(f"{key} was {_short(old.get(key))}, now {_short(new.get(key))}" for key in changed)
        raise StoreError(
            f"{path}: holds the output of another configuration: {shown}; choose another path", code=FOREIGN
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _commit_record(gathered: Gathered, files: Mapping[str, int]) -> dict[str, Any]:
    return {
        "shard": gathered.shard.number,
        "first": gathered.first,
        "planned": gathered.planned,
        "files": files,
        "nonfinite": gathered.nonfinite,
        "kept": [{"id": record.id, "meta": dict(record.meta)} for record in gathered.shard.records],
        "failures": [{"id": f.record.id, "stage": f.stage, "reason": f.reason} for f in gathered.failures],
    }


class Totals:
    """What the commits of an output add up to."""

    def __init__(self, taps: Iterable[str]) -> None:
        self.planned = self.kept = 0
        self.reasons: Counter[str] = Counter()
        self.nonfinite: Counter[str] = Counter(dict.fromkeys(taps, 0))
        self.meta: dict[str, str] = {}
        """The metadata columns and their type's name, by which a reader turns text back into values."""

    @property
    def failed(self) -> int:
        return self.planned - self.kept

    def add(self, record: Mapping[str, Any]) -> None:
        """Count a commit record in."""
        self.planned += record["planned"]
        self.kept += len(record["kept"])
        self.reasons.update(failure["reason"] for failure in record["failures"])
        self.nonfinite.update(record["nonfinite"])
        for row in record["kept"]:
            for key, value in row["meta"].items():
                self.meta[key] = _type(self.meta.get(key), value)


def _type(known: str | None, value: Any) -> str:
    """The one type of a column so far, `null` while it has held nothing, `str` where types differ."""
    found = "null" if value is None else type(value).__name__
    if known in (None, "null", found):
        return found
    return known if known is not None and found == "null" else "str"


def _write_index(file: IO[str], records: Iterable[Mapping[str, Any]], keys: Iterable[str]) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["row", "id", *keys])
    rows = (row for record in records for row in record["kept"])
    writer.writerows([number, row["id"], *(row["meta"].get(key) for key in keys)] for number, row in enumerate(rows))


def _write_failures(file: IO[str], records: Iterable[Mapping[str, Any]]) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["id", "stage", "reason"])
    writer.writerows([f["id"], f["stage"], f["reason"]] for record in records for f in record["failures"])


def _dump(value: Any, file: IO[str], indent: int | None = None) -> None:
    json.dump(value, file, indent=indent, ensure_ascii=False, allow_nan=False)
    file.write("\n")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextmanager
def _storage(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"{error.filename or path}: {error.strerror or error}") from error
