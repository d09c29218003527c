"""The metadata of the images that a page shows, column by column."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layertap.looking.report.packing import Packed, packed
from layertap.outputs.output import Output

_NUMBERS = ("int", "float")


@dataclass(frozen=True, slots=True)
class Column:
    """A column of metadata: `numbers`, NaN where there is none, or `labels` and the code of each image, -1 for none.

    `counts` are the images of each label among all rows of the output.
    """

    name: str
    numbers: NDArray[np.float64] | None
    codes: NDArray[np.int32] | None
    labels: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()

    def block(self) -> dict[str, Any]:
        """The column as data for the page."""
        values: Packed = packed(self.numbers if self.codes is None else self.codes)  # type: ignore[arg-type]
        return {"values": values, "labels": self.labels, "counts": self.counts}


def read_shown(features: Output, rows: NDArray[np.int64]) -> tuple[list[str], list[Column]]:
    """The ids and the metadata of some rows, which are in ascending order, in one pass over the index."""
    ids: list[str] = []
    values: dict[str, list[Any]] = {name: [] for name in features.meta}
    counts: dict[str, Counter[str]] = {
        name: Counter() for name, type_name in features.meta.items() if type_name not in _NUMBERS
    }
    wanted = iter(rows.tolist())
    next_row = next(wanted, None)
    for row in features.rows():
        for name, counted in counts.items():
            if row[name] is not None:
                counted[str(row[name])] += 1
        if row["row"] == next_row:
            ids.append(row["id"])
            for name, column in values.items():
                column.append(row[name])
            next_row = next(wanted, None)
    columns = [_column(name, column, counts.get(name)) for name, column in values.items()]
    return ids, columns


def _column(name: str, values: Sequence[Any], counts: Counter[str] | None) -> Column:
    if counts is None:
        return Column(name, np.array([np.nan if value is None else float(value) for value in values], np.float64), None)
    labels = tuple(sorted(counts))
    code_of = {label: code for code, label in enumerate(labels)}
    codes = np.array([-1 if value is None else code_of[str(value)] for value in values], np.int32)
    return Column(name, None, codes, labels, tuple(counts[label] for label in labels))
