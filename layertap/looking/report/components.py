"""The principal components of a tap, from a sample of its rows, and the scores of any rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from layertap.looking.kernels import kernel
from layertap.looking.products import products
from layertap.looking.samples import SEED, Tap, finite_rows
from layertap.outputs.output import Output

MOST_FITTED = 5_000
"""How many rows the components are computed from at most: the matrix is rows x rows."""

# Beyond the components that are kept, so that these converge.
_SPARE = 10
_ROUNDS = 300
_STEADY = 1e-12

# The components that are iterated for until they are steady.
_EXACT = 2

_BLOCK = 512

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Components:
    """The `scores` of some rows (rows x components), NaN for a row of values that are not finite.

    The first two components are exact, further ones approximate. `shares` are the shares of the variance among the
    `fitted` rows that they were computed from.
    """

    scores: NDArray[np.float32]
    shares: tuple[float, ...]
    fitted: int


def components(features: Output, tap: str, rows: NDArray[np.int64], count: int) -> Components:
    """The principal components of a seeded sample of the rows, and the scores of all of them, in bounded memory."""
    sample = finite_sample(features, tap, rows, MOST_FITTED)
    found = np.full((len(rows), count), np.nan, np.float32)
    if len(sample.rows) < 2:
        return Components(found, (0.0,) * count, len(sample.rows))
    products_of_all, _ = kernel(sample)
    values, scores, total = _eigen(products_of_all, count)
    del products_of_all
    if np.array_equal(sample.rows, rows):
        found[:] = scores
    else:
        _project(sample, rows, _directions(sample, scores, values), found)
    shares = tuple(float(value / total) if total > 0 else 0.0 for value in values)
    return Components(found, shares, len(sample.rows))


def _project(sample: Tap, rows: NDArray[np.int64], directions: Floats, found: NDArray[np.float32]) -> None:
    vectors, offset = sample.vectors, directions @ _mean(sample)
    for start, stretch in vectors.stretches(vectors.count):
        here = slice(*np.searchsorted(rows, [start, start + len(stretch)]))
        if here.start < here.stop:
            chosen = stretch[rows[here] - start]
            with np.errstate(all="ignore"):
                found[here] = products(chosen, directions.astype(vectors.dtype)) - offset
    found[~np.isfinite(found).all(axis=1)] = np.nan


def finite_sample(features: Output, tap: str, rows: NDArray[np.int64], most: int) -> Tap:
    """A seeded sample of the rows, in their order, without those that hold values that are not finite."""
    drawn = rows
    if len(rows) > most:
        drawn = np.sort(np.random.default_rng(SEED).choice(rows, most, replace=False))
    sample = Tap(tap, features, tap, drawn)
    return Tap(tap, features, tap, drawn[finite_rows(sample)])


def _eigen(products_of_all: Floats, count: int) -> tuple[Floats, Floats, float]:
    """The largest eigenvalues of the centred products, the scores of the rows, and the sum of all eigenvalues.

    The products, whose lower triangle holds, are centred in place.
    """
    matrix = products_of_all
    for top in range(0, len(matrix), _BLOCK):
        here = slice(top, top + _BLOCK)
        corner = np.tril(matrix[here, here])
        matrix[here, here] = corner + np.tril(corner, -1).T
        matrix[:top, here] = matrix[here, :top].T
    means = matrix.mean(axis=0)
    matrix -= means
    matrix -= (means - means.mean())[:, None]
    total = float(np.trace(matrix))
    values, vectors = _leading(matrix, count)
    scores = vectors * np.sqrt(values)
    signs = np.sign(scores[np.abs(scores).argmax(axis=0), np.arange(count)])
    return values, scores * np.where(signs == 0, 1, signs), total


def _leading(matrix: Floats, count: int) -> tuple[Floats, Floats]:
    """The largest eigenvalues of a positive matrix and their vectors, by iterating a subspace."""
    width = min(len(matrix), count + _SPARE)
    basis = np.linalg.qr(np.random.default_rng(SEED).standard_normal((len(matrix), width)))[0]
    before = np.zeros(min(width, count))
    for _ in range(_ROUNDS):
        basis = np.linalg.qr(matrix @ basis)[0]
        small, turn = np.linalg.eigh(basis.T @ matrix @ basis)
        values = np.maximum(small[::-1][:count], 0)
        if np.all(np.abs(values - before)[:_EXACT] <= _STEADY * values[0]):
            break
        before = values
    found = np.zeros(count)
    vectors = np.zeros((len(matrix), count))
    found[: len(values)] = values
    vectors[:, : len(values)] = (basis @ turn)[:, ::-1][:, :count]
    return found, vectors


def _directions(sample: Tap, scores: Floats, values: Floats) -> Floats:
    """The components as vectors (components x length) of length 1."""
    weights = scores / np.where(values > 0, values, np.inf)
    return _weighted(sample, weights - weights.mean(axis=0))


def _mean(sample: Tap) -> Floats:
    mean: Floats = _weighted(sample, np.full((len(sample.rows), 1), 1 / len(sample.rows)))[0]
    return mean


def _weighted(sample: Tap, weights: Floats) -> Floats:
    """The sums of the sample's rows by some weights (rows x sums), as sums x length."""
    vectors = sample.vectors
    total = np.zeros((weights.shape[1], vectors.length))
    for start, stretch in vectors.stretches(vectors.count):
        here = slice(*np.searchsorted(sample.rows, [start, start + len(stretch)]))
        if here.start < here.stop:
            total += weights[here].T @ stretch[sample.rows[here] - start].astype(np.float64)
    return total
