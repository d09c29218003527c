"""The largest values of many columns and the rows that they are in, in one pass."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Extremes:
    """The `k` largest values of each column (k x columns), equal ones in the order of the rows; row -1 for none."""

    def __init__(self, k: int, columns: int) -> None:
        self.values = np.full((k, columns), -np.inf)
        self.rows = np.full((k, columns), -1)

    def add(self, start: int, values: NDArray[np.float64]) -> None:
        """Take more rows (rows x columns), the first of which has the number `start`; NaN counts for nothing."""
        # What equals the least value kept is in a later row.
        columns = np.flatnonzero(((values > self.values[-1]) | (self.rows[-1] < 0)).any(axis=0))
        if not len(columns):
            return
        numbers = np.arange(start, start + len(values))[:, None]
        here = values[:, columns]
        unknown = np.isnan(here)
        every = np.concatenate([self.values[:, columns], np.where(unknown, -np.inf, here)])
        rows = np.concatenate([self.rows[:, columns], np.where(unknown, -1, numbers)])
        # Places without a row come after rows with -inf.
        order = np.lexsort((rows < 0, -every), axis=0)[: len(self.values)]
        self.values[:, columns] = np.take_along_axis(every, order, axis=0)
        self.rows[:, columns] = np.take_along_axis(rows, order, axis=0)
