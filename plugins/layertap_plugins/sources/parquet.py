"""Images as bytes in a column of Parquet files, as Hugging Face stores data sets."""

from __future__ import annotations

import importlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

import layertap
from layertap_plugins.sources import files, tables

# The size of a window of rows, and how many windows are kept: two are in use during the change from one to the next.
# A page can only be read whole, and a column with a dictionary, pyarrow's default, may be one large page.
_WINDOW_BYTES = 8 * 2**20
_MOST_ROWS = 256
_WINDOWS = 3


class ParquetSource(layertap.Source):
    """Yields one record per row, file by file.

    The id is `FILE#ROW`, rows counted from 0, or the value of a column. Other columns are metadata, with lists and
    structs as lists and dicts; labels that `datasets` has stored as numbers are given by name. Columns of bytes are
    left out, and the report says so.
    """

    extra = "parquet"

    class Params(layertap.Params):
        path: str | list[str] = Field(
            min_length=1,
            description="a Parquet file, a folder of them, a pattern such as train-*.parquet, or a list of these",
        )
        column: str = Field(
            "image",
            description="the column of the images: encoded bytes, or a struct with a field `bytes`, as in `datasets`",
        )
        id: str | None = Field(None, description="the column of the ids; by default FILE#ROW")

    params: Params

    def __init__(self, params: Params | None = None) -> None:
        super().__init__(params)
        self._windows = _Windows(self.params.column)
        self._remarks: list[str] = []

    @property
    def remarks(self) -> Sequence[str]:
        return self._remarks

    def records(self) -> Iterator[layertap.ImageRecord]:
        first: tuple[str, list[str]] | None = None
        for path, name in files.located(self.params.path, (".parquet",)).items():
            stamp = files.stamped(path)
            with tables.understood(path), tables.opened(path) as file:
                schema = file.schema_arrow
                if file.metadata.num_rows > os.stat(path).st_size:
                    raise layertap.ConfigError(
                        f"{path!r} is damaged: it claims to have more rows than bytes", where=("path",)
                    )
                self._check(schema, path)
                columns = [name for name in tables.held(schema) if name not in (self.params.column, self.params.id)]
                if first is None:
                    first = path, columns
                    self._remarks = tables.left_out(schema, (self.params.column, self.params.id), repr(path))
                if sorted(columns) != sorted(first[1]):
                    odd = ", ".join(sorted({*columns} ^ {*first[1]}))
                    raise layertap.ConfigError(
                        f"the columns of {path!r} differ from those of {first[0]!r}: {odd}", where=("path",)
                    )
                yield from self._records(file, path, name, stamp, first[1])

    def _records(
        self, file: Any, path: str, name: str, stamp: str, columns: list[str]
    ) -> Iterator[layertap.ImageRecord]:
        keys, features = tables.keys_of(columns), tables.features_of(file.schema_arrow)
        wanted = [*columns, self.params.id] if self.params.id else columns
        number = 0
        for group in range(file.num_row_groups):
            start = number
            for row in tables.rows_of(file, group, wanted):
                record_id = f"{name}#{number}"
                if self.params.id and (record_id := str(tables.plain(row[self.params.id]) or "")) == "":
                    raise layertap.ConfigError(f"row {number} of {path!r} has no {self.params.id!r}", where=("id",))
                data = Cell(self._windows, path, stamp, group, number - start)
                yield layertap.ImageRecord(record_id, data, tables.meta_of(row, keys, features))
                number += 1

    def _check(self, schema: Any, path: str) -> None:
        types: Any = importlib.import_module("pyarrow.types")
        column = self.params.column
        tables.check_column("column", column, schema.names, repr(path))
        if self.params.id:
            tables.check_column("id", self.params.id, tables.scalars(schema), repr(path))
        kind = schema.field(column).type
        if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        if not (types.is_binary(kind) or types.is_large_binary(kind)):
            raise layertap.ConfigError(
                f"{column!r} in {path!r} holds {kind}, not the bytes of images; for a table of paths, "
                "use the source `manifest`",
                where=("column",),
            )


@dataclass(frozen=True, slots=True)
class Cell:
    """An image's place: its row group, and its row in that group."""

    windows: _Windows
    path: str
    stamp: str
    group: int
    row: int

    def __call__(self) -> bytes:
        """The bytes. Raises `ImageError` if the file has changed since it was listed."""
        return self.windows.read(self)


class _Windows:
    """The rows around those read last. Rows are requested nearly in order; an earlier row restarts its row group."""

    def __init__(self, column: str) -> None:
        self._column = column
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, str, int, int], Any] = OrderedDict()
        self._scan: _Scan | None = None

    def __reduce__(self) -> tuple[type[_Windows], tuple[str]]:
        return _Windows, (self._column,)

    def read(self, cell: Cell) -> bytes:
        files.refuse_changed(cell.path, cell.stamp)
        with self._lock:
            data = self._value(cell).as_py()
        files.refuse_changed(cell.path, cell.stamp)
        if data is None:
            raise layertap.ImageError("empty")
        assert isinstance(data, bytes)
        return data

    def _value(self, cell: Cell) -> Any:
        of = cell.path, cell.stamp, cell.group
        for (*kept, start), rows in self._kept.items():
            if tuple(kept) == of and 0 <= cell.row - start < len(rows):
                return rows[cell.row - start]
        scan = self._scan
        if scan is None or scan.of != of or cell.row < scan.row:
            if scan is not None:
                scan.close()
            scan = self._scan = _Scan(cell, self._column)
        while True:
            start, rows = scan.row, scan.next()
            self._kept[*of, start] = rows
            if len(self._kept) > _WINDOWS:
                self._kept.popitem(last=False)
            if cell.row < scan.row:
                return rows[cell.row - start]


class _Scan:
    """Reads one row group from its first row on, a window at a time."""

    def __init__(self, cell: Cell, column: str) -> None:
        self.of = cell.path, cell.stamp, cell.group
        self.row = 0
        self._file = tables.opened(cell.path)
        self._batches: Iterator[Any] = self._windows(cell.group, column)

    def next(self) -> Any:
        """The next rows. Raises `ImageError`, on this call and on every later one, if they cannot be read."""
        try:
            batch = next(self._batches)
        except (StopIteration, OSError, ValueError) as error:
            self._batches = iter(())
            raise layertap.ImageError("corrupt") from error
        self.row += len(batch)
        return batch

    def close(self) -> None:
        self._file.close()

    def _windows(self, group: int, column: str) -> Iterator[Any]:
        compute: Any = importlib.import_module("pyarrow.compute")
        for batch in self._file.iter_batches(
            self._rows(group, column), row_groups=[group], columns=[column], use_threads=False
        ):
            values = batch.column(column)
            yield compute.struct_field(values, "bytes") if hasattr(values, "field") else values

    def _rows(self, group: int, column: str) -> int:
        """How many rows make a window of the intended size, on average."""
        about = self._file.metadata.row_group(group)
        chunks = [about.column(number) for number in range(about.num_columns)]
        size = sum(chunk.total_uncompressed_size for chunk in chunks if _top(chunk.path_in_schema) == column)
        return int(max(1, min(_MOST_ROWS, _WINDOW_BYTES * about.num_rows // max(1, size))))


def _top(path: str) -> str:
    return path.partition(".")[0]


@layertap.hookimpl
def register_sources(register: Callable[[str, type[layertap.Source]], None]) -> None:
    register("parquet", ParquetSource)
