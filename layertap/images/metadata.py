"""What metadata holds: the values of JSON, and the values of other libraries that have an exact form there."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any

from layertap.records import ImageRecord, MetaValue

_DEEPEST = 64


def plain_record(record: ImageRecord) -> ImageRecord:
    """The record with plain metadata. Raises `TypeError` and `ValueError`, which name the key."""
    if all(type(value) is int or (type(value) is str and value.isascii()) for value in record.meta.values()):
        return record
    meta = {}
    for key, value in record.meta.items():
        try:
            meta[key] = plain_value(value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"a {key} of {error}") from error
    return dataclasses.replace(record, meta=meta)


def plain_value(value: object, *, lenient: bool = False, depth: int = 0) -> MetaValue:
    """A value as metadata holds it: text, numbers, lists and dicts as they are, in Python's own types.

    NumPy's values and arrays become Python's, dates and times ISO 8601 text, decimals text, and durations seconds.
    Raises `TypeError` for a type that metadata cannot hold, and `ValueError` for NaN, an infinite number, text that is
    not Unicode, or more than 64 levels of lists. With `lenient`, numbers that are not finite, which mean a missing
    value in many tables, become None, and text is escaped.
    """
    if depth > _DEEPEST:
        raise ValueError(f"lists nested more than {_DEEPEST} deep")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value, lenient)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, Mapping):
        return {_key(key, lenient): plain_value(part, lenient=lenient, depth=depth + 1) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_value(part, lenient=lenient, depth=depth + 1) for part in value]
    if isinstance(value, (float, Decimal, date, time, timedelta)):
        return _number_or_time(value, lenient)
    if hasattr(value, "tolist"):
        return plain_value(_of_array(value), lenient=lenient, depth=depth + 1)
    raise TypeError(f"type {type(value).__name__}")


def _text(value: str, lenient: bool) -> str:
    text = str.__str__(value)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            if not lenient:
                raise ValueError(f"{value!r}, which is not UTF-8 text") from None
            return text.encode("utf-8", "backslashreplace").decode()
    return text


def _key(key: object, lenient: bool) -> str:
    if not isinstance(key, str):
        raise TypeError(f"type dict with a key of type {type(key).__name__}, not str")
    return _text(key, lenient)


def _number_or_time(value: float | Decimal | date | time | timedelta, lenient: bool) -> MetaValue:
    finite = math.isfinite(value) if isinstance(value, (float, Decimal)) else value == value  # pandas.NaT is not
    if not finite:
        if not lenient:
            raise ValueError(f"{value}; give None instead")
        return None
    if isinstance(value, float):
        return float(value)
    if isinstance(value, timedelta):
        return value.total_seconds()
    return str(value) if isinstance(value, Decimal) else value.isoformat()


def _of_array(value: Any) -> object:
    """The Python values of an array or tensor; dates as text, because `tolist` may count nanoseconds."""
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if kind == "M":
        text = value.astype(str)
        return text.tolist()
    return (value / value.dtype.type(1, "s")).tolist() if kind == "m" else value.tolist()
