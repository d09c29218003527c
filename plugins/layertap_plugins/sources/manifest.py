"""The user's own list of images: a table of paths or URLs."""

from __future__ import annotations

import csv
import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import Field

import layertap
from layertap_plugins.sources import files, remote, tables

_FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}

Rows: TypeAlias = Iterator[tuple[int, Mapping[str, object]]]


class ManifestSource(layertap.Source):
    """Yields one record per row, in the order of the table.

    The id is the path as written, or the value of a column. All other columns are metadata: text from CSV and TSV,
    typed values, lists and dicts from JSON lines and Parquet, None where a line has no value or an empty one in CSV.
    Columns of bytes are left out, and the report says so. A duplicate path is an error.
    """

    extra = "parquet"

    class Params(layertap.Params):
        path: str = Field(min_length=1, description="the table: CSV or TSV with a header, JSON lines or Parquet")
        format: Literal["csv", "tsv", "jsonl", "parquet"] | None = Field(
            None, description="the format of the table; by default taken from its suffix"
        )
        column: str = Field("path", description="the column of the images' paths or URLs")
        id: str | None = Field(None, description="the column of the ids; by default the path as written")
        root: str | None = Field(
            None, min_length=1, description="where relative paths start; by default the table's own folder"
        )
        links: Literal["inside", "follow"] = Field(
            "inside",
            description="inside: a relative path that leaves the root through a link is listed as failed; follow: it "
            "is read, wherever it leads",
        )
        storage_options: remote.StorageOptions = Field(
            default_factory=dict, description="fsspec's options for URLs, such as {anon: true} for S3"
        )

    params: Params

    def __init__(self, params: Params | None = None) -> None:
        super().__init__(params)
        self._vetted: str | None = None
        self._remarks: list[str] = []

    @property
    def remarks(self) -> Sequence[str]:
        return self._remarks

    @property
    def hosts(self) -> frozenset[str]:
        """Those of the URLs in the table too."""
        _, rows, _ = self._table()
        return super().hosts.union(*(self.hosts_of(row.get(self.params.column)) for _, row in rows))

    def records(self) -> Iterator[layertap.ImageRecord]:
        stamp = files.stamped(self.params.path)
        column, id_column = self.params.column, self.params.id
        columns, rows, unit = self._table()
        for key, name in (("column", column), ("id", id_column)):
            if name is not None:
                tables.check_column(key, name, columns, repr(self.params.path))
        keys = tables.keys_of(name for name in columns if name not in (column, id_column))
        root = self.params.root if self.params.root is not None else os.path.dirname(self.params.path)
        data_of = functools.partial(self._data, root, _Links(root) if self.params.links == "inside" else None)
        seen: dict[str, int] | None = {} if self._vetted != stamp else None
        for number, row in rows:
            path, record_id = (self._text(row, name, f"{unit} {number}") for name in (column, id_column or column))
            if seen is not None and seen.setdefault(record_id, number) != number:
                raise layertap.ConfigError(
                    f"{self.params.path!r} lists {record_id!r} twice, in {unit}s {seen[record_id]} and {number}; "
                    + ("every image needs its own id" if id_column else "leave one out"),
                    where=("path",),
                )
            meta = {key: tables.plain(row.get(name)) for name, key in keys.items()}
            yield layertap.ImageRecord(record_id, data_of(path), meta)
        self._vetted = stamp

    def _data(self, root: str, links: _Links | None, path: str) -> Path | Callable[[], bytes]:
        if "://" in path:
            return remote.data_of(path, self.params.storage_options)
        whole = os.path.join(root, path)
        if files.is_windows(path) and not os.path.lexists(whole):
            return _refuse_windows
        if links is not None and not os.path.isabs(path) and links.lead_out(whole):
            return _refuse
        return Path(whole)

    def _text(self, row: Mapping[str, object], column: str, where: str) -> str:
        value = tables.plain(row.get(column))
        if value is None or value == "":
            raise layertap.ConfigError(f"{where} of {self.params.path!r} has no {column!r}", where=("path",))
        if column == self.params.column and not isinstance(value, str):
            raise layertap.ConfigError(
                f"{where} of {self.params.path!r} has {value!r} for {column!r}, not a path", where=("column",)
            )
        return str(value)

    def _table(self) -> tuple[list[str], Rows, str]:
        """Its columns, its rows with their numbers, and the unit that the numbers count."""
        path = self.params.path
        form = self.params.format or _FORMATS.get(os.path.splitext(path)[1].lower())
        if form is None:
            raise layertap.ConfigError(
                f"{path!r} ends in none of {', '.join(_FORMATS)}; set the format, as in `format: csv`",
                where=("format",),
            )
        if form == "parquet":
            with tables.understood(path), tables.opened(path) as file:
                self._remarks = tables.left_out(file.schema_arrow, (self.params.column, self.params.id), repr(path))
                return tables.held(file.schema_arrow), _of_parquet(path), "row"
        if form == "jsonl":
            return list({key: None for _, row in _of_json(path) for key in row}), _of_json(path), "line"
        cells = _of_csv(path, "\t" if form == "tsv" else ",")
        _, header = next(cells, (0, []))
        for name in (name for name in header if name and header.count(name) > 1):
            raise layertap.ConfigError(f"{path!r} has two columns named {name!r}", where=("path",))
        # A column without a name is the index that pandas writes.
        return [name for name in header if name], _filled(cells, header, path), "line"


