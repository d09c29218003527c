"""How long each stage of a run takes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

T = TypeVar("T")

_END = object()


class Stopwatch:
    """Seconds per stage, added up over all threads: stages that overlap add up to more than the run took."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._lock = threading.Lock()

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by stage, in the order in which the stages first ended."""
        with self._lock:
            return dict(self._seconds)

    def add(self, stage: str, seconds: float) -> None:
        """Add `seconds` to a stage."""
        with self._lock:
            self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds

    def waits(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """The items, adding the time spent waiting for each of them."""
        iterator = iter(items)
        while True:
            with self.measure(stage):
                item = next(iterator, _END)
            if item is _END:
                return
            yield cast(T, item)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time that the block takes, however it ends."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - start)
