"""One tap's rows out of many parts, as one array that is read when it is asked for."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layertap.contracts import ArrayLike
from layertap.errors import StoreError

# The default size of what `chunks` yields: large enough that a read costs no more than its bytes.
_CHUNK_BYTES = 16_000_000


class Rows:
    """One tap's values, one row per image, read when they are asked for.

    `shape` and `dtype` are known without reading; `rows[i]`, `rows[a:b]`, `rows[[3, 1]]` and `np.asarray(rows)` give
    arrays, in row order.
    """

    def __init__(self, parts: Sequence[ArrayLike], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._parts = parts
        self._starts = list(itertools.accumulate((part.shape[0] for part in parts), initial=0))
        self.shape: tuple[int, ...] = (self._starts[-1], *shape)
        self.dtype = dtype

    @property
    def ndim(self) -> int:
        """How many axes there are, the rows among them."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<Rows {self.shape} {self.dtype}>"

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self[index] for index in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False and len(self._parts) != 1:
            raise ValueError("rows in several parts cannot become one array without a copy")
        values = self[:]
        return np.array(values, dtype=dtype) if copy else np.asarray(values, dtype=dtype)

    def __getitem__(self, key: Any) -> Any:
        first, *rest = key if isinstance(key, tuple) else (key,)
        if first is Ellipsis or first is None:
            return np.asarray(self)[key]
        values = self._rows(first)
        if not rest:
            return values
        return values[tuple(rest)] if isinstance(first, (int, np.integer)) else values[(slice(None), *rest)]

    def chunks(self, rows: int | None = None) -> Iterator[NDArray[Any]]:
        """All rows in order, in arrays of at most `rows` of them; by default as many as 16 MB hold, at least one."""
        if rows is None:
            rows = max(1, _CHUNK_BYTES // max(1, math.prod(self.shape[1:]) * self.dtype.itemsize))
        if rows < 1:
            raise ValueError(f"a chunk has at least one row, not {rows}")
        return (self._stretch(start, min(start + rows, len(self))) for start in range(0, len(self), rows))

    def _rows(self, key: Any) -> NDArray[Any]:
        if isinstance(key, (int, np.integer)):
            index = range(len(self))[int(key)]
            part = bisect.bisect_right(self._starts, index) - 1
            return self._true(self._parts[part][index - self._starts[part]]).reshape(self.shape[1:])
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step == 1:
                return self._stretch(start, max(start, stop))
            return self._scattered(np.arange(start, stop, step))
        wanted = np.asarray(key)
        if wanted.dtype == bool:
            if wanted.shape != (len(self),):
                raise IndexError(f"a boolean index needs one value per row ({len(self)}), not the shape {wanted.shape}")
            wanted = np.flatnonzero(wanted)
        wanted = wanted.astype(np.int64, casting="unsafe" if not wanted.size else "same_kind")
        if wanted.size and not (-len(self) <= wanted.min() and wanted.max() < len(self)):
            raise IndexError(f"a row is out of range: there are {len(self)}")
        return self._scattered(wanted % len(self) if len(self) else wanted)

    def _stretch(self, start: int, stop: int) -> NDArray[Any]:
        first = max(bisect.bisect_right(self._starts, start) - 1, 0)
        found = []
        for at, part in zip(self._starts[first:], self._parts[first:], strict=False):
            if at >= stop:
                break
            if start < at + part.shape[0]:
                found.append(self._shaped(part[max(start - at, 0) : stop - at]))
        if len(found) == 1:
            return found[0]
        return np.concatenate(found) if found else np.empty((0, *self.shape[1:]), self.dtype)

    def _scattered(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        values = np.empty((*rows.shape, *self.shape[1:]), self.dtype)
        owners = np.searchsorted(self._starts, rows, side="right") - 1
        for part in np.unique(owners):
            here = owners == part
            local = rows[here] - self._starts[part]
            # Not every format can gather in any order; all can in ascending order without repeats.
            unique, back = np.unique(local, return_inverse=True)
            values[here] = self._shaped(self._parts[part][unique])[back]
        return values

    def _shaped(self, values: Any) -> NDArray[Any]:
        """Stored rows in the shape of the tap: a format may keep them flat."""
        array = self._true(values)
        return array.reshape(len(array), *self.shape[1:])

    def _true(self, values: Any) -> NDArray[Any]:
        """Stored values in their own dtype: bfloat16 is kept as its bits by formats that do not know it."""
        array = np.asarray(values)
        if array.dtype == self.dtype:
            return array
        if array.dtype.itemsize != self.dtype.itemsize or array.dtype.hasobject:
            raise StoreError(
                f"rows of {self.dtype} are stored as {array.dtype}; a sink's load() gives what its save() was given"
            )
        return array.view(self.dtype)
