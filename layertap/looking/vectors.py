"""One tap's rows as vectors, read in stretches of bounded size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layertap.errors import ConfigError
from layertap.outputs.output import Output
from layertap.outputs.rows import Rows

_STRETCH_BYTES = 32_000_000

# What has been read of a mapped file counts as memory of this process until the file is closed.
_MAPPED_BYTES = 256_000_000

# What float32 holds exactly; everything else is computed in float64 from the start.
_IN_FLOAT32 = {"float32", "float16", "bfloat16", "uint8", "int8", "uint16", "int16", "bool"}


class Vectors:
    """The rows of a tap of an output as `count` vectors of `length` values; a map is flattened.

    `dtype` is the one to compute products in, float32 or float64: it holds every stored value exactly, except for
    integers beyond 2**53. With `chosen`, only these rows, in memory. Raises `ConfigError` for a tap of complex numbers,
    or without values.
    """

    def __init__(self, features: Output, tap: str, chosen: NDArray[np.int64] | None = None) -> None:
        self.tap = tap
        self._features = features
        self.rows: Rows | NDArray[Any] = features[tap] if chosen is None else features[tap][chosen]
        self.count = len(self.rows)
        self.length = math.prod(self.rows.shape[1:])
        self.dtype: np.dtype[Any] = np.dtype(np.float32 if self.rows.dtype.name in _IN_FLOAT32 else np.float64)
        if self.rows.dtype.kind == "c":
            raise ConfigError(
                f"{features.path}: {tap!r} holds complex numbers, which have no order; choose another tap"
            )
        if not self.length:
            raise ConfigError(
                f"{features.path}: {tap!r} holds no values per image (its shape is {self.rows.shape[1:]})"
            )

    def stretches(self, most: int, start: int = 0) -> Iterator[tuple[int, NDArray[Any]]]:
        """The rows from `start` on in order, at most `most` and 32 MB at once: the first one's number, and the rows.

        They have two axes and the stored dtype, and may be views of a file.
        """
        fitting = _STRETCH_BYTES // (self.length * self.rows.dtype.itemsize)
        step = max(1, min(most, fitting))
        mapped = 0
        for first in range(start, self.count, step):
            values = self.rows[first : first + step]
            mapped += values.nbytes if _is_mapped(values) else 0
            yield first, self._flat(values)
            del values
            if mapped > _MAPPED_BYTES:
                self._features.close()
                mapped = 0

    def row(self, number: int) -> NDArray[Any]:
        """One row, in `dtype`."""
        vector: NDArray[Any] = np.asarray(self.rows[number]).reshape(-1).astype(self.dtype)
        return vector

    def chosen(self, numbers: NDArray[np.int64]) -> NDArray[Any]:
        """Some rows, in `dtype`."""
        return self._flat(np.asarray(self.rows[numbers])).astype(self.dtype)

    def _flat(self, values: NDArray[Any]) -> NDArray[Any]:
        return values.reshape(len(values), self.length)


def _is_mapped(values: Any) -> bool:
    while isinstance(values, np.ndarray):
        if isinstance(values, np.memmap):
            return True
        values = values.base
    return False


def one_tap(features: Output, tap: str | None) -> str:
    """The tap that is asked for, or the only one there is. Raises `ConfigError` where there are several."""
    if tap is not None:
        features.facts(tap)
        return tap
    if len(features.taps) == 1:
        return features.taps[0]
    raise ConfigError(
        f"{features.path}: has {len(features.taps)} taps; choose one with --tap or tap=: {', '.join(features.taps)}"
    )
