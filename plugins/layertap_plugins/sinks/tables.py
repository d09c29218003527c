"""Shards as Arrow tables: one row per image, with its id, its metadata, and a fixed-size list per tap."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import layertap
from layertap_plugins.sinks.rows import is_bfloat16

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa  # type: ignore[import-untyped]
    from numpy.typing import NDArray

_TAP, _SHAPE, _DTYPE, _NOTE = b"layertap.tap", b"layertap.shape", b"layertap.dtype", b"layertap.note"

# The metadata of a field whose text is JSON.
_JSON = {b"layertap.text": b"JSON"}


def table(shard: layertap.Shard, named: Callable[[str], str] = str, *, structs: bool = True) -> pa.Table:
    """A shard without a copy of its values: `id`, the metadata, and each tap's rows, flat, in a fixed-size list.

    A field's metadata gives its tap, shape and dtype. `named` turns a name into one that the format allows; `_` is
    appended to a name that is already in use. Metadata of lists and dicts has Arrow's types where they hold the same
    values, dicts only with `structs`; elsewhere it is JSON text.
    """
    import pyarrow as pa

    records = shard.records
    keys = records[0].meta if records else ()
    columns = [pa.array([record.id for record in records], pa.string())]
    fields = [pa.field("id", pa.string(), nullable=False)]
    for key in keys:
        column, about = _meta([record.meta[key] for record in records], structs)
        columns.append(column)
        fields.append(pa.field(_free(named(key), fields), column.type, metadata=about))
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
            field = _common([schema.field(field.name) for schema in schemas if field.name in schema.names])
        fields.append(field)
    return pa.schema(fields)


def _common(found: Sequence[pa.Field]) -> pa.Field:
    """The field of a metadata column in all parts, whose own fields of it are `found`."""
    import pyarrow as pa

    first = found[0].remove_metadata()
    types = {field.type for field in found} - {pa.null()}
    is_text = any(_is_json(field) for field in found)
    if not is_text and not any(map(pa.types.is_nested, types)):
        return first.with_type(types.pop() if len(types) == 1 else pa.string())
    if not is_text and (whole := _common_list(types)) is not None:
        return first.with_type(whole)
    return first.with_type(pa.string()).with_metadata(_JSON)


def _common_list(types: Collection[pa.DataType]) -> pa.DataType | None:
    """One type for the values of all, such as lists of numbers for lists without values; None if there is none."""
    import pyarrow as pa

    if len(types) > 1 and any("struct" in str(kind) for kind in types):
        return None  # a struct of all keys would add keys to the dicts
    try:
        schemas = [pa.schema([("item", kind)]) for kind in types]
        return pa.unify_schemas(schemas, promote_options="permissive").field("item").type
    except pa.ArrowException:
        return None


def cast(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """The same rows with the metadata columns that `schema` has."""
    import pyarrow as pa

    if not rows.num_rows:
        return schema.empty_table()
    columns = []
    for field in schema:
        column, is_json = rows[field.name], _is_json(rows.schema.field(field.name))
        if _is_json(field) and not is_json:
            column = pa.array([_as_json(value) for value in column.to_pylist()], field.type)
        elif column.type != field.type and pa.types.is_string(field.type):
            texts = [None if value is None else str(value) for value in column.to_pylist()]
            column = pa.array(texts, field.type)
        elif column.type != field.type and pa.types.is_nested(field.type):
            column = pa.array(column.to_pylist(), field.type)
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


def _meta(column: Sequence[Any], structs: bool) -> tuple[pa.Array, dict[bytes, bytes] | None]:
    """A metadata column in the type of its values, and what its field says about it.

    It is text if they are of several types, as in the index.
    """
    import pyarrow as pa

    if any(isinstance(value, (list, dict)) for value in column):
        found = _nested(column, structs)
        return (found, None) if found is not None else (pa.array(map(_as_json, column), pa.string()), _JSON)
    types = {type(value) for value in column} - {type(None)}
    if len(types) <= 1:
        try:
            return pa.array(column), None
        except OverflowError:  # a number of more than 64 bits
            pass
    return pa.array([None if value is None else str(value) for value in column], pa.string()), None


def _nested(column: Sequence[Any], structs: bool) -> pa.Array | None:
    """Lists and dicts in Arrow's types, None if those hold other values, such as a null for a missing key."""
    import pyarrow as pa

    try:
        found = pa.array(column)
    except (pa.ArrowException, OverflowError):
        return None
    kind = str(found.type)
    # Parquet does not know a struct without fields.
    is_held = "struct<>" not in kind and (structs or "struct" not in kind)
    return found if is_held and found.to_pylist() == list(column) else None


def _as_json(value: object) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False)


def _is_json(field: pa.Field) -> bool:
    return (field.metadata or {}).items() >= _JSON.items()


def _free(name: str, fields: Iterable[pa.Field]) -> str:
    taken = {field.name for field in fields}
    while name in taken:
        name += "_"
    return name
