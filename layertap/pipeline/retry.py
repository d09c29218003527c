"""A complete output in which images failed for a passing reason: those shards are made again, the rest kept."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from layertap.errors import FOREIGN, StoreError
from layertap.images.failure_codes import may_pass
from layertap.images.plan import Plan
from layertap.outputs.output import Output
from layertap.outputs.stored import StoredShards
from layertap.pipeline.work import Work
from layertap.records import Gathered, Planned
from layertap.store.manifest import ShardFacts


class Retry(Work):
    """The part of `output` that is computed again.

    A whole shard is, because a row's last bits depend on the batch it was in. Raises `StoreError` (6) where the file
    of a kept row is not the one that the row was made from.
    """

    def __init__(self, output: Output, facts: list[ShardFacts], plan: Plan) -> None:
        self._stored = StoredShards(output, facts, output.taps)
        self._plan = plan
        self._again: set[int] = set()
        for shard, failures in zip(self._stored, self._stored.failures(), strict=True):
            if any(may_pass(failed.stage, failed.reason) for failed in failures):
                self._again.add(shard.number)
            without = {failed.record.id for failed in failures}
            if plan.digest_of(shard.first, shard.facts.planned, without) != shard.facts.source:
                raise StoreError(
                    f"{output.path}: the files of some of its rows have changed since; extract them again into "
                    "another path, or with mode=new",
                    code=FOREIGN,
                )

    def __bool__(self) -> bool:
        return bool(self._again)

    def planned(self, first: int) -> Iterator[Planned]:
        wanted = [shard for shard in self._stored if shard.number in self._again and shard.number >= first]
        if not wanted:
            return
        place = wanted[0].first
        records = self._plan.records(place, wanted[-1].end)
        for shard in wanted:
            yield from islice(records, shard.first - place, shard.end - place)
            place = shard.end

    def numbers(self, first: int) -> Iterator[int]:
        return (number for number in sorted(self._again) if number >= first)

    def is_computed(self, number: int) -> bool:
        return number in self._again

    def shards(self, computed: Iterator[Gathered], first: int) -> Iterator[Gathered]:
        numbers = range(first, len(self._stored))
        stored = self._stored.gathered([number for number in numbers if number not in self._again])
        for number in numbers:
            yield next(computed) if number in self._again else next(stored)
