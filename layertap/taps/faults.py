"""What is wrong with the taps of a model after a whole forward, and why."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import nn

from layertap.errors import LayertapError, TapError, Where, combined
from layertap.taps.capture import Capture, Hint
from layertap.taps.layers import why_silent


def refuse_faults(captures: Collection[Capture], hint: Hint) -> None:
    """Raise one fault per faulty tap, and name its other faulty layers: a glob often matches many."""
    found: dict[Where, list[tuple[str, Exception]]] = {}
    for capture in captures:
        fault = None if capture.is_silent else capture.fault(hint)
        if fault is not None:
            found.setdefault(capture.where, []).append((capture.name, fault))
    faults: list[LayertapError] = []
    for (_, fault), *others in found.values():
        if not isinstance(fault, LayertapError):
            raise fault
        faults.append(_with_others(fault, [name for name, _ in others]) if isinstance(fault, TapError) else fault)
    if faults:
        raise combined(faults)


def refuse_idle_patterns(captures: Collection[Capture], hint: Hint) -> None:
    """Raise `TapError` for a pattern none of whose layers ran."""
    patterns = {id(c.pattern): c.pattern for c in captures if c.pattern is not None}
    for pattern in patterns.values():
        found = [capture for capture in captures if capture.pattern is pattern]
        if all(capture.is_silent for capture in found):
            layers = [capture.tap.layer for capture in found]
            what = f"no layer of {str(pattern)!r} ran ({_listing(layers)}); {hint(layers[0])}"
            if pattern.op is not None:
                what = f"{str(pattern)!r}: {pattern.op!r} runs in none of these layers: {_listing(layers)}"
            raise TapError(what, where=found[0].where)


def hint(module: nn.Module, layer: str, captures: Collection[Capture]) -> str:
    """Why a layer that exists did not run, where the reason is known."""
    known = why_silent(module, layer)
    if known is not None:
        return known
    ran = [capture.tap.layer for capture in captures if capture.calls]
    return f"taps that did: {_listing(ran)}" if ran else "does the model call it, for this input?"


def _with_others(fault: TapError, others: Sequence[str]) -> TapError:
    if not others:
        return fault
    result = TapError(f"{fault.message} (these cannot be read either: {_listing(others)})", where=fault.where)
    result.__cause__ = fault
    return result


def _listing(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
