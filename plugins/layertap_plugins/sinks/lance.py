"""One Lance table with one row per image, which LanceDB opens and searches."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import layertap
from layertap_plugins.sinks import tables
from layertap_plugins.sinks.rows import StoredRows, readable, writable

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa  # type: ignore[import-untyped]
    from lance import LanceDataset
    from numpy.typing import NDArray

_TABLE = "table.lance"
_BATCH = 16 * 2**20
"""The number of bytes that a merge reads at a time."""


class LanceSink(layertap.FileSink):
    """Writes `table.lance`: `id`, the metadata, and a flat, fixed-size list per tap; bfloat16 as its bits in uint16.

    Metadata with dicts is JSON text, because this version of the format has no missing struct. Lance does not allow
    dots in column names: anything but a letter or digit becomes `_`, as in `classifier_5`. Each
    tap's own name, shape and dtype are in the metadata of its field.
    """

    extra: ClassVar[str | None] = "lance"

    def __init__(self, params: Any = None) -> None:
        super().__init__(params)
        # If it is missing, the run must not begin.
        import lance  # noqa: F401

    def save(self, shard: layertap.Shard, folder: Path) -> None:
        rows = tables.table(shard, lambda name: re.sub(r"\W", "_", name), structs=False)
        _write(folder / _TABLE, rows.schema, rows.to_batches())

    def load(self, folder: Path, tap: str) -> StoredRows:
        path = folder / _TABLE
        with readable(path):
            dataset = _opened(path)
            return _Column(path, dataset, tables.field_of(dataset.schema, tap))

    def merge(self, parts: Sequence[Path], folder: Path) -> None:
        paths = [part / _TABLE for part in parts]
        schema = tables.unified([_opened(path).schema for path in paths])
        _write(folder / _TABLE, schema, _batches(paths, schema))


class _Column(StoredRows):
    def __init__(self, path: Path, dataset: LanceDataset, field: pa.Field) -> None:
        shape, dtype = tables.facts(field)
        super().__init__(path, (dataset.count_rows(), *shape), dtype)
        self._dataset = dataset
        self._field = field

    def read(self, start: int, stop: int) -> NDArray[Any]:
        # By default a batch is thousands of rows; if the rows are long, one core then does all the work.
        rows = self._dataset.to_table(
            columns=[self._field.name], offset=start, limit=stop - start, batch_size=4 * self.block
        )
        return tables.values(rows[self._field.name], self._field)

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        with readable(self.path):
            found = self._dataset.take(rows.tolist(), columns=[self._field.name])
            return tables.values(found[self._field.name], self._field)


def _opened(path: Path) -> LanceDataset:
    """A table that is stored in this very folder. Raises `ValueError` for one that refers to another folder."""
    import lance

    with readable(path):
        dataset = lance.dataset(str(path))
        for fragment in dataset.get_fragments():
            for file in fragment.data_files():
                if file.base_id is not None or not re.fullmatch(r"[0-9a-zA-Z_-]+\.lance", file.path):
                    raise ValueError(f"{file.path!r} is not a file of this table")
        return dataset


def _write(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    import lance
    import pyarrow as pa

    reader = pa.RecordBatchReader.from_batches(schema, batches)
    # The version that every reader supports: later ones compress patterns that are rare in activations.
    with writable(path):
        lance.write_dataset(reader, str(path), data_storage_version="2.0")


def _batches(paths: Sequence[Path], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    size = max(1, _BATCH // max(1, tables.row_bytes(schema)))
    for path in paths:
        dataset = _opened(path)
        for start in range(0, dataset.count_rows(), size):
            with readable(path):
                rows = dataset.to_table(offset=start, limit=size)
            yield from tables.cast(rows, schema).to_batches()


@layertap.hookimpl
def register_sinks(register: Callable[[str, type[layertap.Sink]], None]) -> None:
    register("lance", LanceSink)
