"""What layers return and receive: tensors in nested tuples, lists, mappings and dataclasses."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor


def tensors_of(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested mappings, sequences and dataclasses, with its selector."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from tensors_of(item, f"{path}[{key}]")
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from tensors_of(item, f"{path}[{index}]")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors_of(getattr(value, field.name), f"{path}[{field.name}]")


class Received(dict[int | str, Any]):
    """What a layer was called with: positional arguments by position, the others by keyword."""


def item_of(value: Any, key: int | str) -> Any:
    if isinstance(value, Received):
        return value[key]
    if isinstance(value, Mapping):
        # A key comes before a position, even if it is a string of digits: torchvision names pyramid levels that way.
        for same in (key, str(key)):
            if same in value:
                return value[same]
        if isinstance(key, int):
            return list(value.values())[key]
    elif isinstance(value, (tuple, list)) and isinstance(key, int):
        return value[key]
    elif isinstance(key, str) and (
        key in getattr(value, "_fields", ()) or key in getattr(value, "__dataclass_fields__", ())
    ):
        return getattr(value, key)
    raise LookupError(key)
