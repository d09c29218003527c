"""The values that accompany an image in a table, as the metadata of its record."""

from __future__ import annotations

import importlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, time
from decimal import Decimal
from typing import Any, TypeAlias

import layertap
from layertap_plugins.models.weights import nearest

Value: TypeAlias = str | int | float | bool | None

# The number of rows of a Parquet file to read at a time.
_ROWS = 4096

# The names of the index's own columns.
_TAKEN = frozenset({"row", "id"})


def is_plain(value: object) -> bool:
    """Whether metadata can hold it."""
    return isinstance(value, (str, int, float, bool, type(None)))


def plain(value: object) -> Value:
    """The value as metadata: dates and decimals as text, None for NaN, infinities and anything that has parts."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    return value if isinstance(value, (bool, int)) else None


def keys_of(columns: Iterable[str]) -> dict[str, str]:
    """The metadata key for each column: its own name, followed by `_` where the index already has that name."""
    known = dict.fromkeys(columns)
    keys = {}
    for column in known:
        key = column
        while key in _TAKEN or (key != column and key in known):
            key += "_"
        keys[column] = key
    return keys


def check_column(key: str, column: str, known: Sequence[str], where: str) -> None:
    """Raise `ConfigError` with the nearest names for a column that does not exist."""
    if column not in known:
        near = nearest(column, known) or f" (it has {', '.join(known) or 'none'})"
        raise layertap.ConfigError(f"{where} has no column {column!r}{near}", where=(key,))


def scalars(schema: Any) -> list[str]:
    """The columns of a table that metadata can hold."""
    types: Any = importlib.import_module("pyarrow.types")
    kinds = (
        types.is_integer,
        types.is_floating,
        types.is_boolean,
        types.is_string,
        types.is_large_string,
        types.is_date,
        types.is_time,
        types.is_timestamp,
        types.is_decimal,
        types.is_null,
    )

    def fits(kind: Any) -> bool:
        kind = kind.value_type if types.is_dictionary(kind) else kind
        return any(is_kind(kind) for is_kind in kinds)

    return [field.name for field in schema if fits(field.type)]


def class_names(schema: Any) -> dict[str, list[str]]:
    """The class names for each column in which `datasets` has stored labels as numbers."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            column: [str(name) for name in feature["names"]]
            for column, feature in features.items()
            if feature.get("_type") == "ClassLabel" and feature.get("names")
        }
    except (KeyError, TypeError, AttributeError, ValueError):
        return {}


def named(value: object, names: Sequence[str] | None) -> Value:
    """A label's name if there are names; None for -1, which means a missing label in `datasets`."""
    if not names or isinstance(value, bool) or not isinstance(value, int):
        return plain(value)
    return plain(names[value]) if 0 <= value < len(names) else None


def meta_of(row: Mapping[str, object], keys: Mapping[str, str], names: Mapping[str, Sequence[str]]) -> dict[str, Value]:
    """The metadata of one row, under `keys`, with labels given by name."""
    return {key: named(row[column], names.get(column)) for column, key in keys.items()}


def opened(path: str) -> Any:
    """An open Parquet file, to be closed by the caller."""
    parquet: Any = importlib.import_module("pyarrow.parquet")
    # Buffered, because a column of a row group may be gigabytes in size and is read page by page.
    return parquet.ParquetFile(path, buffer_size=2**20, pre_buffer=False)


@contextmanager
def understood(path: str) -> Iterator[None]:
    """Turn any error that pyarrow raises about a file into one `ConfigError`."""
    pyarrow: Any = importlib.import_module("pyarrow")
    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise layertap.ConfigError(f"cannot read {path!r} as Parquet: {said[0]}", where=("path",)) from error


def rows_of(file: Any, group: int, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """The rows of one row group, with only these columns."""
    if not columns:
        yield from itertools.repeat({}, file.metadata.row_group(group).num_rows)
        return
    for batch in file.iter_batches(_ROWS, row_groups=[group], columns=list(columns), use_threads=False):
        yield from batch.to_pylist()
