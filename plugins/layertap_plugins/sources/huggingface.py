"""A data set in the format of the library `datasets`: saved on this machine, or from the Hugging Face hub."""

from __future__ import annotations

import functools
import hashlib
import importlib
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

import layertap
from layertap_plugins.sources import files, tables

# Rows of metadata at a time.
_ROWS = 4096


class HuggingFaceSource(layertap.Source):
    """Yields one record per row; code that belongs to a data set is never run.

    The id is the row's number in eight digits, or the value of a column. Images are given as the stored bytes. Other
    columns are metadata, with lists and structs as lists and dicts; classes are given by name. Columns of bytes, such
    as sounds, are left out, and the report says so.
    """

    extra = "huggingface"

    class Params(layertap.Params):
        path: str = Field(
            min_length=1, description="a folder that save_to_disk wrote, or a data set on the hub, such as OWNER/NAME"
        )
        name: str | None = Field(None, description="the configuration of a data set on the hub")
        split: str | None = Field(None, description="the split, such as train; not needed if there is only one")
        revision: str | None = Field(None, description="the commit, tag or branch of a data set on the hub")
        column: str | None = Field(
            None, description="the column of the images; by default the first one that holds images"
        )
        id: str | None = Field(None, description="the column of the ids; by default the number of the row")

    params: Params
    _remarks: Sequence[str] = ()

    @property
    def remarks(self) -> Sequence[str]:
        return self._remarks

    @property
    def hosts(self) -> frozenset[str]:
        """The hub, unless the data set is on this machine."""
        hub = self.hosts_of(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
        return super().hosts if os.path.exists(self.params.path) else super().hosts | hub

    def records(self) -> Iterator[layertap.ImageRecord]:
        dataset, stamp = self._dataset
        column, id_column = self._column(dataset), self.params.id
        schema = dataset.features.arrow_schema
        if id_column is not None:
            tables.check_column("id", id_column, tables.scalars(schema), self.params.path)
        columns = [name for name in tables.held(schema) if name not in (column, id_column)]
        self._remarks = tables.left_out(schema, (column, id_column), self.params.path)
        keys, features = tables.keys_of(columns), dataset.features.to_dict()
        images = _Images(dataset.select_columns([column]).with_format("arrow"), self._roots())
        for number, row in enumerate(_rows(dataset, [*columns, id_column] if id_column else columns)):
            record_id = f"{number:08d}"
            if id_column and not (record_id := str(tables.plain(row[id_column]) or "")):
                raise layertap.ConfigError(f"row {number} of {self.params.path!r} has no {id_column!r}", where=("id",))
            yield layertap.ImageRecord(record_id, Row(images, number, stamp), tables.meta_of(row, keys, features))

    def __getstate__(self) -> dict[str, Any]:
        return {"params": self.params}

    @functools.cached_property
    def _dataset(self) -> tuple[Any, str]:
        """The data set, and a stamp that shows whether it has changed."""
        datasets: Any = importlib.import_module("datasets")
        path, local = self.params.path, os.path.exists(self.params.path)
        files.refuse_url(path)
        if local and (self.params.name or self.params.revision):
            raise layertap.ConfigError(
                f"{path!r} is on this machine; name and revision are for data sets on the hub", where=("path",)
            )
        if not local and path.startswith((".", "/", "~")):
            raise files.unusable(path, "No such file or directory")
        try:
            if local:
                found = datasets.load_from_disk(path)
            else:
                found = datasets.load_dataset(
                    path, name=self.params.name, split=self.params.split, revision=self.params.revision
                )
        except ModuleNotFoundError:
            raise
        except Exception as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            advice = "; use the source `folder` for a folder of images, `parquet` for Parquet files" if local else ""
            raise layertap.ConfigError(f"cannot load {path!r}: {said}{advice}", where=("path",)) from error
        dataset = self._split(found) if isinstance(found, dict) else found
        if local and not isinstance(found, dict) and self.params.split not in (None, str(dataset.split)):
            raise layertap.ConfigError(f"{path!r} has only the split {str(dataset.split)!r}", where=("split",))
        stamp = hashlib.sha256(dataset._fingerprint.encode())
        if local:
            for file in dataset.cache_files:
                stamp.update(files.stamped(file["filename"]).encode())
        return dataset, stamp.hexdigest()[:16]

    def _split(self, found: Mapping[str, Any]) -> Any:
        split = self.params.split
        if split is None and len(found) == 1:
            return next(iter(found.values()))
        if split is None or split not in found:
            has = ", ".join(found)
            said = f"there is no split {split!r}" if split else "there are several splits, so name one"
            raise layertap.ConfigError(f"{said} ({self.params.path!r} has {has})", where=("split",))
        return found[split]

    def _column(self, dataset: Any) -> str:
        datasets: Any = importlib.import_module("datasets")
        columns: list[str] = [name for name, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
        column = self.params.column
        if column is None:
            if not columns:
                raise layertap.ConfigError(
                    f"{self.params.path!r} has no column of images (it has "
                    f"{', '.join(dataset.features)}); name one that holds their bytes",
                    where=("column",),
                )
            return columns[0]
        tables.check_column("column", column, list(dataset.features), self.params.path)
        if column not in columns and getattr(dataset.features[column], "dtype", None) not in ("binary", "large_binary"):
            raise layertap.ConfigError(
                f"{column!r} of {self.params.path!r} holds {dataset.features[column]}, not images", where=("column",)
            )
        return column

    def _roots(self) -> tuple[str, ...]:
        """The folders in which images named by path may be: its own folder, and the caches of the library."""
        if os.path.exists(self.params.path):
            return (os.path.realpath(self.params.path),)
        datasets: Any = importlib.import_module("datasets")
        hub: Any = importlib.import_module("huggingface_hub.constants")
        caches = (datasets.config.HF_DATASETS_CACHE, datasets.config.DOWNLOADED_DATASETS_PATH, hub.HF_HUB_CACHE)
        return tuple(os.path.realpath(cache) for cache in caches)


@dataclass(frozen=True, slots=True)
class _Images:
    """The column of images, as stored."""

    rows: Any
    roots: tuple[str, ...]

    def __call__(self, number: int) -> bytes:
        value = self.rows[number].column(0)[0].as_py()
        data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        if data is not None:
            return bytes(data)
        if not path:
            raise layertap.ImageError("empty")
        if not any(os.path.realpath(path).startswith(os.path.join(root, "")) for root in self.roots):
            raise layertap.ImageError("outside_root")
        size = os.stat(path).st_size
        return files.Piece(path, 0, size, files.stamped(path))()


@dataclass(frozen=True, slots=True)
class Row:
    """An image's place in a data set."""

    images: _Images
    number: int
    stamp: str

    def __call__(self) -> bytes:
        """The bytes as stored. Raises `ImageError`."""
        return self.images(self.number)


def _rows(dataset: Any, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    if not columns:
        yield from itertools.repeat({}, len(dataset))
        return
    for batch in dataset.select_columns(list(columns)).with_format("arrow").iter(batch_size=_ROWS):
        yield from batch.to_pylist()


@layertap.hookimpl
def register_sources(register: Callable[[str, type[layertap.Source]], None]) -> None:
    register("huggingface", HuggingFaceSource)
