"""All pairs of rows that are alike: duplicates within an output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from layertap.errors import ConfigError
from layertap.looking.products import exact_cosines, exact_squares, few, ordinary, products, rounding
from layertap.looking.vectors import Vectors
from layertap.outputs.output import Output

MOST = 1_000_000
"""How many pairs are kept in memory; more of them are refused."""

# Rows that are compared with all others together: many, because the others are read again for each such block.
_BLOCK = 2048
_BLOCK_BYTES = 32_000_000


class Pair(NamedTuple):
    """Two rows that are alike: their cosine, their numbers, and their ids."""

    similarity: float
    row: int
    other_row: int
    id: str
    other_id: str


@dataclass(frozen=True, slots=True)
class Pairs(Sequence[Pair]):
    """The pairs found, the most similar first, then in the order of the rows.

    `left_out` counts the rows that were not compared: `nonfinite` hold NaN or infinite values, `zero` are vectors of
    zeros, which have no cosine.
    """

    tap: str
    above: float
    found: tuple[Pair, ...]
    rows: int
    left_out: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.found)

    @overload
    def __getitem__(self, key: int) -> Pair: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[Pair, ...]: ...
    def __getitem__(self, key: int | slice) -> Pair | tuple[Pair, ...]:
        return self.found[key]


def alike(features: Output, tap: str, above: float, most: int = MOST, chosen: NDArray[np.int64] | None = None) -> Pairs:
    """All pairs of rows whose cosine is at least `above`, computed in float64; with `chosen`, among these rows alone.

    Raises `ConfigError` for more than `most` pairs, as soon as there are so many.
    """
    if not -1 <= above <= 1:
        raise ConfigError(f"a cosine is between -1 and 1, and pairs above {above} are asked for")
    vectors = Vectors(features, tap, chosen)
    squares = _squares(vectors)
    usable = np.isfinite(squares) & (squares > 0)
    left_out = {"nonfinite": int((~np.isfinite(squares)).sum()), "zero": int((squares == 0).sum())}
    dtype = vectors.dtype if ordinary(squares[usable], vectors.dtype).all() else np.dtype(np.float64)
    kept: list[tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]] = []
    count = 0
    for found in _found(vectors, squares, usable, above, dtype):
        kept.append(found)
        count += len(found[0])
        if count > most:
            raise ConfigError(
                f"{features.path}: more than {most:,} pairs of {tap!r} have a cosine of at least {above} (so many in "
                f"the first {int(found[1].max()) + 1:,} of {vectors.count:,} rows); raise --above"
            )
    values, rows, others = (np.concatenate(column) for column in zip(_NONE, *kept, strict=True))
    order = np.lexsort((others, rows, -values))
    ids = features.ids if len(order) else []
    numbers = np.arange(vectors.count) if chosen is None else chosen
    columns = (column.tolist() for column in (values[order], numbers[rows[order]], numbers[others[order]]))
    pairs = tuple(Pair(value, row, other, ids[row], ids[other]) for value, row, other in zip(*columns, strict=True))
    return Pairs(tap, above, pairs, vectors.count, left_out)


_NONE = (np.empty(0), np.empty(0, np.int64), np.empty(0, np.int64))


def _squares(vectors: Vectors) -> NDArray[np.float64]:
    with np.errstate(all="ignore"):
        return np.concatenate([np.empty(0), *(exact_squares(rows) for _, rows in vectors.stretches(_BLOCK))])


def _found(
    vectors: Vectors, squares: NDArray[np.float64], usable: NDArray[np.bool_], above: float, dtype: np.dtype[Any]
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]]:
    """Similarities, rows and other rows, a block of the rows at a time."""
    least = above - rounding(dtype, vectors.length)
    lengths = np.sqrt(np.where(usable, squares, 1))
    step = max(1, min(_BLOCK, _BLOCK_BYTES // (vectors.length * dtype.itemsize)))
    for first in range(0, vectors.count, step):
        here = slice(first, first + step)
        block = np.asarray(vectors.rows[here]).reshape(-1, vectors.length)
        directions = (block.astype(np.float64) / lengths[here, None]).astype(dtype)
        for start, others in vectors.stretches(_BLOCK, first):
            there = slice(start, start + len(others))
            with np.errstate(all="ignore"):
                cosines = products(others, directions).T / lengths[there]
            possible = (cosines >= least) & usable[here, None] & usable[there]
            if start == first or start < first + step:
                possible &= np.arange(first, first + len(block))[:, None] < np.arange(start, start + len(others))
            one, other = np.nonzero(possible)
            for some in few(len(one), vectors.length):
                values = exact_cosines(block[one[some]], others[other[some]])
                good = values >= above
                yield values[good], first + one[some][good], start + other[some][good]
