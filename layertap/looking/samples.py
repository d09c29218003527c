"""The images that several taps are compared by: those that all outputs hold, or a seeded sample of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from layertap.errors import ConfigError
from layertap.looking.vectors import Vectors
from layertap.outputs.output import Output

SEED = 0

# The unbiased estimator divides by n - 3.
_FEWEST = 4


@dataclass(frozen=True, slots=True)
class Tap:
    """One tap of one output, under the name that it is shown by."""

    name: str
    features: Output
    tap: str
    rows: NDArray[np.int64]
    """The row of each image of the sample."""

    @property
    def vectors(self) -> Vectors:
        """All of its rows."""
        return Vectors(self.features, self.tap)


@dataclass(frozen=True, slots=True)
class Sample:
    """Taps with the rows of the same images in the same order.

    `shared` images are in every output; `left_out` of those drawn hold values that are not finite in some tap.
    """

    taps: tuple[Tap, ...]
    shared: int
    left_out: int

    @property
    def images(self) -> int:
        """How many images are compared."""
        return len(self.taps[0].rows)


def sample(outputs: Sequence[Output], taps: Sequence[Sequence[str]], most: int) -> Sample:
    """The taps of each output with the rows of at most `most` images that all outputs hold, joined by id.

    Raises `ConfigError` for fewer than two taps or four images.
    """
    if sum(map(len, taps)) < 2:
        raise ConfigError(f"{outputs[0].path}: has one tap to compare; give a second output, or extract more taps")
    if len({str(output.path) for output in outputs}) < len(outputs):
        raise ConfigError("compare: an output is given twice")
    rows, shared = _joined(outputs, most)
    found = [
        Tap(tap if len(outputs) == 1 else f"{output.path}:{tap}", output, tap, these)
        for output, names, these in zip(outputs, taps, rows, strict=True)
        for tap in names
    ]
    finite = np.all([finite_rows(tap) for tap in found], axis=0)
    if finite.sum() < _FEWEST:
        raise ConfigError(
            f"compare: {finite.sum()} images are in all outputs with finite values in all taps; {_FEWEST} are needed"
        )
    kept = tuple(Tap(tap.name, tap.features, tap.tap, tap.rows[finite]) for tap in found)
    return Sample(kept, shared, int((~finite).sum()))


def _joined(outputs: Sequence[Output], most: int) -> tuple[list[NDArray[np.int64]], int]:
    """The rows of the same images in each output, in the order of the first one; and how many they all hold."""
    places = [{record_id: row for row, record_id in enumerate(output.ids)} for output in outputs[1:]]
    ids = [record_id for record_id in outputs[0].ids if all(record_id in place for place in places)]
    drawn = np.arange(len(ids))
    if len(ids) > most:
        drawn = np.sort(np.random.default_rng(SEED).choice(len(ids), most, replace=False))
    first = {record_id: row for row, record_id in enumerate(outputs[0].ids)}
    rows = [np.array([place[ids[at]] for at in drawn], np.int64) for place in (first, *places)]
    return rows, len(ids)


def finite_rows(tap: Tap) -> NDArray[np.bool_]:
    """Which rows of the sample hold finite values alone."""
    finite = np.ones(len(tap.rows), bool)
    if tap.features.facts(tap.tap).nonfinite == 0:  # counted by its run
        return finite
    vectors = tap.vectors
    whole = np.ones(vectors.count, bool)
    for start, rows in vectors.stretches(vectors.count):
        whole[start : start + len(rows)] = np.isfinite(rows).all(axis=1)
    return whole[tap.rows]
