"""The counts of a run: images by what became of them, causes by kind, shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from layertap.records import Cause, CountedCause, Failure, Report, RunInfo


class Causes:
    """Causes by kind, which is the exception's type and place: the first of each, and how many there were.

    After 20 kinds the others are counted together, so that it stays small.
    """

    _MOST = 20
    _OTHERS = Cause("others", "of more kinds than are listed", "")

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, str], CountedCause] = {}

    def add(self, cause: Cause, first: str, count: int = 1) -> None:
        """Count `count` images with a cause, of which `first` is the id of the first."""
        kind = cause.type, cause.place
        if kind not in self._kinds and len(self._kinds) >= self._MOST:
            cause = self._OTHERS
            kind = cause.type, cause.place
        known = self._kinds.get(kind)
        self._kinds[kind] = (
            CountedCause(cause, first, count)
            if known is None
            else CountedCause(known.cause, known.first, known.count + count)
        )

    def add_failures(self, failures: Iterable[Failure]) -> None:
        """Count the causes of failures that have one."""
        for failure in failures:
            if failure.cause is not None:
                self.add(failure.cause, failure.record.id)

    def add_counted(self, causes: Iterable[CountedCause]) -> None:
        """Add counts."""
        for counted in causes:
            self.add(counted.cause, counted.first, counted.count)

    def counted(self) -> tuple[CountedCause, ...]:
        """The kinds, in the order in which they came."""
        return tuple(self._kinds.values())


# Forwards per batch above which a run tells its user that sizes cost time.
_MANY_FORWARDS = 1.5


@dataclass(slots=True)
class Tally:
    """Counts of images and shards, failures by reason, their causes, and what was noted of images and values."""

    planned: int = 0
    shards: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    nonfinite: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    causes: Causes = field(default_factory=Causes)
    batches: int = 0
    forwards: int = 0

    @property
    def failed(self) -> int:
        """Images without a row."""
        return self.reasons.total()

    @property
    def kept(self) -> int:
        """Images with a row."""
        return self.planned - self.failed

    def count_images(self, planned: int, reasons: Iterable[str]) -> None:
        """Add images, and the reasons of those among them that failed."""
        self.planned += planned
        self.reasons.update(reasons)

    def count_shard(self, nonfinite: Mapping[str, int], notes: Mapping[str, int]) -> None:
        """Add a shard whose images have been counted."""
        self.shards += 1
        self.nonfinite.update(nonfinite)
        self.notes.update(notes)

    def report(self, info: RunInfo, seconds: float, *, stored: bool) -> Report:
        """The report of the run whose counts these are."""
        return Report(
            planned=self.planned,
            kept=self.kept,
            failed=self.failed,
            shards=self.shards,
            seconds=seconds,
            path=info.path,
            stored=stored,
            columns=info.columns,
            reasons=dict(self.reasons),
            nonfinite=dict(self.nonfinite),
            notes=dict(self.notes),
            causes=self.causes.counted(),
            about=info.about,
            remarks=self._remarks(),
        )

    def _remarks(self) -> list[str]:
        if self.forwards <= _MANY_FORWARDS * self.batches:
            return []
        return [
            f"images of one batch had different sizes: a batch took {self.forwards / self.batches:.1f} forwards on "
            "average; a smaller batch_size, or a preprocessor that resizes, costs less"
        ]
