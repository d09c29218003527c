"""Which tensor of a structure a tap means, and the words for it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from layertap.errors import TapError
from layertap.taps.grammar import Tap
from layertap.taps.nested import Received, tensors_of


def first(received: Received, tap: Tap) -> Tensor:
    """The first tensor that a layer or an operation received."""
    for _, tensor in tensors_of(received):
        return tensor
    raise TapError(f"{'layer' if tap.op is None else f'{tap.op!r} in layer'} {tap.layer!r} receives no tensor")


def where(tap: Tap, keys: int) -> str:
    """The tap with its first keys, in words."""
    return f"tap {_chosen(tap, keys)!r}"


def choices(value: Any, tap: Tap, keys: int) -> str:
    """The taps on each tensor of a value, as advice; an empty string if it has none."""
    paths = [_chosen(tap, keys) + path for path, _ in tensors_of(value)]
    return f"; choose {', '.join(paths[:8])}{' ...' if len(paths) > 8 else ''}" if paths else ""


def _chosen(tap: Tap, keys: int) -> str:
    return str(tap.model_copy(update={"select": tap.select[:keys]}))
