"""The rows of a tap in two dimensions: principal components, or UMAP."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layertap.looking.kernels import kernel
from layertap.looking.products import products
from layertap.looking.samples import SEED, Tap, finite_rows
from layertap.looking.vectors import Vectors
from layertap.outputs.output import Output
from layertap.outputs.tables import needing

MOST_FITTED = 5_000
"""How many rows the components are computed from at most: the matrix is rows x rows."""

MOST_UMAP = 20_000
_UMAP_BYTES = 500_000_000

UMAP: Mapping[str, Any] = {"n_neighbors": 15, "min_dist": 0.1, "metric": "cosine", "random_state": SEED}

# Beyond the components that are kept, so that these converge.
_SPARE = 10
_ROUNDS = 300
_STEADY = 1e-12

_BLOCK = 512

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Projection:
    """Where some rows of a tap are in two dimensions: `places` (rows x 2), NaN for a row that has no place.

    `fitted` rows of `rows` were used to find the dimensions. `shares` are the shares of the variance among these rows
    that the two principal components hold; empty for UMAP. `parameters` are those of the method.
    """

    method: str
    places: NDArray[np.float32]
    rows: int
    fitted: int
    shares: tuple[float, ...]
    parameters: Mapping[str, Any]


def project(features: Output, tap: str, rows: NDArray[np.int64], method: str) -> Projection:
    """The places of these rows by `pca` or `umap`. Raises `ConfigError` if UMAP is not installed."""
    return _umap(features, tap, rows) if method == "umap" else _pca(features, tap, rows)


def _pca(features: Output, tap: str, rows: NDArray[np.int64]) -> Projection:
    sample = _finite_sample(features, tap, rows, MOST_FITTED)
    whole = len(features[tap])
    places = np.full((len(rows), 2), np.nan, np.float32)
    parameters = {"components of": "the covariance matrix", "seed": SEED}
    if len(sample.rows) < 2:
        return Projection("pca", places, whole, len(sample.rows), (0.0, 0.0), parameters)
    vectors = sample.vectors
    products_of_all, _ = kernel(sample)
    found, scores, total = _components(products_of_all)
    del products_of_all
    if np.array_equal(sample.rows, rows):
        places[:] = scores
    else:
        directions, mean = _directions(sample, scores, found), _mean(sample)
        offset = directions @ mean
        for start, stretch in vectors.stretches(vectors.count):
            here = slice(*np.searchsorted(rows, [start, start + len(stretch)]))
            if here.start < here.stop:
                chosen = stretch[rows[here] - start]
                with np.errstate(all="ignore"):
                    places[here] = products(chosen, directions.astype(vectors.dtype)) - offset
        places[~np.isfinite(places).all(axis=1)] = np.nan
    shares = tuple(float(value / total) if total > 0 else 0.0 for value in found)
    return Projection("pca", places, whole, len(sample.rows), shares, parameters)


def _finite_sample(features: Output, tap: str, rows: NDArray[np.int64], most: int) -> Tap:
    """A seeded sample of the rows, in their order, without those that hold values that are not finite."""
    drawn = rows
    if len(rows) > most:
        drawn = np.sort(np.random.default_rng(SEED).choice(rows, most, replace=False))
    sample = Tap(tap, features, tap, drawn)
    return Tap(tap, features, tap, drawn[finite_rows(sample)])


def _components(products_of_all: Floats) -> tuple[Floats, Floats, float]:
    """The two largest eigenvalues of the centred products, the scores of the rows, and the sum of all eigenvalues.

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
    values, vectors = _leading(matrix, 2)
    scores = vectors * np.sqrt(values)
    signs = np.sign(scores[np.abs(scores).argmax(axis=0), [0, 1]])
    return values, scores * np.where(signs == 0, 1, signs), total


def _leading(matrix: Floats, count: int) -> tuple[Floats, Floats]:
    """The largest eigenvalues of a positive matrix and their vectors, by iterating a subspace."""
    width = min(len(matrix), count + _SPARE)
    basis = np.linalg.qr(np.random.default_rng(SEED).standard_normal((len(matrix), width)))[0]
    before = np.zeros(count)
    for _ in range(_ROUNDS):
        basis = np.linalg.qr(matrix @ basis)[0]
        small, turn = np.linalg.eigh(basis.T @ matrix @ basis)
        values = np.maximum(small[::-1][:count], 0)
        if np.all(np.abs(values - before) <= _STEADY * values[0]):
            break
        before = values
    found = np.zeros(count)
    vectors = np.zeros((len(matrix), count))
    found[: len(values)] = values
    vectors[:, : len(values)] = (basis @ turn)[:, ::-1][:, :count]
    return found, vectors


def _directions(sample: Tap, scores: Floats, values: Floats) -> Floats:
    """The two components as vectors (2 x length) of length 1."""
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


def _umap(features: Output, tap: str, rows: NDArray[np.int64]) -> Projection:
    length = Vectors(features, tap).length
    sample = _finite_sample(features, tap, rows, min(MOST_UMAP, max(2, _UMAP_BYTES // (4 * length))))
    places = np.full((len(rows), 2), np.nan, np.float32)
    whole = len(features[tap])
    count = len(sample.rows)
    parameters = {**UMAP, "n_neighbors": min(UMAP["n_neighbors"], max(2, count - 1))}
    if count > parameters["n_neighbors"]:
        with needing("umap", "umap"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the single thread that a seed needs
            import umap  # type: ignore[import-untyped]

            values = np.asarray(features[tap][sample.rows], np.float32).reshape(count, length)
            # Its spectral start needs more rows than this.
            start = "spectral" if count > 50 else "random"
            found = umap.UMAP(**parameters, n_jobs=1, init=start).fit_transform(values)
        places[np.searchsorted(rows, sample.rows)] = found
    return Projection("umap", places, whole, count, (), parameters)
