"""One `.safetensors` file per shard in `rows/`, with one tensor per tap."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import layertap
from layertap_plugins.sinks.rows import Joined, StoredRows, link_all, numbered, readable, writable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ROWS = "rows"
_SUFFIX = "safetensors"


class SafetensorsSink(layertap.FileSink):
    """Writes `rows/part-00000.safetensors` and so on: tensors named after their taps, bfloat16 unchanged.

    The header's `__metadata__` holds, as JSON under `layertap`, `ids` and one list per metadata column in `meta`: it
    can contain only text. A finished output has the very files of its parts.
    """

    def save(self, shard: layertap.Shard, folder: Path) -> None:
        import numpy as np
        from safetensors.numpy import save_file

        rows = folder / _ROWS
        rows.mkdir()
        keys = shard.records[0].meta if shard.records else ()
        about = {
            "ids": [record.id for record in shard.records],
            "meta": {key: [record.meta[key] for record in shard.records] for key in keys},
        }
        # Under one key, because the library writes several keys in any order.
        metadata = {"layertap": json.dumps(about, ensure_ascii=False)}
        values = {tap: np.ascontiguousarray(array) for tap, array in shard.values.items()}
        file = rows / f"part-{shard.number:05d}.{_SUFFIX}"
        with writable(file):
            save_file(values, file, metadata)

    def load(self, folder: Path, tap: str) -> StoredRows:
        return Joined(folder / _ROWS, [_Tensor.of(path, tap) for path in numbered(folder / _ROWS, _SUFFIX)])

    def merge(self, parts: Sequence[Path], folder: Path) -> None:
        rows = folder / _ROWS
        rows.mkdir()
        for part in parts:
            link_all(numbered(part / _ROWS, _SUFFIX), rows)


class _Tensor(StoredRows):
    def __init__(self, path: Path, tap: str, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
        super().__init__(path, shape, dtype)
        self._tap = tap

    @classmethod
    def of(cls, path: Path, tap: str) -> _Tensor:
        from safetensors import safe_open

        with readable(path), safe_open(path, framework="numpy") as file:
            shape = file.get_slice(tap).get_shape()
            # An empty tensor cannot be sliced.
            sample = file.get_slice(tap)[:1] if shape[0] else file.get_tensor(tap)
            return cls(path, tap, shape, sample.dtype)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        from safetensors import safe_open

        with safe_open(self.path, framework="numpy") as file:
            values: NDArray[Any] = file.get_slice(self._tap)[start:stop]
        return values

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        import numpy as np
        from safetensors import safe_open

        # Not by blocks: the header gives the position of every row, so each is read on its own.
        with readable(self.path), safe_open(self.path, framework="numpy") as file:
            stored = file.get_slice(self._tap)
            found = [stored[row : row + 1] for row in rows.tolist()]
        return np.concatenate(found) if found else self[:0]


@layertap.hookimpl
def register_sinks(register: Callable[[str, type[layertap.Sink]], None]) -> None:
    register("safetensors", SafetensorsSink)
