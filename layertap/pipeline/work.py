"""The part of a plan that a run computes: by default everything after its last commit."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator

from layertap.images.plan import Plan
from layertap.records import Gathered, Planned


class Work(ABC):
    """The shards that a run writes, and which of them it computes; `first` is the first that is not committed."""

    @abstractmethod
    def planned(self, first: int) -> Iterator[Planned]:
        """The records to compute, in the order of the plan."""

    @abstractmethod
    def numbers(self, first: int) -> Iterator[int]:
        """The numbers of the shards that these records fill."""

    @abstractmethod
    def is_computed(self, number: int) -> bool:
        """Whether a shard is computed, not taken from another output."""

    @abstractmethod
    def shards(self, computed: Iterator[Gathered], first: int) -> Iterator[Gathered]:
        """Every shard to write, in the order of the plan, with those `computed` in their places."""


class WholePlan(Work):
    """Everything is computed."""

    def __init__(self, plan: Plan, shard_rows: int) -> None:
        self._plan = plan
        self._shard_rows = shard_rows

    def planned(self, first: int) -> Iterator[Planned]:
        return self._plan.records(first * self._shard_rows)

    def numbers(self, first: int) -> Iterator[int]:
        return itertools.count(first)

    def is_computed(self, number: int) -> bool:
        return True

    def shards(self, computed: Iterator[Gathered], first: int) -> Iterator[Gathered]:
        return computed
