"""What has become of a run's images so far."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from layertap.records import Report, RunInfo


@dataclass(slots=True)
class Tally:
    """Counts of images and shards, failures by reason, and what was noted of images and values."""

    planned: int = 0
    shards: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    nonfinite: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)

    @property
    def failed(self) -> int:
        """Images without a row."""
        return self.reasons.total()

    @property
    def kept(self) -> int:
        """Images with a row."""
        return self.planned - self.failed

    def report(self, info: RunInfo, seconds: float, *, stored: bool) -> Report:
        """How the run ended that these are the counts of."""
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
        )
