"""Rows that stay in their files until they are requested, and the errors for files that cannot be read or written."""

from __future__ import annotations

import bisect
import itertools
import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import layertap

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_BLOCK = 2**20

_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")


class StoredRows(ABC):
    """One tap's rows in the file or folder `path`: what `FileSink.load` returns.

    `rows[i]`, `rows[a:b]` and `rows[[3, 1]]` read only the blocks of `block` rows that contain them, and leave no file
    open. Raises `StoreError`, with the file's name, if the file is damaged.
    """

    def __init__(self, path: Path, shape: Sequence[int], dtype: np.dtype[Any], block: int | None = None) -> None:
        self.path = path
        self.shape = tuple(shape)
        self.dtype = dtype
        self.block = block or rows_in_block(self.shape[1:], dtype)

    @abstractmethod
    def read(self, start: int, stop: int) -> NDArray[Any]:
        """The rows from `start` up to `stop`: `0 <= start < stop <= shape[0]`."""

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """The rows with these numbers, in the given order."""
        import numpy as np

        values = np.empty((len(rows), *self.shape[1:]), self.dtype)
        owners = rows // self.block
        for owner in np.unique(owners):
            here = owners == owner
            first = int(rows[here].min())
            values[here] = self._whole(first, int(rows[here].max()) + 1)[rows[here] - first]
        return values

    def __getitem__(self, key: Any) -> Any:
        import numpy as np

        rows = range(self.shape[0])
        if isinstance(key, (int, np.integer)):
            row = rows[int(key)]
            return self._whole(row, row + 1)[0]
        if isinstance(key, slice) and rows[key].step == 1:
            return self._whole(rows[key].start, rows[key].stop)
        wanted = np.asarray(rows[key] if isinstance(key, slice) else key, np.int64)
        if wanted.size and not -len(rows) <= wanted.min() <= wanted.max() < len(rows):
            raise IndexError(f"row out of range: there are {len(rows)} rows")
        return self.take(np.where(wanted < 0, wanted + len(rows), wanted))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        import numpy as np

        if copy is False:
            raise ValueError("rows in a file cannot be converted to an array without a copy")
        return np.asarray(self[:], dtype=dtype)

    def _whole(self, start: int, stop: int) -> NDArray[Any]:
        import numpy as np

        if start >= stop:
            return np.empty((0, *self.shape[1:]), self.dtype)
        with readable(self.path):
            values = self.read(start, stop)
            if values.shape != (stop - start, *self.shape[1:]):
                raise ValueError(f"gives {values.shape} instead of {stop - start} rows of {self.shape[1:]}")
        return values


class Joined(StoredRows):
    """The rows of several files, one after another."""

    def __init__(self, folder: Path, pieces: Sequence[StoredRows]) -> None:
        if not pieces:
            raise layertap.StoreError(f"{folder}: its files are missing")
        first = pieces[0]
        for piece in pieces:
            if (piece.shape[1:], piece.dtype) != (first.shape[1:], first.dtype):
                raise layertap.StoreError(f"{piece.path}: its rows differ in shape or dtype from those in {first.path}")
        self._pieces = pieces
        self._starts = list(itertools.accumulate((piece.shape[0] for piece in pieces), initial=0))
        super().__init__(folder, (self._starts[-1], *first.shape[1:]), first.dtype)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        import numpy as np

        last = bisect.bisect_left(self._starts, stop)
        owners = range(bisect.bisect_right(self._starts, start) - 1, last)
        found = [
            self._pieces[owner][max(start - self._starts[owner], 0) : stop - self._starts[owner]] for owner in owners
        ]
        return found[0] if len(found) == 1 else np.concatenate(found)

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        import numpy as np

        values = np.empty((len(rows), *self.shape[1:]), self.dtype)
        owners = np.searchsorted(self._starts, rows, side="right") - 1
        for owner in np.unique(owners):
            here = owners == owner
            values[here] = self._pieces[owner][rows[here] - self._starts[owner]]
        return values


def rows_in_block(row: Sequence[int], dtype: np.dtype[Any], size: int = _BLOCK) -> int:
    """The number of rows of this shape that make about `size` bytes; at least one."""
    return max(1, size // max(1, math.prod(row) * dtype.itemsize))


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Whether the values are bfloat16, which most formats can store only as bits."""
    return dtype.name == "bfloat16"


def member(stem: str) -> str:
    """The name for a tap's array, distinct from `id`, the name of the array of ids."""
    return "id~tap" if stem == "id" else stem


def numbered(folder: Path, suffix: str) -> list[Path]:
    """The files `part-00000.SUFFIX` and so on in `folder`, in the order of their numbers."""
    return sorted(folder.glob(f"part-*.{suffix}"), key=lambda path: (len(path.name), path.name))


def link_all(files: Sequence[Path], folder: Path) -> None:
    """Put the same files into `folder` too, without copying their contents."""
    for file in files:
        os.link(file, folder / file.name)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn any error of a format's library about a file that it cannot read into a `StoreError` that names the file."""
    try:
        yield
    except (layertap.LayertapError, ImportError, MemoryError):
        raise
    except BaseException as error:
        # A panic in a Rust library is not an Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        said = " ".join(str(error).split()) or type(error).__name__
        raise layertap.StoreError(f"{path}: is damaged, or was not written by a run: {said[:300]}") from error


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """Turn a library's own error about a full or broken disk back into the original `OSError`."""
    try:
        yield
    except Exception as error:
        found = _SYSTEM_ERROR.search(str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error
