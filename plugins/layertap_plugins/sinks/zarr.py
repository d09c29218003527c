"""One Zarr group (version 3, sharded) with an array per tap and an array of the ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import layertap
from layertap_plugins.sinks.rows import Joined, StoredRows, is_bfloat16, member, readable, rows_in_block

if TYPE_CHECKING:
    import zarr
    from numpy.typing import NDArray

_GROUP = "features.zarr"
_IDS = "id"
_IDS_IN_CHUNK = 2**16
_FILE = 64 * 2**20
"""The number of bytes in a file of the merged group, and in memory during a merge."""


class ZarrSink(layertap.FileSink):
    """Writes `features.zarr`: each tap in files of about 64 MiB that hold chunks of about 1 MiB with checksums.

    An array has the name of its tap as a file name, and the tap's name and dtype as attributes; bfloat16 is stored as
    its bits in uint16, `id` as an array of strings. The bytes depend only on the rows.
    """

    extra: ClassVar[str | None] = "zarr"

    def __init__(self, params: Any = None) -> None:
        super().__init__(params)
        # If it is missing, the run must not begin.
        import zarr  # noqa: F401

    def save(self, shard: layertap.Shard, folder: Path) -> None:
        import numpy as np
        import zarr

        group = zarr.create_group(folder / _GROUP, zarr_format=3)
        _fill_ids(group, np.array([record.id for record in shard.records], np.dtypes.StringDType()))
        for tap, values in shard.values.items():
            stored = values.view(np.uint16) if is_bfloat16(values.dtype) else values
            _fill(group, member(self.stems[tap]), stored, {"tap": tap, "dtype": values.dtype.name})

    def load(self, folder: Path, tap: str) -> StoredRows:
        return _Array.of(folder / _GROUP, member(self.stems[tap]))

    def merge(self, parts: Sequence[Path], folder: Path) -> None:
        import zarr

        groups = [part / _GROUP for part in parts]
        group = zarr.create_group(folder / _GROUP, zarr_format=3)
        _fill_ids(group, Joined(folder, [_Array.of(part, _IDS) for part in groups]))
        for stem in map(member, self.stems.values()):
            pieces = [_Array.of(part, stem) for part in groups]
            _fill(group, stem, Joined(folder, pieces), pieces[0].about)


class _Array(StoredRows):
    def __init__(self, path: Path, array: zarr.Array[Any]) -> None:
        super().__init__(path, array.shape, array.dtype, block=array.chunks[0])
        self.about = dict(array.attrs)
        self._array = array

    @classmethod
    def of(cls, group: Path, name: str) -> _Array:
        import zarr

        path = group / name
        with readable(path):
            return cls(path, zarr.open_array(path, mode="r", zarr_format=3))

    def read(self, start: int, stop: int) -> NDArray[Any]:
        import numpy as np

        return np.asarray(self._array[start:stop])


def _fill(group: zarr.Group, name: str, rows: StoredRows | NDArray[Any], about: Mapping[str, Any]) -> None:
    """Create an array of rows, a whole file at a time, so that each file is written once."""
    from zarr.codecs import Crc32cCodec

    row = tuple(max(1, size) for size in rows.shape[1:])
    chunk = min(rows_in_block(row, rows.dtype), max(1, rows.shape[0]))
    # No more chunks than the rows fill: a file has an index of every chunk that it could contain.
    in_file = min(max(1, rows_in_block(row, rows.dtype, _FILE) // chunk), -(-max(1, rows.shape[0]) // chunk))
    array = group.create_array(
        name,
        shape=rows.shape,
        dtype=rows.dtype,
        chunks=(chunk, *row),
        shards=(chunk * in_file, *row),
        filters=None,
        compressors=[Crc32cCodec()],
        attributes=dict(about),
        # Leaving out a chunk of zeros would lose the sign of a negative zero.
        config={"write_empty_chunks": True},
    )
    for start in range(0, rows.shape[0], chunk * in_file):
        array[start : start + chunk * in_file] = rows[start : start + chunk * in_file]


def _fill_ids(group: zarr.Group, ids: StoredRows | NDArray[Any]) -> None:
    size = min(_IDS_IN_CHUNK, max(1, ids.shape[0]))
    array = group.create_array(
        _IDS, shape=ids.shape, dtype="string", chunks=(size,), compressors=None, config={"write_empty_chunks": True}
    )
    for start in range(0, ids.shape[0], size):
        array[start : start + size] = ids[start : start + size]


@layertap.hookimpl
def register_sinks(register: Callable[[str, type[layertap.Sink]], None]) -> None:
    register("zarr", ZarrSink)
