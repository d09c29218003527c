"""Shards as Arrow tables: one row per image, with its id, its metadata, and a fixed-size list per tap."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import layertap
from layertap_plugins.sinks.rows import is_bfloat16

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa  # type: ignore[import-untyped]
    from numpy.typing import NDArray

_TAP, _SHAPE, _DTYPE, _NOTE = b"layertap.tap", b"layertap.shape", b"layertap.dtype", b"layertap.note"


def table(shard: layertap.Shard, named: Callable[[str], str] = str) -> pa.Table:
    """A shard without a copy of its values: `id`, the metadata, and each tap's rows, flat, in a fixed-size list.

    A field's metadata gives its tap, shape and dtype. `named` turns a name into one that the format allows; `_` is
    appended to a name that is already in use.
    """
    import pyarrow as pa

    records = shard.records
    keys = records[0].meta if records else ()
    columns = [pa.array([record.id for record in records], pa.string())]
    columns += [_meta([record.meta[key] for record in records]) for key in keys]
    fields = [pa.field("id", pa.string(), nullable=False)]
    for key, column in zip(keys, columns[1:], strict=True):
        fields.append(pa.field(_free(named(key), fields), column.type))
    for tap, values in shard.values.items():
        column = _listed(values)
        field = pa.field(_free(named(tap), fields), column.type, nullable=False, metadata=_about(tap, values))
        columns.append(column)
        fields.append(field)
    return pa.table(columns, schema=pa.schema(fields))


def unified(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """The common schema of all parts: a metadata column of several types is text, as in the index.

    A part without rows has no metadata columns, and takes those of the others.
    """
    import pyarrow as pa

    whole = max(schemas, key=len)
    fields = []
    for field in whole:
        if not _is_tap(field):
            found = {schema.field(field.name).type for schema in schemas if field.name in schema.names} - {pa.null()}
            field = field.with_type(found.pop() if len(found) == 1 else pa.string())
        fields.append(field)
    return pa.schema(fields)


def cast(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """The same rows with the metadata columns that `schema` has."""
    import pyarrow as pa

    if not rows.num_rows:
        return schema.empty_table()
    columns = []
    for field in schema:
        column = rows[field.name]
        if column.type != field.type and pa.types.is_string(field.type):
            texts = [None if value is None else str(value) for value in column.to_pylist()]
            column = pa.array(texts, field.type)
        columns.append(column.cast(field.type) if column.type != field.type else column)
    return pa.table(columns, schema=schema)


def field_of(schema: pa.Schema, tap: str) -> pa.Field:
    """The column of a tap. Raises `KeyError`."""
    for field in schema:
        if _is_tap(field) and field.metadata[_TAP] == tap.encode(errors="surrogatepass"):
            return field
    raise KeyError(f"there is no column for the tap {tap!r}")


def facts(field: pa.Field) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """The shape of one row, and the dtype of the result of `values`."""
    import numpy as np

    shape = tuple(json.loads(field.metadata[_SHAPE]))
    dtype = field.metadata[_DTYPE].decode()
    return shape, np.dtype("uint16" if dtype == "bfloat16" else dtype)


def values(column: pa.ChunkedArray, field: pa.Field) -> NDArray[Any]:
    """The rows of a tap's column in the shape of the tap."""
    import numpy as np
    import pyarrow as pa

    shape, dtype = facts(field)
    found = []
    for chunk in column.chunks:
        flat = chunk.flatten() if pa.types.is_fixed_size_list(chunk.type) else chunk
        found.append(flat.to_numpy(zero_copy_only=False))
    whole = np.concatenate(found) if len(found) != 1 else found[0]
    if dtype.kind == "c":
        whole = whole.view(dtype)
    if whole.dtype != dtype:
        raise ValueError(f"holds {whole.dtype} instead of {dtype}")
    return whole.reshape(len(column), *shape)


def row_bytes(schema: pa.Schema) -> int:
    """The number of bytes in one row of all taps."""
    sizes = (facts(field) for field in schema if _is_tap(field))
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in sizes)


def _is_tap(field: pa.Field) -> bool:
    return _TAP in (field.metadata or {})


def _listed(values: NDArray[Any]) -> pa.Array:
    import numpy as np
    import pyarrow as pa

    width = math.prod(values.shape[1:])
    stored = np.ascontiguousarray(values)
    if is_bfloat16(stored.dtype):
        stored = stored.view(np.uint16)
    elif stored.dtype.kind == "c":
        stored, width = stored.reshape(-1).view(stored.real.dtype), 2 * width
    flat = pa.array(stored.reshape(-1))
    if values.ndim == 1 and width == 1:
        return flat
    return pa.FixedSizeListArray.from_arrays(flat, type=pa.list_(pa.field("item", flat.type, nullable=False), width))


def _about(tap: str, values: NDArray[Any]) -> dict[bytes, bytes]:
    about = {
        _TAP: tap.encode(errors="surrogatepass"),
        _SHAPE: json.dumps(values.shape[1:]).encode(),
        _DTYPE: values.dtype.name.encode(),
    }
    if is_bfloat16(values.dtype):
        about[_NOTE] = b"bfloat16, as its bits in uint16"
    return about


def _meta(column: Sequence[Any]) -> pa.Array:
    """A metadata column in the type of its values: text if they are of several types, as in the index."""
    import pyarrow as pa

    types = {type(value) for value in column} - {type(None)}
    if len(types) <= 1:
        try:
            return pa.array(column)
        except OverflowError:  # a number of more than 64 bits
            pass
    return pa.array([None if value is None else str(value) for value in column], pa.string())


def _free(name: str, fields: Iterable[pa.Field]) -> str:
    taken = {field.name for field in fields}
    while name in taken:
        name += "_"
    return name
