"""Reading an output back: every sink's files the same way, finished or not."""

from __future__ import annotations

import bisect
import csv
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layertap import confined
from layertap.commits import PARTS, Commit, Commits
from layertap.contracts import ArrayLike, FileSink
from layertap.dtypes import numpy_dtype
from layertap.errors import StoreError, did_you_mean
from layertap.grammar import Spec
from layertap.manifest import Manifest, read_output
from layertap.plugins import Plugins, guard

_READ: Mapping[str, Callable[[str], Any]] = {"int": int, "float": float, "bool": lambda text: text == "True"}


class Rows:
    """One tap's values, one row an image, read when they are asked for.

    `shape` and `dtype` are known without reading; `rows[i]`, `rows[a:b]`, `rows[[3, 1]]` and `np.asarray(rows)` give
    arrays, in row order.
    """

    def __init__(self, parts: Sequence[ArrayLike], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._parts = parts
        self._starts = list(itertools.accumulate((part.shape[0] for part in parts), initial=0))
        self.shape: tuple[int, ...] = (self._starts[-1], *shape)
        self.dtype = dtype

    @property
    def ndim(self) -> int:
        """How many axes there are, the rows among them."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<Rows {self.shape} {self.dtype}>"

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self[index] for index in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False and len(self._parts) != 1:
            raise ValueError("rows in several parts cannot become one array without a copy")
        values = self[:]
        return np.array(values, dtype=dtype) if copy else np.asarray(values, dtype=dtype)

    def __getitem__(self, key: Any) -> Any:
        first, *rest = key if isinstance(key, tuple) else (key,)
        if first is Ellipsis or first is None:
            return np.asarray(self)[key]
        values = self._rows(first)
        if not rest:
            return values
        return values[tuple(rest)] if isinstance(first, (int, np.integer)) else values[(slice(None), *rest)]

    def _rows(self, key: Any) -> NDArray[Any]:
        if isinstance(key, (int, np.integer)):
            index = range(len(self))[int(key)]
            part = bisect.bisect_right(self._starts, index) - 1
            return self._true(self._parts[part][index - self._starts[part]]).reshape(self.shape[1:])
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step == 1:
                return self._stretch(start, max(start, stop))
            return self._scattered(np.arange(start, stop, step))
        wanted = np.asarray(key)
        if wanted.dtype == bool:
            if wanted.shape != (len(self),):
                raise IndexError(f"a boolean index needs one value a row, {len(self)}, not the shape {wanted.shape}")
            wanted = np.flatnonzero(wanted)
        wanted = wanted.astype(np.int64, casting="unsafe" if not wanted.size else "same_kind")
        if wanted.size and not (-len(self) <= wanted.min() and wanted.max() < len(self)):
            raise IndexError(f"a row is out of range: there are {len(self)}")
        return self._scattered(wanted % len(self) if len(self) else wanted)

    def _stretch(self, start: int, stop: int) -> NDArray[Any]:
        found = [
            self._shaped(part[max(start - at, 0) : stop - at])
            for at, part in zip(self._starts, self._parts, strict=False)
            if at < stop and start < at + part.shape[0]
        ]
        if len(found) == 1:
            return found[0]
        return np.concatenate(found) if found else np.empty((0, *self.shape[1:]), self.dtype)

    def _scattered(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        values = np.empty((*rows.shape, *self.shape[1:]), self.dtype)
        owners = np.searchsorted(self._starts, rows, side="right") - 1
        for part in np.unique(owners):
            here = owners == part
            local = rows[here] - self._starts[part]
            # Not every format can gather in any order; all can in ascending order without repeats.
            unique, back = np.unique(local, return_inverse=True)
            values[here] = self._shaped(self._parts[part][unique])[back]
        return values

    def _shaped(self, values: Any) -> NDArray[Any]:
        """Stored rows in the shape of the tap: a format may keep them flat."""
        array = self._true(values)
        return array.reshape(len(array), *self.shape[1:])

    def _true(self, values: Any) -> NDArray[Any]:
        """Stored values in their own dtype: bfloat16 is kept as its bits by formats that do not know it."""
        array = np.asarray(values)
        return array if array.dtype == self.dtype else array.view(self.dtype)


class Features:
    """An output folder: `features["classifier.5"]` are its rows, in the order of `ids`.

    `taps` are the names, `manifest` is everything known about the run. An unfinished output shows what is committed.
    """

    def __init__(self, path: Path, manifest: Manifest, sink: FileSink) -> None:
        self.path = path
        self.manifest: dict[str, Any] = manifest.model_dump(mode="json")
        self.taps: list[str] = list(manifest.taps)
        self._known = manifest
        self._sink = sink
        sink.stems = {name: tap.file for name, tap in manifest.taps.items()}

    @property
    def is_complete(self) -> bool:
        """Whether the run that wrote it has finished."""
        return self._known.status == "complete"

    def __getitem__(self, tap: str) -> Rows:
        facts = self._known.taps.get(tap)
        if facts is None:
            raise StoreError(
                f"{self.path}: no tap is named {tap!r}{did_you_mean(tap, self.taps)} ({', '.join(self.taps)})"
            )
        with guard(self._sink), _readable(self.path):
            parts = [self._sink.load(folder, tap) for folder in self._folders()]
        for part in parts:
            if math.prod(part.shape[1:]) != math.prod(facts.shape):
                raise StoreError(
                    f"{self.path}: {tap!r} holds rows of {part.shape[1:]}, and its manifest says {facts.shape}"
                )
        return Rows(parts, tuple(facts.shape), numpy_dtype(facts.dtype))

    def __contains__(self, tap: object) -> bool:
        return tap in self._known.taps

    def __iter__(self) -> Iterator[str]:
        return iter(self.taps)

    def __repr__(self) -> str:
        return f"<Features {self.path}: {len(self.index)} rows of {', '.join(self.taps)}>"

    @cached_property
    def index(self) -> list[dict[str, Any]]:
        """One mapping a row: `row`, `id` and the metadata."""
        return list(self.rows())

    @cached_property
    def failures(self) -> list[dict[str, str]]:
        """One mapping a failed image: `id`, `stage` and `reason`, in the order of the plan."""
        if self.is_complete:
            return list(self._csv("failures.csv"))
        return [failed.model_dump() for commit in self._commits() for failed in commit.failures]

    @property
    def ids(self) -> list[str]:
        """The image of every row."""
        return [row["id"] for row in self.index]

    def rows(self) -> Iterator[dict[str, Any]]:
        """What `index` holds, one row at a time."""
        if self.is_complete:
            with _readable(self.path):
                yield from map(self._typed, self._csv("index.csv"))
            return
        kept = (row for commit in self._commits() for row in commit.kept)
        yield from ({"row": number, "id": row.id, **row.meta} for number, row in enumerate(kept))

    def _folders(self) -> list[Path]:
        """The folders that hold a part each, once every file that a run has written there is found to be a file."""
        commits = Commits(self.path)
        with _readable(self.path):
            if self.is_complete:
                for name in self._known.files:
                    confined.regular(self.path, name)
                if self._known.merged:
                    return [self.path]
            else:
                for commit in self._commits():
                    for name in commit.files:
                        confined.regular(self.path, f"{PARTS}/{commits.part(commit.shard).name}/{name}")
        return [commits.part(number) for number in range(self._shards)]

    def _commits(self) -> Iterator[Commit]:
        return itertools.islice(Commits(self.path), self._shards)

    @cached_property
    def _shards(self) -> int:
        """How many shards there were at the first look: a run may be adding to them."""
        return len(self._known.shards) if self.is_complete else len(Commits(self.path))

    def _typed(self, row: dict[str, str]) -> dict[str, Any]:
        result: dict[str, Any] = {"row": int(row["row"]), "id": row["id"]}
        for key, type_name in self._known.meta.items():
            text = row[key]
            result[key] = _READ.get(type_name, str)(text) if text else None
        return result

    def _csv(self, name: str) -> Iterator[dict[str, str]]:
        with _readable(self.path), confined.open_text(self.path, name) as file:
            yield from csv.DictReader(file)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, KeyError, ValueError, csv.Error) as error:
        what = " ".join(str(error).split())
        raise StoreError(f"{path}: is not as its run has left it: {what}") from error


def open_output(path: str | os.PathLike[str], *, plugins: Sequence[str] = ()) -> Features:
    """The features in an output folder, finished or not: `open("features/")["classifier.5"]`.

    `plugins` are files or modules with sinks of your own. Raises `StoreError` where there is no output, or one that no
    run of layertap can have written.
    """
    folder = Path(path)
    manifest = read_output(folder)
    known = Plugins.load(plugins)
    with _readable(folder):  # a pydantic fault is a ValueError
        spec = Spec.model_validate(manifest.config.get("sink"))
        registered = known.find("sink", spec.type)
        params = registered.cls.Params.model_validate(spec.params)
    with guard(registered.cls):
        sink = registered.cls(params)
    if not isinstance(sink, FileSink):
        raise StoreError(f"{folder}: the sink {spec.type!r} keeps no files to open")
    return Features(folder, manifest, sink)
