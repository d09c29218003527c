"""The values that accompany an image in a table, as the metadata of its record."""

from __future__ import annotations

import importlib
import itertools
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import layertap
from layertap_plugins.models.weights import nearest

# The number of rows of a Parquet file to read at a time.
_ROWS = 4096

# The number of characters of a type that are shown.
_LONGEST_TYPE = 60

# The names of the index's own columns.
_TAKEN = frozenset({"row", "id"})


def plain(value: object) -> Any:
    """The value as metadata, None for a number that is not finite, which means a missing value in many tables."""
    try:
        return layertap.plain_value(value, lenient=True)
    except (TypeError, ValueError) as error:
        raise layertap.ConfigError(f"metadata cannot hold {error}", where=("path",)) from error


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


def is_scalar(kind: Any) -> bool:
    """Whether each value of a type of Arrow is one number, text or time."""
    types: Any = importlib.import_module("pyarrow.types")
    kind = kind.value_type if types.is_dictionary(kind) else kind
    kinds = (
        types.is_integer,
        types.is_floating,
        types.is_boolean,
        types.is_string,
        types.is_large_string,
        types.is_date,
        types.is_time,
        types.is_timestamp,
        types.is_duration,
        types.is_decimal,
        types.is_null,
    )
    return any(is_kind(kind) for is_kind in kinds) or getattr(types, "is_string_view", types.is_null)(kind)


def scalars(schema: Any) -> list[str]:
    """The columns of a table with one number, text or time per row."""
    return [field.name for field in schema if is_scalar(field.type)]


def held(schema: Any) -> list[str]:
    """The columns of a table that metadata can hold: scalars, and lists, structs and maps of them."""
    return [field.name for field in schema if _is_held(field.type)]


def _is_held(kind: Any) -> bool:
    types: Any = importlib.import_module("pyarrow.types")
    if hasattr(kind, "storage_type"):  # an extension type, such as the arrays of `datasets`
        return _is_held(kind.storage_type)
    if types.is_struct(kind):
        return all(_is_held(kind.field(number).type) for number in range(kind.num_fields))
    if types.is_map(kind):
        return _is_held(kind.key_type) and _is_held(kind.item_type)
    if types.is_nested(kind):
        return hasattr(kind, "value_type") and _is_held(kind.value_type)
    return is_scalar(kind)


def left_out(schema: Any, besides: Collection[str | None], where: str) -> list[str]:
    """A sentence about the columns of a table that metadata cannot hold, if there are any."""
    kept = {*held(schema), *besides}
    columns = [f"{field.name} ({_brief(field.type)})" for field in schema if field.name not in kept]
    return [f"{where}: metadata cannot hold the columns {', '.join(columns)}: they are left out"] if columns else []


def _brief(kind: Any) -> str:
    text = str(kind)
    return text if len(text) <= _LONGEST_TYPE else f"{text[:_LONGEST_TYPE]}..."


def features_of(schema: Any) -> Mapping[str, Any]:
    """What `datasets` has stored about the columns of a Parquet file, such as the names of classes."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}


def named(value: object, feature: object) -> object:
    """A value in which labels, which `datasets` stores as numbers, are names; None for -1, a missing label.

    `feature` describes the value, as `Features.to_dict` of that library does.
    """
    if isinstance(feature, list) and feature:
        feature = {"_type": "List", "feature": feature[0]}
    if not isinstance(feature, dict):
        return value
    kind, inner = feature.get("_type"), feature.get("feature")
    if kind == "ClassLabel":
        return _class_name(value, feature.get("names"))
    if isinstance(value, list):
        return [named(part, inner) for part in value]
    if isinstance(value, dict):
        if isinstance(kind, str):  # a sequence of structs is stored as a struct of lists
            feature = {key: [part] for key, part in inner.items()} if isinstance(inner, dict) else {}
        return {key: named(part, feature.get(key)) for key, part in value.items()}
    return value


def _class_name(value: object, names: object) -> object:
    if not isinstance(names, (list, tuple)) or not names or isinstance(value, bool) or not isinstance(value, int):
        return value
    if value == -1:
        return None
    return str(names[value]) if 0 <= value < len(names) else value


def meta_of(row: Mapping[str, object], keys: Mapping[str, str], features: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of one row, under `keys`, with labels given by name."""
    return {key: plain(named(row[column], features.get(column))) for column, key in keys.items()}


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
