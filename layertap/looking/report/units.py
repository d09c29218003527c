"""The units of a tap as data for the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layertap.errors import ConfigError
from layertap.looking.association import Association
from layertap.looking.report.histograms import histograms
from layertap.looking.report.packing import packed
from layertap.looking.samples import SEED
from layertap.looking.units import Units, survey
from layertap.outputs.output import Output

TOP = 10
MOST_UNITS = 10_000
MOST_LABELS = 256

_STATISTICS = ("mean", "std", "min", "max", "zeros", "kurtosis")


@dataclass(frozen=True, slots=True)
class ShownUnits:
    """The units of a tap that the page shows: their statistics over all rows, and how they go with the metadata.

    `numbers` are those of the units shown, a seeded sample of `of` where there are more than the page holds.
    """

    tap: str
    found: Units
    numbers: NDArray[np.int64]
    counts: NDArray[np.int32]
    columns: tuple[str, ...]
    associations: tuple[Association, ...]

    @property
    def rows(self) -> NDArray[np.int64]:
        """The rows with the largest values, the best of each unit first, then the second ones; then the least ones."""
        top, least = self.found.top_rows[self.numbers], self.found.least_rows[self.numbers]
        return np.concatenate([top.T.reshape(-1), least.T.reshape(-1)])

    def block(self, images: Any) -> dict[str, Any]:
        """The units as data for the page; `images` gives the numbers of rows among the images of the page."""
        found, chosen = self.found, self.numbers
        return {
            "count": len(found),
            "channels": found.channels,
            "numbers": packed(chosen.astype(np.int32)),
            "dead": packed(found.dead[chosen].astype(np.uint8)),
            "constant": packed(found.constant[chosen].astype(np.uint8)),
            "nonfinite": packed(np.minimum(found.nonfinite[chosen], 2**31 - 1).astype(np.int32)),
            **{name: packed(getattr(found, name)[chosen].astype(np.float32)) for name in _STATISTICS},
            "top": packed(images(found.top_rows[chosen])),
            "topValues": packed(found.top_values[chosen].astype(np.float32)),
            "least": packed(images(found.least_rows[chosen])),
            "leastValues": packed(found.least_values[chosen].astype(np.float32)),
            "histogram": packed(self.counts[chosen]),
            "columns": list(self.columns),
        }

    def relations(self) -> list[dict[str, Any]]:
        """For each column: its labels with the number of images of each, and the correlations (columns x units)."""
        return [
            {
                "labels": list(one.labels),
                "counts": [] if one.counts is None else one.counts.tolist(),
                "correlations": packed(one.correlations[:, self.numbers].astype(np.float32)),
            }
            for one in self.associations
        ]


def shown_units(features: Output, tap: str, columns: tuple[str, ...]) -> ShownUnits:
    """The units of a tap, in two passes over its rows."""
    found, associations = survey(features, tap, TOP, columns)
    numbers = np.arange(len(found))
    if len(found) > MOST_UNITS:
        numbers = np.sort(np.random.default_rng(SEED).choice(len(found), MOST_UNITS, replace=False))
    counts = histograms(features, tap, found.least_values[:, 0], found.top_values[:, 0])
    return ShownUnits(tap, found, numbers, counts, columns, tuple(associations))


def related(features: Output) -> tuple[str, ...]:
    """The columns of metadata that units are compared with: numbers, and texts of 2 to 256 labels."""
    labels: dict[str, set[str]] = {
        name: set() for name, type_name in features.meta.items() if type_name not in ("int", "float", "bool", "null")
    }
    open_columns = dict(labels)
    for row in features.rows():
        for name, found in list(open_columns.items()):
            if row[name] is not None:
                found.add(str(row[name]))
                if len(found) > MOST_LABELS:
                    del open_columns[name]
        if not open_columns:
            break
    numbers = [name for name, type_name in features.meta.items() if type_name in ("int", "float", "bool")]
    return tuple(name for name in features.meta if name in numbers or (name in open_columns and len(labels[name]) > 1))


def refusal(features: Output, tap: str) -> str | None:
    """Why a tap cannot be shown, such as one of complex numbers; None where it can."""
    from layertap.looking.vectors import Vectors

    try:
        Vectors(features, tap)
    except ConfigError as error:
        return str(error)
    return None
