"""The histogram of each unit's values, in one pass over the rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from layertap.looking.moments import Floats
from layertap.looking.units import unit_values
from layertap.outputs.output import Output

BINS = 32


def histograms(features: Output, tap: str, least: Floats, largest: Floats) -> NDArray[np.int32]:
    """How many images have a value in each of `BINS` equal parts of a unit's range (units x bins).

    The value of an image is that of `Units`, and values that are not finite are not counted.
    """
    counts = np.zeros((len(least), BINS), np.int64)
    width = np.where(largest > least, largest - least, 1)
    first = np.arange(len(least)) * BINS
    with np.errstate(all="ignore"):
        scale = BINS / width
        for _, values in unit_values(features, tap):
            known = np.isfinite(values)
            bins = np.clip((values - least) * scale, 0, BINS - 1)
            places = np.where(known, bins, 0).astype(np.int64) + first
            counts += np.bincount(places[known], minlength=counts.size).reshape(counts.shape)
    return counts.astype(np.int32)
