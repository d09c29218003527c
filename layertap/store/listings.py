"""`index.csv` and `failures.csv`: what became of each image."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from layertap.records import INDEX_COLUMNS
from layertap.store import durable
from layertap.store.commits import Commit

INDEX, FAILURES = "index.csv", "failures.csv"


@contextmanager
def listings(folder: Path, keys: Sequence[str]) -> Iterator[Callable[[Commit], None]]:
    """A function that lists a shard's images in both files. They are durable when the block ends, the index first.

    `keys` are the metadata columns.
    """
    with durable.replacing(folder / FAILURES) as failures, durable.replacing(folder / INDEX) as index:
        failed, kept = csv.writer(failures, lineterminator="\n"), csv.writer(index, lineterminator="\n")
        failed.writerow(["id", "stage", "reason"])
        kept.writerow([*INDEX_COLUMNS, *keys])
        numbers = itertools.count()

        def add(record: Commit) -> None:
            failed.writerows([image.id, image.stage, image.reason] for image in record.failures)
            kept.writerows([next(numbers), row.id, *(row.meta.get(key) for key in keys)] for row in record.kept)

        yield add
