"""Taps -> a capture for each layer that they select."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor, nn

from layertap.errors import ConfigError, LayertapError, TapError, Where, combined, set_within
from layertap.taps.capture import Capture, Forward, Hint
from layertap.taps.grammar import Tap
from layertap.taps.layers import find_layers
from layertap.taps.operations.attention import ATTENTION
from layertap.taps.operations.attention_capture import AttentionCapture
from layertap.taps.operations.capture import OperationCapture


def find_captures(root: nn.Module, taps: Sequence[tuple[Tap, Where]], forward: Forward) -> dict[str, Capture]:
    """The captures by name, in the order of the taps. Raises `TapError` that reports every tap without a layer."""
    captures: dict[str, Capture] = {}
    faults: list[LayertapError] = []
    for tap, where in taps:
        try:
            _add(captures, root, tap, where, forward)
        except (TapError, ConfigError) as error:
            set_within(error, where)
            faults += error.faults
    if faults:
        raise combined(faults)
    return captures


def values_by_name(captures: Iterable[Capture], hint: Hint) -> dict[str, Callable[[], Tensor]]:
    """Functions that return the values of all captures, by name. Raises `TapError` for a name of two values."""
    values: dict[str, Callable[[], Tensor]] = {}
    for capture in captures:
        for name, value in capture.values(hint).items():
            if name in values:
                what = f"two taps are named {name!r}, one of them as a call of `:all`: leave one out"
                raise TapError(what, where=capture.where)
            values[name] = value
    return values


def _add(captures: dict[str, Capture], root: nn.Module, tap: Tap, where: Where, forward: Forward) -> None:
    for layer, module in find_layers(root, tap):
        if tap.op == ATTENTION and layer != tap.layer and isinstance(module, nn.Softmax):
            # The weights of the layer around it.
            continue
        found = tap.model_copy(update={"layer": layer}) if layer != tap.layer else tap
        name = found.label
        if name in captures:
            raise TapError(f"two taps are named {name!r}: give one of them another `name`")
        pattern = tap if layer != tap.layer else None
        captures[name] = _kind(found)(found, name, module, forward, pattern=pattern, where=where)


def _kind(tap: Tap) -> type[Capture]:
    if tap.op is None:
        return Capture
    return AttentionCapture if tap.op == ATTENTION else OperationCapture
