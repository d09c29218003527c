"""An approximate index of the rows of a tap, kept beside the output, for outputs too large to search exactly."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pydantic
from numpy.typing import NDArray

from layertap.errors import ConfigError, StoreError, missing_extra
from layertap.looking.metrics import metric_named
from layertap.looking.neighbours import Neighbour, Neighbours, Query, nearest, refuse_undefined
from layertap.looking.products import exact_squares
from layertap.looking.vectors import Vectors
from layertap.outputs.output import Output

if TYPE_CHECKING:
    from usearch.index import Index as Graph

INDEXES = ("usearch",)

# The recall is that of the nearest rows of so many random rows.
_SAMPLE, _SAMPLE_BYTES = 200, 32_000_000
_NEAREST = 10
_SEED = 0

# How many candidates are taken from the index for each row that is wanted; the best are found among them in float64.
_MORE = 8
_FEWEST = 256

_KINDS = {"cosine": "cos", "dot": "ip", "euclidean": "l2sq"}

# As wide as float32, which a long activation needs, and half as large.
_DTYPE = "bf16"

_ROWS = 10_000

Said = Callable[[str], None]


class Facts(pydantic.BaseModel):
    """What is known of an index: the rows that it was built for, and its `recall`.

    `recall` is the share of the `nearest` true rows of each of `sample` random rows that it finds. `indexed` rows are
    in it: those that are not finite, and for the cosine those of zeros, are not.
    """

    model_config = pydantic.ConfigDict(strict=True, frozen=True)

    key: str
    rows: int
    indexed: int
    left_out: dict[str, int]
    recall: float = 1.0
    sample: int = 0
    nearest: int = _NEAREST
    seconds: float = 0.0

    def __str__(self) -> str:
        return (
            f"recall {self.recall:.3f}: the share of the {self.nearest} nearest rows that it finds, measured on "
            f"{self.sample:,} random rows against exact search"
        )


class Index:
    """A usearch index of a tap by a metric, built at the first use and again where the output has changed since.

    It is in the folder `NAME.index` next to the output `NAME`. `said` is called with what takes long. Raises
    `ConfigError` where usearch is missing, or the folder cannot be written.
    """

    def __init__(self, features: Output, tap: str, metric: str, said: Said = lambda text: None) -> None:
        self._features = features
        self._measure = metric_named(metric)
        self._vectors = Vectors(features, tap)
        self._said = said
        usearch()
        whole = Path(os.path.realpath(features.path))
        self.folder = whole.with_name(f"{whole.name}.index")
        self._name = f"{features.facts(tap).file}.{metric}"
        key = self._key()
        self.path = self.folder / f"{self._name}.{key[:16]}.usearch"
        self._graph, self.facts = self._opened(key) or self._built(key)

    def nearest(self, queries: Iterable[Query], k: int) -> Iterator[Neighbours]:
        """The `k` nearest rows of each query that the index finds, with exact values.

        Raises `ConfigError` for a query that the metric is not defined for.
        """
        if k < 1:
            raise ConfigError(f"k is a whole number from 1, not {k}")
        ids: list[str] | None = None
        for query in queries:
            refuse_undefined(query, self._measure, self._vectors.tap)
            ids = self._features.ids if ids is None else ids
            rows, values = self._best(query.vector, k)
            found = zip(rows.tolist(), values.tolist(), strict=True)
            hits = tuple(Neighbour(row, ids[row], value) for row, value in found)
            facts = self.facts
            yield Neighbours(
                query.name,
                self._vectors.tap,
                self._measure.name,
                hits,
                facts.rows,
                dict(facts.left_out),
                facts.recall,
            )

    def _best(self, vector: NDArray[Any], k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Rows and values, the best first, then in the order of the rows."""
        wanted = min(self.facts.indexed, max(_MORE * k, _FEWEST))
        if not wanted:
            return np.empty(0, np.int64), np.empty(0)
        keys = np.sort(self._graph.search(vector.astype(np.float32), wanted).keys.astype(np.int64))
        if len(keys) and not 0 <= keys[0] <= keys[-1] < self._vectors.count:
            raise StoreError(f"{self.path}: names rows that the output does not have; delete it")
        rows = self._vectors.chosen(keys)
        with np.errstate(all="ignore"):
            values = self._measure.exact(rows, np.broadcast_to(vector, rows.shape))
        order = np.lexsort((keys, -self._measure.sign * values))[:k]
        return keys[order], values[order]

    def _key(self) -> str:
        """What identifies the rows: the run, and the digests of the tap's values in each shard."""
        digest = hashlib.sha256(self._features.manifest["run"].encode())
        for shard in self._features.shards:
            digest.update(f"{shard.kept} {shard.values.get(self._vectors.tap)};".encode())
        return digest.hexdigest()

    def _opened(self, key: str) -> tuple[Graph, Facts] | None:
        """The index as it was built for these rows, None if there is none."""
        try:
            facts = Facts.model_validate_json(self.path.with_suffix(".json").read_bytes())
        except (OSError, ValueError):
            return None
        if facts.key != key or facts.rows != self._vectors.count or not self.path.is_file():
            return None
        if not facts.indexed:
            return self._empty(), facts
        try:
            graph = self._empty()
            graph.view(os.fspath(self.path))
        except Exception:  # usearch raises RuntimeError and ValueError for a file that it did not write
            return None
        if len(graph) != facts.indexed or graph.ndim != self._vectors.length:
            return None
        return graph, facts

    def _empty(self) -> Graph:
        return usearch()(ndim=self._vectors.length, metric=_KINDS[self._measure.name], dtype=_DTYPE)

    def _built(self, key: str) -> tuple[Graph, Facts]:
        count = self._vectors.count
        self._said(f"building the index {self.path} of {count:,} rows")
        started, graph, left_out = time.monotonic(), self._empty(), {"nonfinite": 0, "zero": 0}
        for start, rows in self._vectors.stretches(_ROWS):
            with np.errstate(all="ignore"):
                squares = exact_squares(rows)
            usable = np.isfinite(squares)
            left_out["nonfinite"] += int((~usable).sum())
            if not self._measure.takes_zero:
                left_out["zero"] += int((squares == 0).sum())
                usable &= squares > 0
            keys = np.flatnonzero(usable)
            if len(keys):
                graph.add(start + keys, _scaled(rows[keys], squares[keys], self._measure.takes_zero))
        self._graph = graph
        indexed = count - sum(left_out.values())
        self.facts = Facts(key=key, rows=count, indexed=indexed, left_out=left_out)
        recall, sample = self._recall()
        seconds = round(time.monotonic() - started, 1)
        facts = self.facts.model_copy(update={"recall": recall, "sample": sample, "seconds": seconds})
        self._save(graph, facts)
        self._said(f"built it in {seconds:.1f} s; {facts}")
        return graph, facts

    def _recall(self) -> tuple[float, int]:
        """The share of the nearest rows of random rows that the index finds, and how many rows those are."""
        most = max(1, min(_SAMPLE, _SAMPLE_BYTES // (self._vectors.length * self._vectors.dtype.itemsize)))
        drawn = np.sort(np.random.default_rng(_SEED).permutation(self._vectors.count)[:most])
        queries = [Query(str(row), self._vectors.row(int(row))) for row in drawn]
        queries = [query for query in queries if self._is_defined(query)]
        right = wanted = 0
        exact = nearest(self._features, queries, self._vectors.tap, _NEAREST + 1, self._measure.name)
        for query, true in zip(queries, exact, strict=True):
            # Without the row itself, and of rows that are equally near, any.
            others = [hit.value * self._measure.sign for hit in true if str(hit.row) != query.name][:_NEAREST]
            found, values = self._best(query.vector, _NEAREST + 1)
            scores = values[found != int(query.name)] * self._measure.sign
            wanted += len(others)
            right += min(len(others), int((scores >= others[-1]).sum())) if others else 0
        return (right / wanted if wanted else 1.0), len(queries)

    def _is_defined(self, query: Query) -> bool:
        square = exact_squares(query.vector[None])[0]
        return bool(np.isfinite(square) and (square > 0 or self._measure.takes_zero))

    def _save(self, graph: Graph, facts: Facts) -> None:
        """Write the index and its facts, and remove those of earlier rows."""
        described = self.path.with_suffix(".json")
        try:
            self.folder.mkdir(exist_ok=True)
            temporary = self.folder / f".{self.path.name}.{os.getpid()}.tmp"
            try:
                graph.save(os.fspath(temporary))
                temporary.replace(self.path)
                temporary.write_text(facts.model_dump_json(), "utf-8")
                temporary.replace(described)
            finally:
                temporary.unlink(missing_ok=True)
            mine = re.compile(re.escape(self._name) + r"\.[0-9a-f]{16}\.(usearch|json)")
            for path in self.folder.iterdir():
                if mine.fullmatch(path.name) and path not in (self.path, described):
                    path.unlink()
        except (OSError, RuntimeError) as error:
            raise ConfigError(f"{self.folder}: the index cannot be written: {error}") from error


def _scaled(rows: NDArray[Any], squares: NDArray[np.float64], as_they_are: bool) -> NDArray[np.float32]:
    """Rows in float32, as directions where only those matter."""
    if not as_they_are:
        rows = rows.astype(np.float64) / np.sqrt(squares)[:, None]
    return rows.astype(np.float32)


def usearch() -> type[Graph]:
    """The class of usearch's indexes. Raises `ConfigError` where the extra is missing."""
    try:
        from usearch.index import Index as Graph
    except ModuleNotFoundError as error:
        raise ConfigError(missing_extra("--index usearch", error.name, "index")) from error
    return Graph
