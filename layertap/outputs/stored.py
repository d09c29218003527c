"""An output's shards as they are stored: where each one is, and its rows, compared with the recorded digests."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layertap.errors import StoreError
from layertap.outputs.output import Output
from layertap.outputs.rows import Rows
from layertap.records import INDEX_COLUMNS, Failure, Gathered, ImageRecord, Shard
from layertap.store.commits import digest
from layertap.store.manifest import ShardFacts


class Damaged(StoreError):
    """The stored data is not what the run wrote."""


@dataclass(frozen=True, slots=True)
class StoredShard:
    """A shard: `first` is the place in the plan of its first image, `start` the number of its first row."""

    number: int
    first: int
    start: int
    facts: ShardFacts

    @property
    def end(self) -> int:
        """The place in the plan after its last image."""
        return self.first + self.facts.planned

    @property
    def stop(self) -> int:
        """The number after its last row."""
        return self.start + self.facts.kept


class StoredShards:
    """The shards of `output` in order, with the values of `taps`."""

    def __init__(self, output: Output, facts: Sequence[ShardFacts], taps: Sequence[str]) -> None:
        self._output = output
        self._taps = taps
        self._opened: dict[str, Rows] = {}
        self._shards: list[StoredShard] = []
        first = start = 0
        for number, found in enumerate(facts):
            self._shards.append(StoredShard(number, first, start, found))
            first, start = self._shards[-1].end, self._shards[-1].stop

    def __iter__(self) -> Iterator[StoredShard]:
        return iter(self._shards)

    def __len__(self) -> int:
        return len(self._shards)

    def rows(self, tap: str) -> Rows:
        """All rows of a tap, unchecked."""
        if tap not in self._opened:
            self._opened[tap] = self._output[tap]
        return self._opened[tap]

    def values(self, shard: StoredShard, tap: str) -> NDArray[Any]:
        """A shard's rows of a tap, the caller's own array. Raises `Damaged` if its digest differs."""
        found = np.array(self.rows(tap)[shard.start : shard.stop])
        if digest(found) != shard.facts.values.get(tap):
            raise Damaged(f"{self._output.path}: the rows of {tap!r} in shard {shard.number} are damaged")
        return found

    def failures(self) -> Iterator[tuple[Failure, ...]]:
        """The failures of each shard."""
        listed = iter(self._output.failures)
        for shard in self._shards:
            found = islice(listed, shard.facts.planned - shard.facts.kept)
            yield tuple(Failure(ImageRecord(image["id"], b""), image["stage"], image["reason"]) for image in found)

    def gathered(self, numbers: Collection[int]) -> Iterator[Gathered]:
        """The shards with these numbers, in order, as a run gathers them. Raises `Damaged`."""
        rows = self._output.rows()
        for shard, failures in zip(self._shards, self.failures(), strict=True):
            kept = list(islice(rows, shard.facts.kept))
            if shard.number in numbers:
                values = {tap: self.values(shard, tap) for tap in self._taps}
                found = Shard(shard.number, tuple(_record(row) for row in kept), values)
                facts = shard.facts
                causes = [cause.counted() for cause in facts.causes]
                yield Gathered(found, shard.first, facts.planned, failures, facts.nonfinite, facts.notes, causes)


def _record(row: Mapping[str, Any]) -> ImageRecord:
    return ImageRecord(row["id"], b"", {key: value for key, value in row.items() if key not in INDEX_COLUMNS})
