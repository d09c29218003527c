"""Reading an output back: every sink's files the same way, finished or not."""

from __future__ import annotations

import csv
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache, partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from layertap.contracts import ArrayLike, FileSink
from layertap.errors import StoreError, did_you_mean
from layertap.outputs.rows import Rows
from layertap.plugins import Plugins, guard
from layertap.store import safe_files
from layertap.store.commits import PARTS, Commit, Commits, meta_types
from layertap.store.dtypes import numpy_dtype
from layertap.store.manifest import Manifest, TapFacts, read_output
from layertap.taps.grammar import Spec

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped]
    import pyarrow  # type: ignore[import-untyped]

    from layertap.outputs.dataset import TapDataset

_READ: Mapping[str, Callable[[str], Any]] = {"int": int, "float": float, "bool": lambda text: text == "True"}

# Parts open at once: a sink may hold all of a part in memory, and a system gives out only so many files.
_MOST_OPEN = 4

_LONGEST_TEXT = 64 * 2**20


class Features:
    """An output folder: `features["classifier.5"]` are its rows, in the order of `ids`.

    `taps` are the names, `manifest` is everything known about the run. An unfinished output shows what is committed.
    Files are opened when they are read; `close`, or the end of a `with` block, lets go of them.
    """

    def __init__(self, path: Path, manifest: Manifest, sink: FileSink, plugins: Sequence[str] = ()) -> None:
        self.path = path
        self.manifest: dict[str, Any] = manifest.model_dump(mode="json")
        self.taps: list[str] = list(manifest.taps)
        self._known = manifest
        self._sink = sink
        self._plugins = tuple(plugins)
        sink.stems = {name: tap.file for name, tap in manifest.taps.items()}
        self._opened = lru_cache(_MOST_OPEN)(partial(_load, path, sink, manifest.taps))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.path, self._plugins)

    def close(self) -> None:
        """Let go of the files; what is read afterwards opens them again."""
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
        """What the manifest says of a tap. Raises `StoreError` for a name that is none."""
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
            count = 0
            with _readable(self.path):
                for row in self._csv("index.csv"):
                    yield self._typed(row)
                    count += 1
            if count != sum(self._counts):
                raise StoreError(f"{self.path}: index.csv has {count} rows, and its manifest says {sum(self._counts)}")
            return
        kept = (row for commit in self._commits() for row in commit.kept)
        yield from ({"row": number, "id": row.id, **row.meta} for number, row in enumerate(kept))

    @cached_property
    def meta(self) -> dict[str, str]:
        """The metadata columns and the name of their type: `str`, `int`, `float`, `bool`, `null` where all are None."""
        if self.is_complete:
            return dict(self._known.meta)
        return meta_types(row for commit in self._commits() for row in commit.kept)

    def to_pandas(self, taps: str | Sequence[str] | None = None) -> pandas.DataFrame:
        """All rows as a DataFrame: `row`, `id`, the metadata, and a column a tap, in memory; needs the extra `pandas`.

        A cell of a tap is an array of its shape and dtype, or the number itself where the shape is `()`. Metadata has
        pandas' nullable types, so that None is `<NA>` and an int stays one. `taps` are all of them by default; one that
        is named as a column of metadata gets `_` behind its name.
        """
        from layertap.outputs.tables import frame

        return frame(self, self.chosen(taps))

    def to_arrow(self, taps: str | Sequence[str] | None = None) -> pyarrow.Table:
        """All rows as a table: `row`, `id`, the metadata, and a column a tap, in memory; needs the extra `parquet`.

        A vector is a fixed-size list, a map a fixed-shape tensor, a single number itself. Arrow has no bfloat16: it
        becomes float32, which holds each of its values exactly.
        """
        from layertap.outputs.tables import table

        return table(self, self.chosen(taps))

    def to_torch(self, tap: str, label: str | None = None) -> TapDataset:
        """One tap as a map-style `torch.utils.data.Dataset` that reads when it is asked, for a `DataLoader`.

        Its items are `tensor`, or `(tensor, label)` where `label` names a metadata column; text becomes codes, the
        positions in its sorted `classes`. It can be pickled. Raises `StoreError` for a row without a label.
        """
        from layertap.outputs.dataset import TapDataset

        return TapDataset(self, tap, label)

    def export(self, type: str, path: str | os.PathLike[str], taps: str | Sequence[str] | None = None) -> Path:
        """Write these rows into the new folder `path` by the sink `type`, or in another library's layout; the path.

        By a sink it is a whole output again, which `open` and `verify` take: the same values to the bit, written shard
        by shard in bounded memory. `thingsvision` (one tap: `features.npy` and `file_names.txt`) and `clip_retrieval`
        (one tap of vectors: `img_emb/` and `metadata/`, not normalised) are for other programs. `path` is there when
        all of it is; the same call goes on with an export that was cut short. Raises `StoreError`: this output is
        unfinished or damaged, `path` holds something (6), another export is writing there (5).
        """
        from layertap.outputs.export import export

        return export(self, type, Path(path), self.chosen(taps), Plugins.load(self._plugins))

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
        """The folders that hold a part each, once all that lies there is found to be files and folders of its own."""
        commits = Commits(self.path)
        with _readable(self.path):
            if self.is_complete:
                for name in self._known.files:
                    safe_files.regular(self.path, name)
            else:
                for commit in self._commits():
                    for name in commit.files:
                        safe_files.regular(self.path, f"{PARTS}/{commits.part(commit.shard).name}/{name}")
            if self._is_merged:
                for name in {name.partition("/")[0] for name in self._known.files if "/" in name}:
                    _refuse_links(self.path / name)
                return [self.path]
            folders = [commits.part(number) for number in range(self._shards)]
            for folder in folders:
                _refuse_links(folder)
        return folders

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

    def _typed(self, row: dict[str, str]) -> dict[str, Any]:
        result: dict[str, Any] = {"row": int(row["row"]), "id": row["id"]}
        for key, type_name in self._known.meta.items():
            text = row[key]
            result[key] = _READ.get(type_name, str)(text) if text else None
        return result

    def _csv(self, name: str) -> Iterator[dict[str, str]]:
        with _readable(self.path), safe_files.open_text(self.path, name) as file:
            rows = csv.DictReader(file)
            while (row := _next(rows)) is not None:
                yield row


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
        with guard(self._sink), _readable(self._path):
            return np.asarray(part[key])

    def __array__(self) -> NDArray[Any]:
        values: NDArray[Any] = self[:]
        return values


