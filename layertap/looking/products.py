"""Products of vectors twice: fast in the stored precision with a known bound of the error, and exact in float64.

The fast ones say which pairs can matter; what is shown, counted and sorted by is always computed in float64, by sums
whose order depends on nothing but the length: equal rows have equal values wherever they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Longer vectors are multiplied in pieces that add up in float64, so that the bound does not grow with the length.
_PIECE = 4096

# Rows that stay in a processor's cache while they are read twice.
_CACHED_BYTES = 1_000_000

# Up to so many vectors, products one by one are as fast as reading the rows.
_FEW = 3

_EXACT_BYTES = 8_000_000


def rounding(dtype: np.dtype[Any], length: int) -> float:
    """A bound of the error of `products` and `squares`, as a share of the product of the two lengths."""
    return 2 * (min(length, _PIECE) + 8) * float(np.finfo(dtype).epsneg)


def ordinary(squares: NDArray[np.float64], dtype: np.dtype[Any]) -> NDArray[np.bool_]:
    """Whether squared lengths are so far from the ends of the dtype's range that the bound of the error holds."""
    smallest = float(np.finfo(dtype).tiny) ** 0.8
    inside: NDArray[np.bool_] = (squares > smallest) & (squares < 1 / smallest)
    return inside


def products(rows: NDArray[Any], vectors: NDArray[Any]) -> NDArray[Any]:
    """The dot products (rows x vectors), fast; `vectors` have the dtype to compute in."""
    if rows.shape[1] <= _PIECE:
        return _multiplied(rows.astype(vectors.dtype, copy=False), vectors)
    total = np.zeros((len(rows), len(vectors)))
    for columns in _pieces(rows.shape[1]):
        total += _multiplied(rows[:, columns].astype(vectors.dtype, copy=False), vectors[:, columns])
    return total


def squares(rows: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[np.float64]:
    """The squared length of each row, fast, computed in `dtype`."""
    total = np.zeros(len(rows))
    for columns in _pieces(rows.shape[1]):
        piece = rows[:, columns].astype(dtype, copy=False)
        total += np.vecdot(piece, piece)
    return total


def products_and_squares(rows: NDArray[Any], vectors: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Both for the same rows, with each row read once from memory where there are few vectors."""
    step = max(1, _CACHED_BYTES // (rows.shape[1] * vectors.itemsize))
    if len(vectors) > _FEW or len(rows) <= step:
        return products(rows, vectors), squares(rows, vectors.dtype)
    dots, lengths = np.empty((len(rows), len(vectors))), np.empty(len(rows))
    for start in range(0, len(rows), step):
        piece, here = rows[start : start + step].astype(vectors.dtype, copy=False), slice(start, start + step)
        dots[here], lengths[here] = products(piece, vectors), squares(piece, vectors.dtype)
    return dots, lengths


def exact_squares(rows: NDArray[Any]) -> NDArray[np.float64]:
    """The squared length of each row, in float64; infinite or NaN for a row that holds such values."""
    found = np.empty(len(rows))
    for some in few(len(rows), rows.shape[1]):
        values = rows[some].astype(np.float64)
        found[some] = np.add.reduce(values * values, axis=1)
    return found


def exact_dots(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float64]:
    """The dot product of each row with the row of the other in its place, in float64."""
    dots: NDArray[np.float64] = np.add.reduce(one.astype(np.float64) * other.astype(np.float64), axis=1)
    return dots


def exact_cosines(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float64]:
    """The cosine of each row and the row of the other in its place; 1 for equal rows. Neither may be zero."""
    dots, lengths = exact_dots(one, other), exact_squares(one) * exact_squares(other)
    outside = ~np.isfinite(lengths) | (lengths == 0)
    lengths = np.sqrt(lengths)
    if outside.any():
        lengths[outside] = np.sqrt(exact_squares(one[outside])) * np.sqrt(exact_squares(other[outside]))
    return dots / lengths


def exact_distances(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float64]:
    """The distance of each row and the row of the other in its place."""
    return np.sqrt(exact_squares(one.astype(np.float64) - other.astype(np.float64)))


def few(count: int, length: int) -> Iterator[slice]:
    """Cuts a number of vectors into runs that take a few megabytes each in float64."""
    step = max(1, _EXACT_BYTES // (8 * length))
    return (slice(start, start + step) for start in range(0, count, step))


def _pieces(length: int) -> Iterator[slice]:
    return (slice(start, start + _PIECE) for start in range(0, length, _PIECE))


def _multiplied(rows: NDArray[Any], vectors: NDArray[Any]) -> NDArray[Any]:
    if len(vectors) > _FEW:
        found: NDArray[Any] = rows @ vectors.T
        return found
    return np.stack([np.vecdot(rows, vector) for vector in vectors], axis=1)
