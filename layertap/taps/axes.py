"""What the axes of a value are, where that can be known: a reducer must not take a width for a channel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

NCHW, NHWC, UNKNOWN = "NCHW", "NHWC", ""

_FIRST = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.GroupNorm, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_LAST = (nn.Linear, nn.LayerNorm)


def axes_of(shape: tuple[int, ...], layer: nn.Module, model: nn.Module, about: Mapping[str, Any]) -> str:
    """The axes of a value of `shape`, batch first, that `layer` of `model` gave; empty where they are not known.

    A map is what the model's facts say. Where they do not say, a network without layer norms keeps its channels first
    (PyTorch's own order), and in any other the two equal axes of a square map are its sides.
    """
    if len(shape) == 3:
        return UNKNOWN if isinstance(layer, (nn.Conv1d, nn.BatchNorm1d)) else "NLC"
    if len(shape) != 4:
        return {1: "N", 2: "NC"}.get(len(shape), UNKNOWN)
    if about.get("layout"):
        return str(about["layout"])
    if "layout" not in about and not any(isinstance(module, nn.LayerNorm) for module in model.modules()):
        return NCHW
    _, first, second, third = shape
    if second == third != first:
        return NCHW
    if first == second != third:
        return NHWC
    # The exact types: a subclass may permute, as torchvision's LayerNorm2d does.
    return NCHW if type(layer) in _FIRST else NHWC if type(layer) in _LAST else UNKNOWN
