"""A complete output in which images failed for a passing reason: those shards are made again, the rest kept."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np

from layertap.errors import FOREIGN, StoreError
from layertap.images.failure_codes import may_pass
from layertap.images.plan import Plan
from layertap.outputs.output import Output
from layertap.records import Failure, Gathered, ImageRecord, Planned, Shard
from layertap.store.commits import digest
from layertap.store.manifest import ShardFacts


class Retry:
    """What of `features` is to be computed again.

    A whole shard is, because a row's last bits depend on the batch it was in. Raises `StoreError` (6) where the file
    behind a kept row is not the one that the row was made from.
    """

    def __init__(self, features: Output, shards: list[ShardFacts], plan: Plan) -> None:
        self._features = features
        self._shards = shards
        self._plan = plan
        self.numbers: list[int] = []
        """The shards to be computed again, in order."""
        first = 0
        for number, (facts, failures) in enumerate(zip(shards, self._failures(), strict=True)):
            if any(may_pass(failed.stage, failed.reason) for failed in failures):
                self.numbers.append(number)
            without = {failed.record.id for failed in failures}
            if plan.digest_of(first, facts.planned, without) != facts.source:
                raise StoreError(
                    f"{features.path}: the files behind some of its rows have changed since; extract them anew into "
                    "another path, or with mode=new",
                    code=FOREIGN,
                )
            first += facts.planned

    def planned(self, first: int) -> Iterator[Planned]:
        """The records to be computed again, from shard `first` on."""
        wanted = [number for number in self.numbers if number >= first]
        if not wanted:
            return
        ends = np.cumsum([facts.planned for facts in self._shards])
        begin, end = int(ends[wanted[0]] - self._shards[wanted[0]].planned), int(ends[wanted[-1]])
        again = set(wanted)
        for position, record in enumerate(self._plan.records(begin, end), begin):
            if int(np.searchsorted(ends, position, side="right")) in again:
                yield record

    def shards(self, computed: Iterator[Gathered], first: int) -> Iterator[Gathered]:
        """All shards from number `first` on: those computed again in their places, the others as they are stored."""
        rows, failures, start = self._features.rows(), self._failures(), 0
        for number, (facts, failed) in enumerate(zip(self._shards, failures, strict=True)):
            kept = list(islice(rows, facts.kept))
            if number >= first:
                again = number in self.numbers
                yield next(computed) if again else self._stored(number, start, facts, kept, failed)
            start += facts.kept

    def _stored(
        self, number: int, start: int, facts: ShardFacts, kept: list[dict[str, Any]], failures: tuple[Failure, ...]
    ) -> Gathered:
        values = {tap: self._features[tap][start : start + facts.kept] for tap in self._features.taps}
        for tap, found in values.items():
            if digest(found) != facts.values[tap]:
                raise StoreError(f"{self._features.path}: the rows of {tap!r} in shard {number} are damaged")
        records = [
            ImageRecord(row["id"], b"", {key: value for key, value in row.items() if key not in ("row", "id")})
            for row in kept
        ]
        first = sum(earlier.planned for earlier in self._shards[:number])
        shard = Shard(number, records, values)
        return Gathered(shard, first, facts.planned, failures, facts.nonfinite, facts.notes)

    def _failures(self) -> Iterator[tuple[Failure, ...]]:
        """The failures of each shard."""
        listed = iter(self._features.failures)
        for facts in self._shards:
            found = islice(listed, facts.planned - facts.kept)
            yield tuple(Failure(ImageRecord(f["id"], b""), f["stage"], f["reason"]) for f in found)
