"""Planned records as JSON, for a worker in another process, so that it need not list the source itself."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from layertap.images.plan import Plan, vanished
from layertap.records import ImageRecord, Planned
from layertap.store.board import SentRecord
from layertap.store.paths import path_text, text_path


def sent(planned: Iterable[Planned], directory: str) -> list[SentRecord] | None:
    """The records as data, with paths relative to `directory` made absolute; None where one is more than a file."""
    found: list[SentRecord] = []
    for each in planned:
        record = each.record
        if isinstance(record.data, Path):
            path = path_text(os.path.join(directory, record.data))
        elif record.data is vanished:
            path = None
        else:
            return None
        found.append((record.id, each.stamp, path, dict(record.meta)))
    return found


def received(records: Sequence[SentRecord]) -> list[Planned]:
    """The records that were sent."""
    return [
        Planned(ImageRecord(record_id, vanished if path is None else Path(text_path(path)), meta), stamp)
        for record_id, stamp, path, meta in records
    ]


class SentPlan(Plan):
    """The plan of another process, of which only the first records are here: `count` images, and two hashes."""

    def __init__(self, count: int, digest: str, contents: str, first: Sequence[SentRecord]) -> None:
        self.count, self.digest, self.contents = count, digest, contents
        self.keys, self.remarks = [], ()
        self._first = received(first)

    def records(self, first: int = 0, stop: int | None = None) -> Iterator[Planned]:
        """Those of the first records that are asked for."""
        return iter(self._first[first:stop])