def _load(path: Path, sink: FileSink, taps: Mapping[str, TapFacts], folder: Path, tap: str) -> ArrayLike:
    with guard(sink), _readable(path):
        part = sink.load(folder, tap)
    if math.prod(part.shape[1:]) != math.prod(taps[tap].shape):
        raise StoreError(f"{path}: {tap!r} holds rows of {part.shape[1:]}, and its manifest says {taps[tap].shape}")
    return part


def _refuse_links(folder: Path) -> None:
    """Raise `OSError` where anything below is a link: what a format finds by itself must not lead out of the output."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink():
                raise safe_files.NotRegular(f"{entry.path}: is a link, which no run of layertap makes")
            if entry.is_dir():
                _refuse_links(Path(entry.path))


def _next(rows: csv.DictReader[str]) -> dict[str, str] | None:
    """The next row, whatever its length: the limit is the whole process's, and others rely on it."""
    usual = csv.field_size_limit(_LONGEST_TEXT)
    try:
        return next(rows, None)
    finally:
        csv.field_size_limit(usual)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, KeyError, ValueError, csv.Error) as error:
        what = " ".join(str(error).split())
        raise StoreError(f"{path}: is not as its run has left it: {what}") from error


def _reopened(path: Path, plugins: Sequence[str]) -> Features:
    return open_output(path, plugins=plugins)


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
    return Features(folder, manifest, sink, plugins)
