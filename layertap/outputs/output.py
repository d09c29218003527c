"""Reading an output back: every sink's files the same way, finished or not."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache, partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from layertap.contracts import ArrayLike, FileSink
from layertap.errors import StoreError, did_you_mean
from layertap.outputs.rows import Rows
from layertap.plugins import guard
from layertap.store import safe_files
from layertap.store.commits import Commit, Commits, add_meta_types
from layertap.store.dtypes import numpy_dtype
from layertap.store.listings import FAILURES, INDEX, listed
from layertap.store.manifest import Manifest, ShardFacts, TapFacts

_READ: Mapping[str, Callable[[str], Any]] = {
    "int": int,
    "float": float,
    "bool": lambda text: text == "True",
    "json": json.loads,
}

# Parts open at once: a sink may hold all of a part in memory, and a system gives out only so many files.
_MOST_OPEN = 4


class Output:
    """An output folder as it is read: the rows of each tap, the index, the failures, the manifest.

    An unfinished output shows what is committed. Files are opened when they are read; `close`, or the end of a `with`
    block, closes them.
    """

    def __init__(self, path: Path, manifest: Manifest, sink: FileSink) -> None:
        self.path = path
        self.manifest: dict[str, Any] = manifest.model_dump(mode="json")
        self.taps: list[str] = list(manifest.taps)
        self._known = manifest
        self._sink = sink
        sink.stems = {name: tap.file for name, tap in manifest.taps.items()}
        self._opened = lru_cache(_MOST_OPEN)(partial(_load, path, sink, manifest.taps))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; a later read opens them again."""
        self._opened.cache_clear()

    @property
    def is_complete(self) -> bool:
        """Whether the run that wrote it has finished."""
        return self._known.status == "complete"

    def __getitem__(self, tap: str) -> Rows:
        facts = self.facts(tap)
        shape, dtype = tuple(facts.shape), numpy_dtype(facts.dtype)
        openers = [partial(self._opened, folder, tap) for folder in self._folders]
        counts = [openers[0]().shape[0]] if self._is_merged else self._counts
        parts = [
            _Part(self.path, self._sink, opened, (count, *shape), dtype)
            for opened, count in zip(openers, counts, strict=True)
        ]
        return Rows(parts, shape, dtype)

    def facts(self, tap: str) -> TapFacts:
        """What the manifest says of a tap. Raises `StoreError` for an unknown name."""
        facts = self._known.taps.get(tap)
        if facts is None:
            raise StoreError(
                f"{self.path}: no tap is named {tap!r}{did_you_mean(tap, self.taps)} ({', '.join(self.taps)})"
            )
        return facts

    def __contains__(self, tap: object) -> bool:
        return tap in self._known.taps

    def __iter__(self) -> Iterator[str]:
        return iter(self.taps)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path}: {len(self.index)} rows of {', '.join(self.taps)}>"

    @cached_property
    def index(self) -> list[dict[str, Any]]:
        """One mapping per row: `row`, `id` and the metadata."""
        return list(self.rows())

    @cached_property
    def failures(self) -> list[dict[str, str]]:
        """One mapping per failed image: `id`, `stage` and `reason`, in the order of the plan."""
        if self.is_complete:
            return [{name: text or "" for name, text in row.items()} for row in self._csv(FAILURES)]
        return [failed.model_dump() for commit in self._commits() for failed in commit.failures]

    @property
    def ids(self) -> list[str]:
        """The image of every row."""
        return list(self._ids)

    @cached_property
    def _ids(self) -> tuple[str, ...]:
        if not self.is_complete:
            return tuple(row["id"] for row in self.rows())
        with readable(self.path):
            ids = tuple(row["id"] or "" for row in self._csv(INDEX))
        self._check_index(len(ids))
        return ids

    def rows(self) -> Iterator[dict[str, Any]]:
        """What `index` holds, one row at a time."""
        if self.is_complete:
            count = 0
            with readable(self.path):
                for row in self._csv(INDEX):
                    yield self._typed(row)
                    count += 1
            self._check_index(count)
            return
        kept = (row for commit in self._commits() for row in commit.kept)
        yield from ({"row": number, "id": row.id, **row.meta} for number, row in enumerate(kept))

    @cached_property
    def meta(self) -> dict[str, str]:
        """The metadata columns and their types: `str`, `int`, `float`, `bool`, `json` (lists and dicts) or `null`."""
        if self.is_complete:
            return dict(self._known.meta)
        types: dict[str, str] = {}
        for commit in self._commits():
            add_meta_types(types, commit.kept)
        return types

    def chosen(self, taps: str | Sequence[str] | None) -> list[str]:
        """The taps asked for, in the order of `taps`; all where none are named."""
        asked = set(self.taps if taps is None else [taps] if isinstance(taps, str) else taps)
        for name in asked:
            self.facts(name)
        return [name for name in self.taps if name in asked]

    @property
    def _is_merged(self) -> bool:
        return self.is_complete and self._known.merged

    @cached_property
    def _folders(self) -> list[Path]:
        """The folders of the parts, after a check that everything in them is a regular file or folder."""
        with readable(self.path):
            if self.is_complete:
                for name in self._known.files:
                    safe_files.regular(self.path, name)
            else:
                for commit in self._commits():
                    for name in commit.placed_files():
                        safe_files.regular(self.path, name)
            if self._is_merged:
                for name in {name.partition("/")[0] for name in self._known.files if "/" in name}:
                    _refuse_links(self.path / name)
                return [self.path]
            folders = [Commits(self.path).part(number) for number in range(self._shards)]
            for folder in folders:
                _refuse_links(folder)
        return folders

    @cached_property
    def shards(self) -> list[ShardFacts]:
        """What is recorded of each shard."""
        return self._known.shards if self.is_complete else [commit.facts() for commit in self._commits()]

    @cached_property
    def _counts(self) -> list[int]:
        """The rows of each shard."""
        if self.is_complete:
            return [facts.kept for facts in self._known.shards]
        return [len(commit.kept) for commit in self._commits()]

    def _commits(self) -> Iterator[Commit]:
        return itertools.islice(Commits(self.path), self._shards)

    @cached_property
    def _shards(self) -> int:
        """How many shards there were at the first look: a run may be adding to them."""
        return len(self._known.shards) if self.is_complete else len(Commits(self.path))

    def _typed(self, row: dict[str, str | None]) -> dict[str, Any]:
        result: dict[str, Any] = {"row": int(row["row"] or ""), "id": row["id"] or ""}
        for key, type_name in self._known.meta.items():
            text = row[key]
            result[key] = None if text is None else _READ.get(type_name, str)(text)
        return result

    def _check_index(self, count: int) -> None:
        if count != sum(self._counts):
            raise StoreError(f"{self.path}: {INDEX} has {count} rows, and its manifest says {sum(self._counts)}")

    def _csv(self, name: str) -> Iterator[dict[str, str | None]]:
        with readable(self.path), safe_files.open_text(self.path, name) as file:
            yield from listed(file)


