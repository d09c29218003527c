"""Rows and metadata as one table: a pandas DataFrame, or an Arrow table."""

from __future__ import annotations

import json
import math
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from layertap.errors import ConfigError, StoreError, missing_extra
from layertap.outputs.output import Output
from layertap.outputs.rows import Rows
from layertap.store.dtypes import widened

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped]
    import pyarrow  # type: ignore[import-untyped]

_PANDAS = {"int": "Int64", "float": "Float64", "bool": "boolean", "str": "string", "json": "object", "null": "object"}
_INT64 = range(-(2**63), 2**63)


def frame(features: Output, taps: Sequence[str]) -> pandas.DataFrame:
    """`Features.to_pandas`, of these taps."""
    with needing("pandas", "pandas"):
        import pandas

    columns: dict[str, Any] = {}
    for name, (values, kind) in _metadata(features).items():
        columns[name] = pandas.Series(_even(values, kind), dtype="int64" if name == "row" else _PANDAS[kind])
    for tap in taps:
        rows, name = features[tap], _free(tap, columns)
        if rows.ndim == 1:
            columns[name] = pandas.Series(rows[:] if rows.dtype.isbuiltin else rows[:].astype(object))
            continue
        # Explicitly one of objects, or else a list of arrays of one shape would become an array of more dimensions.
        cells = np.empty(len(rows), dtype=object)
        cells[:] = [row for chunk in rows.chunks() for row in np.array(chunk)]
        columns[name] = pandas.Series(cells)
    return pandas.DataFrame(columns)


def table(features: Output, taps: Sequence[str]) -> pyarrow.Table:
    """`Features.to_arrow`, of these taps."""
    with needing("pyarrow", "parquet"):
        import pyarrow

    columns = {name: array(values, kind) for name, (values, kind) in _metadata(features).items()}
    for tap in taps:
        columns[_free(tap, columns)] = _tensors(features[tap], tap)
    return pyarrow.table(columns)


def kinds(features: Output) -> dict[str, str]:
    """`row`, `id` and the metadata columns, and their type's name: `str` where a number is too large for 64 bits."""
    found = {"row": "int", "id": "str", **features.meta}
    whole = [name for name, kind in found.items() if kind == "int"]
    for row in features.rows():
        for name in whole:
            if row[name] is not None and row[name] not in _INT64:
                found[name] = "str"
    return found


def _metadata(features: Output) -> dict[str, tuple[list[Any], str]]:
    """Each column's values and their type's name."""
    known = kinds(features)
    columns: dict[str, list[Any]] = {name: [] for name in known}
    for row in features.rows():
        for name, values in columns.items():
            values.append(row[name])
    return {name: (values, known[name]) for name, values in columns.items()}


def _free(name: str, taken: Container[str]) -> str:
    """A tap's name as that of a column; if metadata has that name, `_` is added after it."""
    while name in taken:
        name += "_"
    return name


def _even(values: list[Any], kind: str) -> list[Any]:
    """Text where an unfinished output holds several types, as a finished one does."""
    return [None if value is None else str(value) for value in values] if kind == "str" else values


def array(values: list[Any], kind: str, *, nested: bool = True) -> pyarrow.Array:
    """A column of metadata as Arrow holds it; without `nested`, lists and dicts are JSON text."""
    import pyarrow

    if kind == "json":
        return _nested(values) if nested else _as_json(values)
    types = {"int": pyarrow.int64(), "float": pyarrow.float64(), "bool": pyarrow.bool_(), "null": pyarrow.null()}
    return pyarrow.array(_even(values, kind), types.get(kind, pyarrow.string()))


def _nested(values: list[Any]) -> pyarrow.Array:
    """Lists and dicts in Arrow's types; JSON text if those hold other values, such as a null for a missing key."""
    import pyarrow

    try:
        found = pyarrow.array(values)
        if found.to_pylist() == values and "struct<>" not in str(found.type):  # which Parquet does not know
            return found
    except (pyarrow.ArrowException, OverflowError):
        pass
    return _as_json(values)


def _as_json(values: list[Any]) -> pyarrow.Array:
    import pyarrow

    texts = [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
    return pyarrow.array(texts, pyarrow.string())


@contextmanager
def needing(package: str, extra: str) -> Iterator[None]:
    """Turn an import that fails into what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(missing_extra("this", error.name or package, extra)) from error


def _tensors(rows: Rows, tap: str) -> pyarrow.ChunkedArray:
    import pyarrow

    if rows.dtype.kind == "c":
        raise StoreError(f"{tap!r} holds complex numbers, which Arrow does not know; read it as an array")
    kind = pyarrow.from_numpy_dtype(widened(rows.dtype))
    shape = rows.shape[1:]
    if not shape:
        return pyarrow.chunked_array([_values(chunk, kind) for chunk in rows.chunks()], kind)
    stored = pyarrow.list_(kind, math.prod(shape))
    type_ = stored if len(shape) == 1 else pyarrow.fixed_shape_tensor(kind, shape)
    lists = (pyarrow.FixedSizeListArray.from_arrays(_values(chunk, kind), type=stored) for chunk in rows.chunks())
    return pyarrow.chunked_array([found if type_ is stored else type_.wrap_array(found) for found in lists], type_)


def _values(chunk: NDArray[Any], kind: pyarrow.DataType) -> pyarrow.Array:
    import pyarrow

    flat = np.ascontiguousarray(chunk).reshape(-1)
    return pyarrow.array(flat.astype(widened(flat.dtype), copy=False), kind)
