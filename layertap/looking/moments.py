"""Mean, spread and shape of many columns at once, in one pass over their values."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Moments:
    """Count, mean and central moments of each column, of all values that were added and are finite, in float64."""

    def __init__(self, columns: int) -> None:
        self.counts = np.zeros(columns)
        self.means = np.zeros(columns)
        self.second, self.third, self.fourth = (np.zeros(columns) for _ in range(3))
        self.least = np.full(columns, np.inf)
        self.largest = np.full(columns, -np.inf)
        self.zeros = np.zeros(columns, np.int64)
        self.nonfinite = np.zeros(columns, np.int64)

    def add(self, values: Floats) -> None:
        """Take more values (values x columns)."""
        finite = np.isfinite(values)
        if finite.all():
            counts = np.full(values.shape[1], float(len(values)))
            means = values.mean(axis=0)
            away = values - means
            least, largest = values.min(axis=0), values.max(axis=0)
        else:
            counts = finite.sum(axis=0).astype(np.float64)
            means = np.where(finite, values, 0).sum(axis=0) / np.maximum(counts, 1)
            away = np.where(finite, values - means, 0)
            least = np.where(finite, values, np.inf).min(axis=0)
            largest = np.where(finite, values, -np.inf).max(axis=0)
        self.nonfinite += len(values) - counts.astype(np.int64)
        self.zeros += len(values) - np.count_nonzero(values, axis=0)
        np.minimum(self.least, least, out=self.least)
        np.maximum(self.largest, largest, out=self.largest)
        squares = away * away
        second = squares.sum(axis=0)
        away *= squares
        third = away.sum(axis=0)
        squares *= squares
        self._merge(counts, means, second, third, squares.sum(axis=0))

    def _merge(self, counts: Floats, means: Floats, second: Floats, third: Floats, fourth: Floats) -> None:
        """Pébay's formulas for the moments of two sets together (2008)."""
        before, total = self.counts, np.maximum(self.counts + counts, 1)
        apart = means - self.means
        share = before * counts / total
        self.fourth += (
            fourth
            + apart**4 * share * (before**2 - before * counts + counts**2) / total**2
            + 6 * apart**2 * (before**2 * second + counts**2 * self.second) / total**2
            + 4 * apart * (before * third - counts * self.third) / total
        )
        self.third += (
            third
            + apart**3 * share * (before - counts) / total
            + 3 * apart * (before * second - counts * self.second) / total
        )
        self.second += second + apart**2 * share
        self.means += apart * counts / total
        self.counts = before + counts
