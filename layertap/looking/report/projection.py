"""The rows of a tap in two dimensions: principal components, or UMAP."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layertap.looking.report.components import Components, finite_sample
from layertap.looking.samples import SEED
from layertap.looking.vectors import Vectors
from layertap.outputs.output import Output
from layertap.outputs.tables import needing

MOST_UMAP = 20_000
_UMAP_BYTES = 500_000_000

UMAP: Mapping[str, Any] = {"n_neighbors": 15, "min_dist": 0.1, "metric": "cosine", "random_state": SEED}


@dataclass(frozen=True, slots=True)
class Projection:
    """Where some rows of a tap are in two dimensions: `places` (rows x 2), NaN for a row that has no place.

    `fitted` rows were used to find the dimensions. `shares` are the shares of the variance among these rows that the
    two principal components hold; empty for UMAP. `parameters` are those of the method.
    """

    method: str
    places: NDArray[np.float32]
    fitted: int
    shares: tuple[float, ...]
    parameters: Mapping[str, Any]


def of_components(found: Components) -> Projection:
    """The first two principal components."""
    return Projection("pca", found.scores[:, :2], found.fitted, found.shares[:2], {"seed": SEED})


def umap_of(features: Output, tap: str, rows: NDArray[np.int64]) -> Projection:
    """UMAP of a seeded sample of the rows. Raises `ConfigError` if it is not installed."""
    length = Vectors(features, tap).length
    sample = finite_sample(features, tap, rows, min(MOST_UMAP, max(2, _UMAP_BYTES // (4 * length))))
    places = np.full((len(rows), 2), np.nan, np.float32)
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
    return Projection("umap", places, count, (), parameters)
