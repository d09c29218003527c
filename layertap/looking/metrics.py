"""What near means: cosine, dot product, Euclidean distance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from layertap.errors import ConfigError, did_you_mean
from layertap.looking.products import exact_cosines, exact_distances, exact_dots

Floats = NDArray[np.float64]


class Metric:
    """A measure of two vectors, and a score that is larger where they are nearer."""

    name: ClassVar[str]
    value: ClassVar[str] = "similarity"
    sign: ClassVar[float] = 1.0
    """A value times this is a score."""
    takes_zero: ClassVar[bool] = True
    """Whether it is defined for a vector of zeros."""

    def ceiling(self, dots: NDArray[Any], squares: Floats, others: Floats, rounding: float) -> Floats:
        """The score that each pair (rows x vectors) has at most, from fast products and squared lengths."""
        raise NotImplementedError

    def exact(self, rows: NDArray[Any], others: NDArray[Any]) -> Floats:
        """The value of each row with the row of the other in its place, in float64."""
        raise NotImplementedError


class Cosine(Metric):
    """The cosine of the angle between two vectors."""

    name = "cosine"
    takes_zero = False

    def ceiling(self, dots: NDArray[Any], squares: Floats, others: Floats, rounding: float) -> Floats:
        return dots / np.sqrt(squares)[:, None] / np.sqrt(others) + rounding

    def exact(self, rows: NDArray[Any], others: NDArray[Any]) -> Floats:
        return exact_cosines(rows, others)


class Dot(Metric):
    """The dot product of two vectors."""

    name = "dot"

    def ceiling(self, dots: NDArray[Any], squares: Floats, others: Floats, rounding: float) -> Floats:
        return dots + rounding * np.sqrt(squares)[:, None] * np.sqrt(others)

    def exact(self, rows: NDArray[Any], others: NDArray[Any]) -> Floats:
        return exact_dots(rows, others)


class Euclidean(Metric):
    """The distance between two vectors; the nearest comes first."""

    name = "euclidean"
    value = "distance"
    sign = -1.0

    def ceiling(self, dots: NDArray[Any], squares: Floats, others: Floats, rounding: float) -> Floats:
        lengths = np.sqrt(squares)[:, None] + np.sqrt(others)
        least = squares[:, None] + others - 2 * dots.astype(np.float64) - rounding * lengths**2
        return -np.sqrt(np.maximum(least, 0))

    def exact(self, rows: NDArray[Any], others: NDArray[Any]) -> Floats:
        return exact_distances(rows, others)


METRICS: Mapping[str, Metric] = {metric.name: metric for metric in (Cosine(), Dot(), Euclidean())}


def metric_named(name: str) -> Metric:
    """The metric of that name. Raises `ConfigError`."""
    if name not in METRICS:
        raise ConfigError(f"no metric is named {name!r}{did_you_mean(name, METRICS)} ({', '.join(METRICS)})")
    return METRICS[name]
