"""The nearest rows of a query: exact, in one pass over the rows, in bounded memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from layertap.errors import ConfigError
from layertap.looking.metrics import Metric, metric_named
from layertap.looking.products import exact_squares, few, ordinary, products_and_squares, rounding
from layertap.looking.vectors import Vectors
from layertap.outputs.output import Output

# Queries that are answered in one pass over the rows.
_TOGETHER = 256
_QUERY_BYTES = 32_000_000

# Pairs of a row and a query that are looked at together.
_PAIRS = 1_000_000


class Query(NamedTuple):
    """What is searched for: its name, and its vector."""

    name: str
    vector: NDArray[Any]


class Neighbour(NamedTuple):
    """A row that was found: its number, its id, and its similarity to the query, or its distance from it."""

    row: int
    id: str
    value: float


@dataclass(frozen=True, slots=True)
class Neighbours(Sequence[Neighbour]):
    """The rows nearest to one query, the nearest first, equal ones in the order of the rows.

    `left_out` counts the rows that were not compared: `nonfinite` hold NaN or infinite values, `zero` are vectors of
    zeros, which have no cosine. The search was exact if `recall` is None. Otherwise it is the share of the nearest rows
    that the index finds.
    """

    query: str
    tap: str
    metric: str
    found: tuple[Neighbour, ...]
    rows: int
    left_out: Mapping[str, int] = field(default_factory=dict)
    recall: float | None = None

    def __len__(self) -> int:
        return len(self.found)

    @overload
    def __getitem__(self, key: int) -> Neighbour: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[Neighbour, ...]: ...
    def __getitem__(self, key: int | slice) -> Neighbour | tuple[Neighbour, ...]:
        return self.found[key]


def nearest(features: Output, queries: Iterable[Query], tap: str, k: int, metric: str) -> Iterator[Neighbours]:
    """The `k` nearest rows of each query, in the order of the queries.

    Raises `ConfigError` for a query that the metric is not defined for.
    """
    measure, vectors = metric_named(metric), Vectors(features, tap)
    if k < 1:
        raise ConfigError(f"k is a whole number from 1, not {k}")
    ids: list[str] | None = None
    for group in _groups(queries, vectors):
        for query in group:
            refuse_undefined(query, measure, tap)
        best = _Best(np.stack([query.vector for query in group]), min(k, vectors.count), measure)
        for start, rows in vectors.stretches(max(1, _PAIRS // len(group))):
            best.offer(start, rows)
        ids = features.ids if ids is None else ids
        for query, rows_found, values in zip(group, best.rows, best.scores * measure.sign, strict=True):
            hits = zip(rows_found.tolist(), values.tolist(), strict=True)
            found = tuple(Neighbour(row, ids[row], value) for row, value in hits if row >= 0)
            yield Neighbours(query.name, tap, metric, found, vectors.count, dict(best.left_out))


def _groups(queries: Iterable[Query], vectors: Vectors) -> Iterator[list[Query]]:
    fitting = _QUERY_BYTES // (vectors.length * vectors.dtype.itemsize)
    size, rest = max(1, min(_TOGETHER, fitting)), iter(queries)
    while group := list(itertools.islice(rest, size)):
        yield group


def refuse_undefined(query: Query, metric: Metric, tap: str) -> None:
    """Raise `ConfigError` for a query that the metric is not defined for."""
    square = exact_squares(query.vector[None])[0]
    if not np.isfinite(square):
        raise ConfigError(f"{query.name}: its values in {tap!r} are not all finite, so nothing is near it")
    if not square and not metric.takes_zero:
        raise ConfigError(
            f"{query.name}: is a vector of zeros in {tap!r}, which has no {metric.name}; use another metric"
        )


class _Best:
    """The best rows of each query so far: `rows` and `scores` (queries x k), the best first; row -1 where none is."""

    def __init__(self, queries: NDArray[Any], k: int, metric: Metric) -> None:
        self.rows = np.full((len(queries), k), -1)
        self.scores = np.full((len(queries), k), -np.inf)
        self.left_out = {"nonfinite": 0, "zero": 0}
        self._queries = queries
        self._metric = metric
        self._squares = exact_squares(queries)
        self._rounding = rounding(queries.dtype, queries.shape[1])
        self._ordinary = ordinary(self._squares, queries.dtype)

    def offer(self, start: int, rows: NDArray[Any]) -> None:
        """Take what is good enough of some rows, the first of which has the number `start`."""
        if not self.rows.shape[1]:
            return
        ceiling, defined = self._ceiling(rows)
        seeds = np.zeros(ceiling.shape, bool)
        for query in np.flatnonzero(self.rows[:, -1] < 0):
            # Good rows first, so that few others are looked at in float64.
            likely = np.argsort(-ceiling[:, query], kind="stable")[: self.rows.shape[1]]
            seeds[likely[defined[likely]], query] = True
        self._take(start, rows, seeds)
        # Not `>=`: a ceiling that is NaN rules nothing out.
        self._take(start, rows, ~(ceiling < self.scores[:, -1]) & ~seeds & defined[:, None])

    def _ceiling(self, rows: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """The score that each pair has at most, NaN where that is not known; and which rows can be compared at all."""
        with np.errstate(all="ignore"):
            dots, squares = products_and_squares(rows, self._queries)
            ceiling = self._metric.ceiling(dots, squares, self._squares, self._rounding)
            known = ordinary(squares, self._queries.dtype)
            odd = np.flatnonzero(~known)
            exact = exact_squares(rows[odd])
        ceiling[odd] = np.nan
        ceiling[:, ~self._ordinary] = np.nan
        nonfinite, zero = ~np.isfinite(exact), exact == 0
        self.left_out["nonfinite"] += int(nonfinite.sum())
        known[odd] = ~nonfinite
        if not self._metric.takes_zero:
            self.left_out["zero"] += int(zero.sum())
            known[odd[zero]] = False
        return ceiling, known

    def _take(self, start: int, rows: NDArray[Any], pairs: NDArray[np.bool_]) -> None:
        """Measure these pairs in float64, and keep the best."""
        queries, chosen = np.nonzero(pairs.T)
        scores = np.empty(len(queries))
        for some in few(len(queries), rows.shape[1]):
            scores[some] = self._metric.exact(rows[chosen[some]], self._queries[queries[some]])
        scores *= self._metric.sign
        for query in np.unique(queries):
            here = slice(*np.searchsorted(queries, [query, query + 1]))
            every_score = np.concatenate([self.scores[query], scores[here]])
            every_row = np.concatenate([self.rows[query], start + chosen[here]])
            # Places without a row have the score -inf and come last.
            order = np.lexsort((every_row, -every_score))[: self.rows.shape[1]]
            self.scores[query], self.rows[query] = every_score[order], every_row[order]
