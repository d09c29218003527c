"""One forward, watched from every layer: what ran, how often, with what shapes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from layertap.errors import TapError
from layertap.hooks import refuse_deaf
from layertap.structures import tensors_of


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """One layer of a model, as one forward showed it.

    `calls` is how often it ran, `shapes` and `dtypes` what its tensors were at the first call, by their selector (an
    empty one for a layer that returns one tensor), `parameters` counts its own and those of the layers inside it,
    `aliases` are its other paths.
    """

    name: str
    type: str
    calls: int
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    parameters: int
    aliases: tuple[str, ...] = ()


@dataclass(slots=True)
class _Seen:
    calls: int = 0
    tensors: dict[str, tuple[tuple[int, ...], str]] = field(default_factory=dict)


def survey(module: nn.Module, *args: Any, **kwargs: Any) -> list[LayerInfo]:
    """Every layer of `module`, the model itself (`.`) first, as a forward on the given arguments shows them.

    The model runs in eval mode without gradients; modes are put back afterwards. Raises `TapError` where no arguments
    are given to run it on, or where hooks would not fire.
    """
    if not args and not kwargs:
        raise TapError(
            "layers() runs the model once: give it an input, such as layers(model, torch.zeros(1, 3, 224, 224))"
        )
    refuse_deaf(module)
    seen = {layer: _Seen() for layer in module.modules()}
    modes = {layer: layer.training for layer in seen}
    handles: list[torch.utils.hooks.RemovableHandle] = []
    try:
        for layer, watched in seen.items():
            handles.append(layer.register_forward_hook(_watch(watched), prepend=True))
        module.eval()
        with torch.no_grad():
            module(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
        for layer, mode in modes.items():
            layer.training = mode
    return _listed(module, seen)


def _watch(seen: _Seen) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        if not seen.calls:
            seen.tensors = {path: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for path, t in _outputs(output)}
        seen.calls += 1

    return hook


def _outputs(output: Any) -> list[tuple[str, Tensor]]:
    found = list(tensors_of(output))
    return [("", found[0][1])] if len(found) == 1 else found


def _listed(module: nn.Module, seen: dict[nn.Module, _Seen]) -> list[LayerInfo]:
    paths: dict[nn.Module, list[str]] = {}
    for path, layer in module.named_modules(remove_duplicate=False):
        paths.setdefault(layer, []).append(path or ".")
    return [
        LayerInfo(
            name=names[0],
            type=type(layer).__name__,
            calls=seen[layer].calls,
            shapes={path: shape for path, (shape, _) in seen[layer].tensors.items()},
            dtypes={path: dtype for path, (_, dtype) in seen[layer].tensors.items()},
            parameters=sum(parameter.numel() for parameter in layer.parameters()),
            aliases=tuple(names[1:]),
        )
        for layer, names in paths.items()
    ]