class _Part:
    """One tap's rows in one part, opened when they are read and checked to be what the manifest says."""

    def __init__(
        self, path: Path, sink: FileSink, opened: Callable[[], ArrayLike], shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        self._path = path
        self._sink = sink
        self._opened = opened
        self.shape = shape
        self.dtype = dtype

    def __getitem__(self, key: Any) -> Any:
        part = self._opened()
        if part.shape[0] != self.shape[0]:
            raise StoreError(f"{self._path}: a part holds {part.shape[0]} rows, and its record says {self.shape[0]}")
        with guard(self._sink), readable(self._path):
            return np.asarray(part[key])

    def __array__(self) -> NDArray[Any]:
        values: NDArray[Any] = self[:]
        return values


def _load(path: Path, sink: FileSink, taps: Mapping[str, TapFacts], folder: Path, tap: str) -> ArrayLike:
    with guard(sink), readable(path):
        part = sink.load(folder, tap)
    if math.prod(part.shape[1:]) != math.prod(taps[tap].shape):
        raise StoreError(f"{path}: {tap!r} holds rows of {part.shape[1:]}, and its manifest says {taps[tap].shape}")
    return part


def _refuse_links(folder: Path) -> None:
    """Raise `OSError` if anything below is a link: what a format finds on its own must not lead out of the output."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink():
                raise safe_files.NotRegular(f"{entry.path}: is a link, which no run of layertap makes")
            if entry.is_dir():
                _refuse_links(Path(entry.path))


@contextmanager
def readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, KeyError, ValueError, RecursionError) as error:
        what = " ".join(str(error).split())
        raise StoreError(f"{path}: was modified after it was written: {what}") from error
