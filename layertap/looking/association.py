"""How the units go with a column of the metadata: a number, or the label of each image."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from layertap.errors import ConfigError, did_you_mean
from layertap.looking.moments import Floats, Moments
from layertap.outputs.output import Output

MOST_LABELS = 1_000


class Association:
    """The Pearson correlation of each unit with a column (columns x units), added up row by row.

    A column of text counts as one column per label, which is 1 for its images and 0 for others: `labels` and their
    `counts`. Rows without a value are left out. Raises `ConfigError` for an unknown column, or too many labels.
    """

    def __init__(self, features: Output, column: str, units: int) -> None:
        if column not in features.meta:
            known = ", ".join(features.meta) or "none"
            raise ConfigError(
                f"{features.path}: no metadata is named {column!r}{did_you_mean(column, features.meta)} ({known})"
            )
        values = [row[column] for row in features.rows()]
        self._known = np.array([value is not None for value in values], bool)
        self.labels: tuple[str, ...] = ()
        if features.meta[column] in ("int", "float", "bool"):
            numbers = np.array([np.nan if value is None else float(value) for value in values])
            self._known &= np.isfinite(numbers)
            self._codes: NDArray[np.int64] | None = None
            self._numbers = numbers - (numbers[self._known].mean() if self._known.any() else 0)
        else:
            self._set_labels(features, column, values)
        count = max(1, len(self.labels)) if self._codes is not None else 1
        self.counts = np.bincount(self._codes[self._known], minlength=count) if self._codes is not None else None
        self._sums, self._own, self._squares = (np.zeros((count, units)) for _ in range(3))
        self._moments = Moments(units)

    def _set_labels(self, features: Output, column: str, values: list[Any]) -> None:
        self.labels = tuple(sorted({str(value) for value in values if value is not None}))
        if len(self.labels) > MOST_LABELS:
            raise ConfigError(
                f"{features.path}: {column!r} has {len(self.labels):,} labels; selectivity takes up to {MOST_LABELS:,}"
            )
        codes = {label: code for code, label in enumerate(self.labels)}
        self._codes = np.array([0 if value is None else codes[str(value)] for value in values], np.int64)

    def add(self, start: int, values: Floats) -> None:
        """Take more rows (rows x units), the first of which has the number `start`."""
        here = slice(start, start + len(values))
        known = self._known[here]
        columns = self._columns(here).T
        if not known.all():
            values, columns = values[known], columns[:, known]
        self._moments.add(values)
        finite = np.isfinite(values)
        if finite.all():
            self._sums += columns @ values
            self._own += columns.sum(axis=1, keepdims=True)
            self._squares += (columns**2).sum(axis=1, keepdims=True)
        else:
            self._sums += columns @ np.where(finite, values, 0)
            self._own += columns @ finite
            self._squares += columns**2 @ finite

    def _columns(self, here: slice) -> Floats:
        if self._codes is None:
            return np.where(self._known[here], self._numbers[here], 0)[:, None]
        codes = self._codes[here]
        columns = np.zeros((len(codes), len(self._sums)))
        columns[np.arange(len(codes)), codes] = 1
        return columns

    @property
    def correlations(self) -> Floats:
        """Those of all rows added (columns x units); NaN where a unit or the column does not vary."""
        moments = self._moments
        shared = self._sums - self._own * moments.means
        with np.errstate(all="ignore"):
            spread = self._squares - self._own**2 / moments.counts
            varies = (moments.largest > moments.least) & (spread > 1e-12 * self._squares)
            return np.where(varies, shared / np.sqrt(spread * moments.second), np.nan)
