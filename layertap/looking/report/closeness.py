"""Which images are near one another: the neighbours of those on the map, and the pairs that are alike."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layertap.errors import ConfigError
from layertap.looking.neighbours import Query, nearest
from layertap.looking.pairs import alike
from layertap.looking.report.packing import packed
from layertap.looking.samples import SEED
from layertap.looking.vectors import Vectors
from layertap.outputs.output import Output

NEIGHBOURS = 10
MOST_PAIRS = 5_000

CODES = 32
"""How many components the neighbours of other images are found by."""

_MEASURED = 100

# Multiplications for all rows with one another: what two cores do in some tens of seconds.
_MULTIPLICATIONS = 4e11

# What a pair costs besides, in multiplications.
_PER_PAIR = 1_000
_SAMPLE_BYTES = 256_000_000

# The thresholds to try: the first one with few enough pairs is where the page's threshold begins.
_LEAST = (0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9999)


@dataclass(frozen=True, slots=True)
class Near:
    """The `near` rows (rows x 10, -1 for none) of each of the `rows` that were asked for, and their `cosines`.

    `undefined` rows have no cosine: they are zero, or hold values that are not finite.
    """

    rows: NDArray[np.int64]
    near: NDArray[np.int64]
    cosines: NDArray[np.float64]
    undefined: int

    def block(self, images: Callable[[NDArray[Any]], NDArray[np.int32]]) -> dict[str, Any]:
        """The neighbours as data for the page; `images` gives the places of rows on it."""
        return {
            "rows": packed(images(self.rows)),
            "near": packed(images(self.near)),
            "cosines": packed(self.cosines.astype(np.float32)),
            "undefined": self.undefined,
        }


@dataclass(frozen=True, slots=True)
class Duplicates:
    """The `pairs` (pairs x 2) of rows with a cosine of at least `least`, among `among` rows of `of`.

    `least` is None where there are too many pairs even above the highest threshold.
    """

    least: float | None
    pairs: NDArray[np.int64]
    cosines: NDArray[np.float64]
    among: int
    of: int

    def block(self, images: Callable[[NDArray[Any]], NDArray[np.int32]]) -> dict[str, Any]:
        """The pairs as data for the page; `images` gives the places of rows on it."""
        return {
            "least": self.least,
            "pairs": packed(images(self.pairs)),
            "cosines": packed(self.cosines),
            "among": self.among,
            "of": self.of,
            "most": MOST_PAIRS,
            "above": _LEAST[-1],
        }


def neighbours(features: Output, tap: str, shown: NDArray[np.int64]) -> Near:
    """The rows nearest to each of the shown rows by cosine, or to a seeded sample of them where they are too many."""
    vectors = Vectors(features, tap)
    asked = drawn(shown, int(_MULTIPLICATIONS / (vectors.count * (vectors.length + _PER_PAIR))))
    near = np.full((len(asked), NEIGHBOURS), -1)
    cosines = np.zeros(near.shape)
    lengths = _lengths(vectors, asked)
    usable = np.flatnonzero(np.isfinite(lengths) & (lengths > 0))
    queries = (Query(str(asked[place]), vectors.row(int(asked[place]))) for place in usable)
    for place, found in zip(usable, nearest(features, queries, tap, NEIGHBOURS + 1, "cosine"), strict=True):
        others = [hit for hit in found if hit.row != asked[place]][:NEIGHBOURS]
        near[place, : len(others)] = [hit.row for hit in others]
        cosines[place, : len(others)] = [hit.value for hit in others]
    return Near(asked, near, cosines, len(asked) - len(usable))


def code_block(scores: NDArray[np.float32], near: Near, images: Callable[[NDArray[Any]], NDArray[np.int32]]) -> Any:
    """What the page finds neighbours by where none were computed: the direction of each image, in a few bytes.

    `recall` is the share of the computed neighbours that it finds so; `measured` is among how many images.
    """
    with np.errstate(all="ignore"):
        units = np.nan_to_num(scores / np.linalg.norm(scores, axis=1, keepdims=True))
    codes = np.round(127 * units).astype(np.int8)
    places = images(near.rows)[:_MEASURED]
    right = known = 0
    for place, true in zip(places, images(near.near), strict=False):
        alike = codes.astype(np.float32) @ codes[place].astype(np.float32) if place >= 0 else np.empty(0)
        true = true[true >= 0]
        alike[place : place + 1] = -np.inf
        guessed = np.argpartition(-alike, NEIGHBOURS)[:NEIGHBOURS] if len(alike) > NEIGHBOURS else np.arange(len(alike))
        right += len(np.intersect1d(guessed, true))
        known += len(true)
    return {
        "codes": packed(codes.view(np.uint8)),
        "recall": right / known if known else None,
        "measured": len(places),
    }


def duplicates(features: Output, tap: str) -> Duplicates:
    """The pairs of rows that are alike, among all rows or a seeded sample of them where they are too many."""
    vectors = Vectors(features, tap)
    in_time = math.sqrt(2 * _MULTIPLICATIONS / (vectors.length + _PER_PAIR))
    fitting = int(min(in_time, _SAMPLE_BYTES / (8 * vectors.length)))
    sample = drawn(np.arange(vectors.count), max(2, fitting))
    chosen = sample if len(sample) < vectors.count else None
    for least in _LEAST:
        try:
            found = alike(features, tap, least, MOST_PAIRS, chosen)
        except ConfigError:
            continue
        pairs = np.array([(pair.row, pair.other_row) for pair in found], np.int64).reshape(-1, 2)
        cosines = np.array([pair.similarity for pair in found])
        return Duplicates(least, pairs, cosines, len(sample), vectors.count)
    return Duplicates(None, np.empty((0, 2), np.int64), np.empty(0), len(sample), vectors.count)


def drawn(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """A seeded sample of at most `most` rows, in their order."""
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(SEED).choice(rows, max(1, most), replace=False))


def _lengths(vectors: Vectors, asked: NDArray[np.int64]) -> NDArray[np.float64]:
    found = np.zeros(len(asked))
    with np.errstate(all="ignore"):
        for start, stretch in vectors.stretches(vectors.count):
            here = slice(*np.searchsorted(asked, [start, start + len(stretch)]))
            for place in range(here.start, here.stop):
                row = stretch[asked[place] - start].astype(np.float64)
                found[place] = row @ row
    return found
