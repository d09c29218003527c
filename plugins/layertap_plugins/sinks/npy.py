"""One `.npy` file per tap, which plain numpy reads."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import layertap

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PIECE = 4 * 2**20


class NpySink(layertap.FileSink):
    """Writes each tap as a C-ordered array, one row per image; bfloat16 as its bits, in uint16.

    The bytes are the same as from `np.save`, both in a part and in the merged array. Nothing is ever written through a
    memory map, so that a full disk is an error and not a signal.
    """

    def save(self, shard: layertap.Shard, folder: Path) -> None:
        import numpy as np

        for tap, values in shard.values.items():
            stored = values.view(np.uint16) if values.dtype.name == "bfloat16" else values
            rows = np.ascontiguousarray(stored)
            with open(self._file(folder, tap), "wb") as file:
                _write_header(file, rows.shape, rows.dtype)
                file.write(rows.reshape(-1).view(np.uint8).data)

    def load(self, folder: Path, tap: str) -> NDArray[Any]:
        import numpy as np

        mapped: NDArray[Any] = np.load(self._file(folder, tap), mmap_mode="r", allow_pickle=False)
        return mapped.view(np.ndarray)

    def merge(self, parts: Sequence[Path], folder: Path) -> None:
        for tap in self.stems:
            _merge([self._file(part, tap) for part in parts], self._file(folder, tap))

    def _file(self, folder: Path, tap: str) -> Path:
        return folder / f"{self.stems[tap]}.npy"


@dataclass(frozen=True, slots=True)
class _Header:
    """The facts in the header of a `.npy` file, and the offset at which its values begin."""

    rows: int
    row: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int

    @classmethod
    def of(cls, file: BinaryIO) -> _Header:
        from numpy.lib import format

        format.read_magic(file)
        (rows, *row), _, dtype = format.read_array_header_1_0(file)
        return cls(rows, tuple(row), dtype, file.tell())


def _merge(parts: Sequence[Path], merged: Path) -> None:
    """Copy the rows of all parts into one file, a piece at a time, so that memory does not grow with the rows."""
    headers = []
    for part in parts:
        with open(part, "rb") as file:
            headers.append(_Header.of(file))
    first = headers[0]
    with open(merged, "wb") as target:
        _write_header(target, (sum(header.rows for header in headers), *first.row), first.dtype)
        for part, header in zip(parts, headers, strict=True):
            if (header.row, header.dtype) != (first.row, first.dtype):
                raise layertap.StoreError(f"the rows in {part} differ in shape or dtype from those in {parts[0]}")
            _copy_rows(part, header, target)


def _copy_rows(part: Path, header: _Header, target: BinaryIO) -> None:
    before = target.tell()
    with open(part, "rb") as source:
        source.seek(header.start)
        shutil.copyfileobj(source, target, _PIECE)
    if target.tell() - before != math.prod((header.rows, *header.row)) * header.dtype.itemsize:
        raise layertap.StoreError(f"{part} does not hold the {header.rows} rows that it announces")


def _write_header(file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    from numpy.lib import format

    facts = {"descr": format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    format.write_array_header_1_0(file, facts)


@layertap.hookimpl
def register_sinks(register: Callable[[str, type[layertap.Sink]], None]) -> None:
    register("npy", NpySink)
