"""One forward, watched from every layer: what ran, how often, with what shapes, after how much of the compute."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from layertap.errors import TapError
from layertap.records import dtype_name
from layertap.taps.hooks import refuse_unhookable
from layertap.taps.nested import tensors_of


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """One layer of a model, as one forward showed it.

    `calls` is how often it ran, `shapes` and `dtypes` what its tensors were at the first call, by their selector (an
    empty one for a layer that returns one tensor), `parameters` counts its own and those of the layers inside it,
    `aliases` are its other paths. `compute` holds, a call, which share of the forward's multiplications (convolutions,
    matrix products and attention, as torch counts them) was done when it began and when it returned.
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

    The model runs in eval mode without gradients; modes are put back afterwards. Raises `TapError` where no arguments
    are given to run it on, or where hooks would not fire.
    """
    if not args and not kwargs:
        raise TapError(
            "layers() runs the model once: give it an input, such as layers(model, torch.zeros(1, 3, 224, 224))"
        )
    refuse_unhookable(module)
    seen = {layer: _Seen() for layer in module.modules()}
    modes = {layer: layer.training for layer in seen}
    handles: list[torch.utils.hooks.RemovableHandle] = []
    counter = FlopCounterMode(display=False)
    try:
        for layer, watched in seen.items():
            handles.append(layer.register_forward_pre_hook(_begin(watched, counter), prepend=True))
            handles.append(layer.register_forward_hook(_end(watched, counter), prepend=True))
        module.eval()
        # The fused attention of torch is one operation that the counter does not know.
        with torch.no_grad(), _unfused_attention(), counter:
            module(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
        for layer, mode in modes.items():
            layer.training = mode
    return _listed(module, seen, counter.get_total_flops())


def _begin(seen: _Seen, counter: FlopCounterMode) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any) -> None:
        seen.began.append(counter.get_total_flops())

    return hook


def _end(seen: _Seen, counter: FlopCounterMode) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        if not seen.done:
            seen.tensors = {path: (tuple(t.shape), dtype_name(t)) for path, t in _outputs(output)}
        seen.done.append((seen.began.pop(), counter.get_total_flops()))

    return hook


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
