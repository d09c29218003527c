"""Commit records: the only proof that a part of an output exists, and everything known about its shard."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, JsonValue

from layertap.errors import FOREIGN, StoreError
from layertap.records import Gathered
from layertap.store import durable, safe_files
from layertap.store.manifest import CauseFacts, Count, Counts, Digest, Facts, FileFacts, FileName, ShardFacts, parsed
from layertap.store.tally import Tally

PARTS, COMMITS = "parts", "commits"

_TYPES: Mapping[type, str] = {
    bool: "bool",
    int: "int",
    float: "float",
    str: "str",
    list: "json",
    dict: "json",
    type(None): "null",
}


class KeptRow(Facts):
    """An image with a row."""

    id: str
    meta: dict[str, JsonValue]


class FailedImage(Facts):
    """An image without one."""

    id: str
    stage: str
    reason: str


class Commit(Facts):
    """`commits/00000.json`: a shard, written and durable."""

    layertap: Literal[1]
    shard: Count
    first: Count
    planned: Count
    source: Digest
    files: dict[FileName, FileFacts] = Field(description="of the part, by name")
    values: dict[str, Digest]
    nonfinite: Counts
    notes: Counts
    causes: list[CauseFacts] = Field(default=[])
    processor: dict[str, Any] | None = None
    kept: list[KeptRow]
    failures: list[FailedImage]

    @classmethod
    def of(
        cls,
        gathered: Gathered,
        source: str,
        files: Mapping[str, FileFacts],
        processor: Mapping[str, Any] | None = None,
    ) -> Commit:
        """The record of a shard whose files are durable."""
        shard = gathered.shard
        return cls(
            layertap=1,
            shard=shard.number,
            first=gathered.first,
            planned=gathered.planned,
            source=source,
            files=dict(files),
            values={name: digest(values) for name, values in shard.values.items()},
            nonfinite=dict(gathered.nonfinite),
            notes=dict(gathered.notes),
            causes=CauseFacts.of(gathered.causes),
            processor=None if processor is None else dict(processor),
            kept=[KeptRow(id=record.id, meta=dict(record.meta)) for record in shard.records],
            failures=[FailedImage(id=f.record.id, stage=f.stage, reason=f.reason) for f in gathered.failures],
        )

    def facts(self) -> ShardFacts:
        """What the manifest keeps of it."""
        return ShardFacts(
            planned=self.planned,
            kept=len(self.kept),
            source=self.source,
            values=self.values,
            nonfinite=self.nonfinite,
            notes=self.notes,
            causes=self.causes,
            processor=self.processor,
        )

    def accounts_for(self, planned: Sequence[str]) -> bool:
        """Whether it accounts for each of these ids once, in order, and for them alone."""
        failed = {failure.id for failure in self.failures}
        kept = [record_id for record_id in planned if record_id not in failed]
        return len(planned) == self.planned and kept == [row.id for row in self.kept] and failed <= set(planned)

    def count_into(self, tally: Tally) -> None:
        """Add this shard to what has become of the images."""
        tally.count_images(self.planned, (failure.reason for failure in self.failures))
        tally.causes.add_counted(cause.counted() for cause in self.causes)
        tally.count_shard(self.nonfinite, self.notes)

    def placed_files(self) -> dict[str, FileFacts]:
        """Its files, by their names in the output folder."""
        return {f"{_part(self.shard)}/{name}": facts for name, facts in self.files.items()}


class Commits:
    """The commit records of an output folder. They are always those of its first shards."""

    def __init__(self, output: Path) -> None:
        self._output = output

    def __iter__(self) -> Iterator[Commit]:
        """The records in order, read one at a time: an index may be larger than memory."""
        for number in itertools.count():
            record = self.read(number)
            if record is None:
                return
            yield record

    def __len__(self) -> int:
        return next(number for number in itertools.count() if not self._path(number).exists())

    def read(self, number: int) -> Commit | None:
        """The record of a shard, None if it is not committed. Raises `StoreError` for one that is not layertap's."""
        path = self._path(number)
        try:
            text = safe_files.read_text(self._output, f"{COMMITS}/{path.name}")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise StoreError(f"{path}: cannot be read: {error}", code=FOREIGN) from error
        record = parsed(text, path, Commit)
        if record.shard != number:
            raise StoreError(f"{path}: is the record of shard {record.shard}", code=FOREIGN)
        return record

    def create(self, record: Commit) -> None:
        """Make a shard true. Raises `FileExistsError` where it is already."""
        with durable.creating(self._path(record.shard)) as file:
            _dump(record.model_dump(), file)

    def link(self, record: Commit, file: Path) -> None:
        """Make a shard true by a record that is in `file`. Raises `FileExistsError` where it is already."""
        os.link(file, self._path(record.shard), follow_symlinks=False)

    def remove(self, number: int) -> None:
        """Make a shard untrue again, its part being gone."""
        self._path(number).unlink()

    def tidy(self) -> None:
        """Remove the remains of a crash while the last record, or the next, was written."""
        committed = len(self)
        for number in (max(committed - 1, 0), committed):
            record = self._path(number)
            record.with_name(f"{record.name}.tmp").unlink(missing_ok=True)

    def part(self, number: int) -> Path:
        """The folder of a shard's files."""
        return self._output / _part(number)

    def _path(self, number: int) -> Path:
        return self._output / COMMITS / f"{number:05d}.json"


def durable_facts(folder: Path) -> dict[str, FileFacts]:
    """Make all of a folder durable; what its files are. Raises `OSError`."""
    return {file.relative_to(folder).as_posix(): FileFacts.of(file) for file in durable.sync_tree(folder)}


def digest(values: NDArray[Any]) -> str:
    """The sha256 of an array's values as C-ordered bytes."""
    return hashlib.sha256(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data).hexdigest()


def add_meta_types(types: dict[str, str], kept: Iterable[KeptRow]) -> None:
    """Add to the metadata columns and their type's name, by which a reader turns text back into values."""
    for row in kept:
        for key, value in row.meta.items():
            types[key] = _type(types.get(key), value)


def _type(known: str | None, value: Any) -> str:
    """The one type of a column so far: `null` while it has held nothing, `json` once it has held a list or dict.

    Where other types differ, it is `str`.
    """
    found = _TYPES.get(type(value))
    if found is None:
        # A source may give a subclass, such as NumPy's float64, which comes back from a record as the plain type.
        found = next(name for kind, name in _TYPES.items() if isinstance(value, kind))
    if known in (None, "null", found):
        return found
    if known is not None and found == "null":
        return known
    return "json" if "json" in (known, found) else "str"


def _part(number: int) -> str:
    return f"{PARTS}/{number:05d}"


def _dump(value: Any, file: IO[str]) -> None:
    # Not json.dump, which calls the file once per value.
    file.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")
