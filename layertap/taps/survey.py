"""What every layer does in one forward: calls, shapes, and when in the compute it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from layertap.errors import TapError
from layertap.records import dtype_name
from layertap.taps.compute import Compute
from layertap.taps.hooks import ATTACHING, Hook, refuse_unhookable
from layertap.taps.mode import eval_mode
from layertap.taps.nested import tensors_of
from layertap.taps.place import Place


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """One layer of a model, as one forward showed it.

    `calls` is how often it ran. `shapes` and `dtypes` are those of its tensors at the first call, by selector (empty
    for a layer that returns one tensor). `parameters` counts its own and those of the layers inside it, `aliases`
    are its other paths. `compute` holds, per call, which share of the forward's multiplications (convolutions, matrix
    products and attention, as torch counts them) was done when it began and when it returned.
    """

    name: str
    type: str
    calls: int
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    parameters: int
    aliases: tuple[str, ...] = ()
    compute: tuple[tuple[float, float], ...] = ()


@dataclass(slots=True)
class _Seen:
    tensors: dict[str, tuple[tuple[int, ...], str]] = field(default_factory=dict)
    began: list[int] = field(default_factory=list)
    done: list[tuple[int, int]] = field(default_factory=list)


def survey(module: nn.Module, *args: Any, **kwargs: Any) -> list[LayerInfo]:
    """Every layer of `module`, the model itself (`.`) first, as a forward on the given arguments shows them.

    The model runs in eval mode without gradients; modes are restored afterwards. Calls of the model in other threads
    are not counted. Raises `TapError` if no arguments are given to run it on, or if hooks would not run.
    """
    if not args and not kwargs:
        raise TapError(
            "layers() runs the model once: give it an input, such as layers(model, torch.zeros(1, 3, 224, 224))"
        )
    refuse_unhookable(module)
    seen = {layer: _Seen() for layer in module.modules()}
    handles: list[torch.utils.hooks.RemovableHandle] = []
    compute, place = Compute(), Place()
    try:
        with ATTACHING:
            for layer, watched in seen.items():
                begin, end = partial(_begin, watched, compute), partial(_end, watched, compute)
                handles.append(layer.register_forward_pre_hook(Hook(layer, begin, place.is_here), prepend=True))
                handles.append(layer.register_forward_hook(Hook(layer, end, place.is_here), prepend=True))
        # torch's fused attention is one operation without a formula.
        with eval_mode(module), torch.no_grad(), _unfused_attention(), compute:
            module(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return _listed(module, seen, compute.total)


def _begin(seen: _Seen, compute: Compute, args: Any) -> None:
    seen.began.append(compute.total)


def _end(seen: _Seen, compute: Compute, args: Any, output: Any) -> None:
    if not seen.done:
        seen.tensors = {path: (tuple(t.shape), dtype_name(t)) for path, t in _outputs(output)}
    seen.done.append((seen.began.pop(), compute.total))


@contextmanager
def _unfused_attention() -> Iterator[None]:
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _outputs(output: Any) -> list[tuple[str, Tensor]]:
    found = list(tensors_of(output))
    return [("", found[0][1])] if len(found) == 1 else found


def _listed(module: nn.Module, seen: dict[nn.Module, _Seen], total: int) -> list[LayerInfo]:
    paths: dict[nn.Module, list[str]] = {}
    for path, layer in module.named_modules(remove_duplicate=False):
        paths.setdefault(layer, []).append(path or ".")
    return [
        LayerInfo(
            name=names[0],
            type=type(layer).__name__,
            calls=len(seen[layer].done),
            shapes={path: shape for path, (shape, _) in seen[layer].tensors.items()},
            dtypes={path: dtype for path, (_, dtype) in seen[layer].tensors.items()},
            parameters=sum(parameter.numel() for parameter in layer.parameters()),
            aliases=tuple(names[1:]),
            compute=tuple((began / total, done / total) for began, done in seen[layer].done) if total else (),
        )
        for layer, names in paths.items()
    ]
