"""One Parquet file per shard in `rows/`, one row per image, which pandas, polars and DuckDB read as one table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import layertap
from layertap_plugins.sinks import tables
from layertap_plugins.sinks.rows import Joined, StoredRows, link_all, numbered, readable

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]
    from numpy.typing import NDArray

_ROWS = "rows"
_SUFFIX = "parquet"
_GROUP = 16 * 2**20
"""The number of bytes in a row group, which is the amount read for a single row."""


class ParquetSink(layertap.FileSink):
    """Writes `rows/part-00000.parquet` and so on: `id`, the metadata, and a fixed-size list per tap.

    Maps are flat, with their shape in the metadata of their field; bfloat16 is stored as its bits in uint16. Pages
    carry checksums. A finished output has the very files of its parts, unless their metadata differ in type.
    """

    extra: ClassVar[str | None] = "parquet"

    def __init__(self, params: Any = None) -> None:
        super().__init__(params)
        # If it is missing, the run must not begin.
        import pyarrow.parquet  # type: ignore[import-untyped]  # noqa: F401

    def save(self, shard: layertap.Shard, folder: Path) -> None:
        rows = tables.table(shard)
        (folder / _ROWS).mkdir()
        _write(folder / _ROWS / f"part-{shard.number:05d}.{_SUFFIX}", rows.schema, [rows])

    def load(self, folder: Path, tap: str) -> StoredRows:
        return Joined(folder / _ROWS, [_Column.of(path, tap) for path in numbered(folder / _ROWS, _SUFFIX)])

    def merge(self, parts: Sequence[Path], folder: Path) -> None:
        import pyarrow.parquet as pq

        (folder / _ROWS).mkdir()
        files = [file for part in parts for file in numbered(part / _ROWS, _SUFFIX)]
        schemas = [pq.read_schema(file) for file in files]
        schema = tables.unified(schemas)
        for file, found in zip(files, schemas, strict=True):
            if found.equals(schema, check_metadata=True):
                link_all([file], folder / _ROWS)
            else:
                _write(folder / _ROWS / file.name, schema, _groups(file, schema))


class _Column(StoredRows):
    def __init__(self, path: Path, rows: int, group: int, field: pa.Field) -> None:
        shape, dtype = tables.facts(field)
        super().__init__(path, (rows, *shape), dtype, block=group)
        self._field = field

    @classmethod
    def of(cls, path: Path, tap: str) -> _Column:
        import pyarrow.parquet as pq

        with readable(path), pq.ParquetFile(path) as file:
            about = file.metadata
            group = about.row_group(0).num_rows if about.num_row_groups else 1
            return cls(path, about.num_rows, group, tables.field_of(file.schema_arrow, tap))

    def read(self, start: int, stop: int) -> NDArray[Any]:
        import pyarrow.parquet as pq

        first, last = start // self.block, (stop - 1) // self.block
        with pq.ParquetFile(self.path, page_checksum_verification=True) as file:
            rows = file.read_row_groups(list(range(first, last + 1)), columns=[self._field.name])
        rows = rows.slice(start - first * self.block, stop - start)
        return tables.values(rows[self._field.name], self._field)


def _write(path: Path, schema: pa.Schema, rows: Sequence[pa.Table] | Iterator[pa.Table]) -> None:
    import pyarrow.parquet as pq

    group = max(1, _GROUP // max(1, tables.row_bytes(schema)))
    # Activations neither repeat nor compress, and nobody searches for rows by minimum and maximum.
    with pq.ParquetWriter(
        path, schema, compression="NONE", use_dictionary=False, write_statistics=False, write_page_checksum=True
    ) as writer:
        for table in rows:
            writer.write_table(table, row_group_size=group)


def _groups(file: Path, schema: pa.Schema) -> Iterator[pa.Table]:
    import pyarrow.parquet as pq

    with readable(file), pq.ParquetFile(file, page_checksum_verification=True) as opened:
        for group in range(opened.num_row_groups):
            yield tables.cast(opened.read_row_group(group), schema)


@layertap.hookimpl
def register_sinks(register: Callable[[str, type[layertap.Sink]], None]) -> None:
    register("parquet", ParquetSink)
