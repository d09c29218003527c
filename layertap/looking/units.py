"""What each unit of a tap does: its statistics over all rows, and the images that it responds to most and least."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layertap.errors import ConfigError
from layertap.looking.association import Association
from layertap.looking.extremes import Extremes
from layertap.looking.moments import Floats, Moments
from layertap.looking.vectors import Vectors
from layertap.outputs.output import Output
from layertap.store.manifest import TapFacts

# Values that are in memory at once, in float64.
_VALUES = 500_000

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Units:
    """The units of one tap: arrays with one value per unit.

    A unit is a value of a vector, or a channel of a map whose axes are known (`channels`); any other tap has one unit
    per value. Of a channel, `mean`, `std`, `min`, `max`, `zeros` (the share of zeros) and `kurtosis` (0 for a normal
    distribution) are over all positions of all images, and its value for an image is its largest. `nonfinite` counts
    values that are NaN or infinite, which everything else leaves out.

    `top_rows`, `top_values`, `least_rows` and `least_values` (units x k) are the images with the largest and the
    smallest value, equal ones in the order of the rows; row -1 where there are fewer. `dead` units are always 0,
    `constant` ones always the same.

    With a column of metadata, `correlation` is the Pearson correlation of each unit with it. If the column is text,
    `labels` are its values, `label_counts` the images that have each, and `selectivity` (units x labels) the
    correlation of each unit with having that label. Where nothing varies, it is NaN.
    """

    tap: str
    rows: int
    channels: bool
    mean: Floats
    std: Floats
    min: Floats
    max: Floats
    zeros: Floats
    kurtosis: Floats
    nonfinite: Rows
    top_rows: Rows
    top_values: Floats
    least_rows: Rows
    least_values: Floats
    correlation: Floats | None = None
    labels: tuple[str, ...] = ()
    label_counts: Rows | None = None
    selectivity: Floats | None = None

    def __len__(self) -> int:
        return len(self.mean)

    @property
    def constant(self) -> NDArray[np.bool_]:
        """Which units have the same value for all images."""
        same: NDArray[np.bool_] = self.min == self.max
        return same

    @property
    def dead(self) -> NDArray[np.bool_]:
        """Which units are 0 for all images."""
        never: NDArray[np.bool_] = self.constant & (self.max == 0)
        return never


def units(features: Output, tap: str, k: int, by: str | None) -> Units:
    """The units of a tap, in one pass over its rows. Raises `ConfigError`."""
    found, associations = survey(features, tap, k, [by] if by else [])
    return replace(found, **_associated(associations[0])) if associations else found


def survey(features: Output, tap: str, k: int, columns: Sequence[str]) -> tuple[Units, list[Association]]:
    """The units of a tap, and how they go with several columns of metadata, in one pass. Raises `ConfigError`."""
    if k < 1:
        raise ConfigError(f"k is a whole number from 1, not {k}")
    vectors, axis = Vectors(features, tap), _channel_axis(features.facts(tap))
    count = vectors.length if axis is None else vectors.rows.shape[axis]
    moments, top, least = Moments(count), Extremes(k, count), Extremes(k, count)
    associations = [Association(features, column, count) for column in columns]
    for start, values in _chunks(vectors, axis):
        moments.add(values.reshape(-1, count))
        largest = _largest(values)
        top.add(start, largest)
        least.add(start, -largest)
        for association in associations:
            association.add(start, largest)
    found = _statistics(moments) | _extremes(top, least)
    return Units(tap, vectors.count, axis is not None, **found), associations


def unit_values(features: Output, tap: str) -> Iterator[tuple[int, Floats]]:
    """The first row's number, and the value of each unit for each image (rows x units); NaN where none is finite."""
    for start, values in _chunks(Vectors(features, tap), _channel_axis(features.facts(tap))):
        yield start, _largest(values)


def _largest(values: Floats) -> Floats:
    """The largest value of each image and unit (rows x units) that is finite, NaN where none is."""
    if not (finite := np.isfinite(values)).all():
        values = np.where(finite, values, -np.inf)
    found: Floats = values.max(axis=1) if values.shape[1] > 1 else values[:, 0]
    return found if finite.all() else np.where(found == -np.inf, np.nan, found)


def _channel_axis(facts: TapFacts) -> int | None:
    """The axis of the channels of a map, the rows being axis 0; None for a vector, or where axes are not known."""
    axes = "" if facts.reduce else facts.raw.axes
    return axes.index("C") if len(facts.shape) > 1 and "C" in axes and len(axes) == len(facts.shape) + 1 else None


def _chunks(vectors: Vectors, axis: int | None) -> Iterator[tuple[int, Floats]]:
    """The first row's number, and values in float64 (rows x positions x units)."""
    shape = vectors.rows.shape[1:]
    for start, rows in vectors.stretches(max(1, _VALUES // vectors.length)):
        if axis is None:
            yield start, rows.astype(np.float64)[:, None, :]
            continue
        maps = np.moveaxis(rows.reshape(len(rows), *shape), axis, -1).astype(np.float64)
        yield start, maps.reshape(len(rows), math.prod(shape) // shape[axis - 1], shape[axis - 1])


def _statistics(moments: Moments) -> dict[str, Any]:
    counts = np.where(moments.counts > 0, moments.counts, np.nan)
    varies = moments.largest > moments.least
    with np.errstate(all="ignore"):
        return {
            "mean": moments.means * (counts / counts),
            "std": np.where(varies, np.sqrt(moments.second / counts), 0 * counts),
            "min": np.where(moments.counts > 0, moments.least, np.nan),
            "max": np.where(moments.counts > 0, moments.largest, np.nan),
            "zeros": moments.zeros / counts,
            "kurtosis": np.where(varies, counts * moments.fourth / moments.second**2 - 3, np.nan),
            "nonfinite": moments.nonfinite,
        }


def _extremes(top: Extremes, least: Extremes) -> dict[str, Any]:
    return {
        "top_rows": top.rows.T,
        "top_values": np.where(top.rows < 0, np.nan, top.values).T,
        "least_rows": least.rows.T,
        "least_values": np.where(least.rows < 0, np.nan, -least.values).T,
    }


def _associated(association: Association) -> dict[str, Any]:
    found = association.correlations
    if association.counts is None:
        return {"correlation": found[0]}
    return {"labels": association.labels, "label_counts": association.counts, "selectivity": found.T}
