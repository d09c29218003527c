"""`index.csv` and `failures.csv`: what became of each image."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

from layertap.records import INDEX_COLUMNS
from layertap.store import durable
from layertap.store.commits import Commit

INDEX, FAILURES = "index.csv", "failures.csv"


def write_listings(folder: Path, commits: Iterable[Commit], keys: Sequence[str]) -> None:
    """Both files in one reading of the records; `keys` are the metadata columns. The index is durable first."""
    with durable.replacing(folder / FAILURES) as failures, durable.replacing(folder / INDEX) as index:
        failed, kept = csv.writer(failures, lineterminator="\n"), csv.writer(index, lineterminator="\n")
        failed.writerow(["id", "stage", "reason"])
        kept.writerow([*INDEX_COLUMNS, *keys])
        numbers = itertools.count()
        for commit in commits:
            failed.writerows([image.id, image.stage, image.reason] for image in commit.failures)
            kept.writerows([next(numbers), row.id, *(row.meta.get(key) for key in keys)] for row in commit.kept)
