"""Images as bytes in a column of Parquet files, as Hugging Face stores data sets."""

from __future__ import annotations

import importlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import Field

import layertap
from layertap_plugins.sources import files, tables

# Images are read this much at a time, and this many times as much is kept: two windows are in use while one gives way
# to the next. A page can only be read whole, and a column with a dictionary, pyarrow's default, may be one large page.
_WINDOW_BYTES = 8 * 2**20
_MOST_ROWS = 256
_WINDOWS = 3


class ParquetSource(layertap.Source):
    """Yields one record a row, file by file.

    The id is `FILE#ROW`, rows counted from 0, or the value of a column. Other columns with plain values are metadata;
    labels that `datasets` has stored as numbers come by their names.
    """

    extra = "parquet"

    class Params(layertap.Params):
        path: str | list[str] = Field(
            min_length=1,
            description="a Parquet file, a folder of them, a pattern such as train-*.parquet, or a list of these",
        )
        column: str = Field(
            "image",
            description="where the images are: encoded bytes, or a struct with a field `bytes`, as `datasets` has it",
        )
        id: str | None = Field(None, description="the column of the ids; by default FILE#ROW")

    params: Params

    def __init__(self, params: Params | None = None) -> None:
        super().__init__(params)
        self._windows = _Windows(self.params.column)

    def records(self) -> Iterator[layertap.ImageRecord]:
        first: tuple[str, list[str]] | None = None
        for path, name in files.located(self.params.path, (".parquet",)).items():
            stamp = files.stamped(path)
            with tables.understood(path), tables.opened(path) as file:
                schema = file.schema_arrow
                if file.metadata.num_rows > os.stat(path).st_size:
                    raise layertap.ConfigError(
                        f"source.path: {path!r} is damaged: it claims more rows than it has bytes"
                    )
                self._check(schema, path)
                columns = [column for column in tables.scalars(schema) if column != self.params.id]
                if first is None:
                    first = path, columns
                if sorted(columns) != sorted(first[1]):
                    odd = ", ".join(sorted({*columns} ^ {*first[1]}))
                    raise layertap.ConfigError(f"source.path: {path!r} has other columns than {first[0]!r}: {odd}")
                yield from self._records(file, path, name, stamp, first[1])

    def _records(
        self, file: Any, path: str, name: str, stamp: str, columns: list[str]
    ) -> Iterator[layertap.ImageRecord]:
        keys, names = tables.keys_of(columns), tables.class_names(file.schema_arrow)
        wanted = [*columns, self.params.id] if self.params.id else columns
        number = 0
        for group in range(file.num_row_groups):
            start = number
            for row in tables.rows_of(file, group, wanted):
                record_id = f"{name}#{number}"
                if self.params.id and (record_id := str(tables.plain(row[self.params.id]) or "")) == "":
                    raise layertap.ConfigError(f"source.id: row {number} of {path!r} has no {self.params.id!r}")
                data = Cell(self._windows, path, stamp, group, number - start)
                yield layertap.ImageRecord(record_id, data, tables.meta_of(row, keys, names))
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
                f"source.column: {column!r} in {path!r} holds {kind}, not the bytes of images; the source `manifest` "
                "takes a table of paths"
            )


@dataclass(frozen=True, slots=True)
class Cell:
    """An image's place: its row group, and its row in that."""

    windows: _Windows
    path: str
    stamp: str
    group: int
    row: int

    def __call__(self) -> bytes:
        """The bytes. Raises `ImageError` where the file is another one by now."""
        return self.windows.read(self)


class _Windows:
    """The rows around those read last. Rows are asked for nearly in order; one that lies before is searched anew."""

    def __init__(self, column: str) -> None:
        self._column = column
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, str, int, int], Any] = OrderedDict()
        self._way: _Way | None = None

    def __reduce__(self) -> tuple[type[_Windows], tuple[str]]:
        return _Windows, (self._column,)

    def read(self, cell: Cell) -> bytes:
        if files.stamp_of(os.stat(cell.path)) != cell.stamp:
            raise layertap.ImageError("changed")
        with self._lock:
            data = self._value(cell).as_py()
        if data is None:
            raise layertap.ImageError("empty")
        assert isinstance(data, bytes)
        return data

    def _value(self, cell: Cell) -> Any:
        of = cell.path, cell.stamp, cell.group
        for (*kept, start), rows in self._kept.items():
            if tuple(kept) == of and 0 <= cell.row - start < len(rows):
                return rows[cell.row - start]
        way = self._way
        if way is None or way.of != of or cell.row < way.row:
            if way is not None:
                way.close()
            way = self._way = _Way(cell, self._column)
        while True:
            start, rows = way.row, way.next()
            self._kept[*of, start] = rows
            if len(self._kept) > _WINDOWS:
                self._kept.popitem(last=False)
            if cell.row < way.row:
                return rows[cell.row - start]


class _Way:
    """Through one row group, from its first row on, a window at a time."""

    def __init__(self, cell: Cell, column: str) -> None:
        self.of = cell.path, cell.stamp, cell.group
        self.row = 0
        self._file = tables.opened(cell.path)
        self._batches: Iterator[Any] = self._windows(cell.group, column)

    def next(self) -> Any:
        """The next rows. Raises `ImageError`, and again from then on, where they cannot be read."""
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
        """How many rows make a window of the size that is meant, on average."""
        about = self._file.metadata.row_group(group)
        chunks = [about.column(number) for number in range(about.num_columns)]
        size = sum(chunk.total_uncompressed_size for chunk in chunks if _top(chunk.path_in_schema) == column)
        return int(max(1, min(_MOST_ROWS, _WINDOW_BYTES * about.num_rows // max(1, size))))


def _top(path: str) -> str:
    return path.partition(".")[0]


@layertap.hookimpl
def register_sources(register: Callable[[str, type[layertap.Source]], None]) -> None:
    register("parquet", ParquetSource)