class _Links:
    """Whether a path in a folder leaves it through a link: the link at its end or any on the way to it."""

    def __init__(self, root: str) -> None:
        self._root = os.path.normpath(root or os.curdir)
        self._real_root = os.path.realpath(root)
        self._real = functools.lru_cache(4096)(os.path.realpath)

    def lead_out(self, path: str) -> bool:
        """Whether links lead out of the folder; a path that itself leaves it with `..` is the user's choice."""
        if not _below(os.path.normpath(path), self._root):
            return False
        if os.path.islink(path):
            return os.path.exists(path) and not _below(os.path.realpath(path), self._real_root)
        return not _below(self._real(os.path.dirname(path)), self._real_root, itself=True)


def _below(path: str, root: str, *, itself: bool = False) -> bool:
    if root == os.curdir:
        return not path.startswith(os.pardir)
    return path.startswith(os.path.join(root, "")) or (itself and path == root)


def _refuse_windows() -> bytes:
    raise layertap.ImageError("windows_path")


def _refuse() -> bytes:
    raise layertap.ImageError("outside_root")


def _of_csv(path: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The lines that are not empty, including the header, each with its number."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            for cells in reader:
                if cells:
                    yield reader.line_num, cells
        except (csv.Error, UnicodeDecodeError) as error:
            raise layertap.ConfigError(
                f"cannot read {path!r} after line {reader.line_num}: {error}", where=("path",)
            ) from error


def _filled(lines: Iterator[tuple[int, list[str]]], header: list[str], path: str) -> Rows:
    for number, cells in lines:
        if len(cells) != len(header):
            raise layertap.ConfigError(
                f"line {number} of {path!r} has {len(cells)} values, but the header has {len(header)}", where=("path",)
            )
        yield number, {name: cell or None for name, cell in zip(header, cells, strict=True)}


def _of_json(path: str) -> Rows:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise layertap.ConfigError(
                    f"line {number} of {path!r} is not JSON: {error}", where=("path",)
                ) from error
            if not isinstance(row, dict):
                raise layertap.ConfigError(f"line {number} of {path!r} is not a JSON object", where=("path",))
            yield number, row


def _of_parquet(path: str) -> Rows:
    with tables.understood(path), tables.opened(path) as file:
        features = tables.features_of(file.schema_arrow)
        columns = tables.held(file.schema_arrow)
        number = 0
        for group in range(file.num_row_groups):
            for row in tables.rows_of(file, group, columns):
                number += 1
                yield number, {column: tables.named(row[column], features.get(column)) for column in columns}


@layertap.hookimpl
def register_sources(register: Callable[[str, type[layertap.Source]], None]) -> None:
    register("manifest", ManifestSource)
