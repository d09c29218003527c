"""The axes of a value, if they can be known: a reducer must not mistake tokens for space or channels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from layertap.taps.hooks import Hook
from layertap.taps.nested import tensors_of

NCHW, NHWC, NLC, UNKNOWN = "NCHW", "NHWC", "NLC", ""

_FIRST = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.GroupNorm, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_LAST = (nn.Linear, nn.LayerNorm)
_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
# Layers that return a map for a map, channels first.
_SPATIAL = (
    *_CONVOLUTIONS,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.LPPool2d,
    nn.FractionalMaxPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.Upsample,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ZeroPad2d,
    nn.ReflectionPad2d,
    nn.ReplicationPad2d,
    nn.ConstantPad2d,
)

_MOST_COLOURS = 4
# Class, distillation and register tokens, as models have them. More would take common maps for tokens: 56 = 7 x 7 + 7.
_PREFIX_TOKENS = (0, 1, 2, 4, 5, 8, 9)

Sides = tuple[int, int]


class Evidence:
    """What a model and its first forward show about axes.

    The sides of maps are those of the image, those that convolutions and pools make from known ones, and fractions of
    them. There are as many tokens as a map has positions, and a few more. Widths are the channel counts of its layers.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._images: set[tuple[int, ...]] = set()
        self._image_sides: set[Sides] = set()
        self._sides: set[Sides] = set()
        self._widths: set[int] | None = None
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def attach(self, is_wanted: Callable[[], bool]) -> None:
        """Watch the forwards for which `is_wanted`, before all existing hooks."""
        for layer in self._model.modules():
            if isinstance(layer, _SPATIAL):
                hook = Hook(layer, lambda args, output, layer=layer: self._see(layer, args, output), is_wanted)
                self._handles.append(layer.register_forward_hook(hook, prepend=True))
        root = Hook(self._model, self._see_inputs, is_wanted)
        self._handles.append(self._model.register_forward_pre_hook(root, prepend=True, with_kwargs=True))

    def detach(self) -> None:
        """Remove the hooks; everything seen so far is kept."""
        while self._handles:
            self._handles.pop().remove()

    def has(self, sides: Sides) -> bool:
        """Whether a map may have these sides."""
        if sides in self._sides or any(_divides(sides, image) for image in self._image_sides):
            return True
        return any(_is_halved(sides, seen) for seen in self._sides)

    def is_token_count(self, length: int, *, of_any_map: bool = False) -> bool:
        """Whether a map that was seen has as many positions, or, with `of_any_map`, a possible map does."""
        maps = {sides for sides in self._sides if min(sides) > 1}
        if of_any_map:
            roots = range(math.isqrt(max(1, length - _PREFIX_TOKENS[-1])), math.isqrt(length) + 1)
            maps |= {(side, side) for side in roots if self.has((side, side))}
        return any(length - height * width in _PREFIX_TOKENS for height, width in maps)

    @cached_property
    def is_convolutional(self) -> bool:
        """Whether it has no layer norms, so that its maps are channels first: PyTorch's own order."""
        return not any(isinstance(layer, nn.LayerNorm) for layer in self._model.modules())

    def is_width(self, length: int) -> bool:
        """Whether some layer has that many channels."""
        if self._widths is None:
            found = {width for layer in self._model.modules() for width in _widths(layer)}
            if any(is_lazy(parameter) for parameter in self._model.parameters()):
                return length in found
            self._widths = found
        return length in self._widths

    def _see_inputs(self, args: Any, kwargs: Any) -> None:
        for _, value in tensors_of([args, kwargs]):
            if value.ndim != 4:
                continue
            _, first, height, last = value.shape
            self._images.add(tuple(value.shape))
            if first <= _MOST_COLOURS < last or self.is_convolutional:
                self._see_image((height, last))
            elif last <= _MOST_COLOURS < first:
                self._see_image((first, height))

    def _see_image(self, sides: Sides) -> None:
        self._image_sides.add(sides)
        self._sides.add(sides)

    def _see(self, layer: nn.Module, args: Any, output: Any) -> None:
        given = args[0] if args else None
        if not (isinstance(given, Tensor) and isinstance(output, Tensor) and given.ndim == output.ndim == 4):
            return
        sides = _sides_of(given)
        # The stem of a model is the first layer to be called if the model itself is not called.
        is_stem = isinstance(layer, _CONVOLUTIONS) and (
            (given.shape[1] <= _MOST_COLOURS and not self._images) or tuple(given.shape) in self._images
        )
        if is_stem:
            self._see_image(sides)
        if sides in self._sides:
            self._sides.add(_sides_of(output))


def axes_of(value: Tensor, layer: nn.Module, evidence: Evidence, about: Mapping[str, Any]) -> str:
    """The axes of a value that `layer` gave or received, batch first; empty where they are not known.

    A value is a map if the model's facts say so, or if it has the sides of a map that the forward has shown. A value
    with as many rows and columns as there are tokens, such as attention weights, is not a map.
    """
    if value.ndim == 3:
        return _axes_of_tokens(value, layer, evidence)
    if value.ndim != 4:
        return {1: "N", 2: "NC"}.get(value.ndim, UNKNOWN)
    _, first, second, third = value.shape
    if _has_rows_of_shares(value) and (second == third or not evidence.is_width(third)):
        return UNKNOWN
    layout = about.get("layout") or (NCHW if "layout" not in about and evidence.is_convolutional else None)
    if layout == NCHW:
        return NCHW if _is_plausible((second, third), first, evidence) else UNKNOWN
    if layout == NHWC:
        return NHWC if _is_plausible((first, second), third, evidence) else UNKNOWN
    found = [axes for axes, sides in ((NCHW, (second, third)), (NHWC, (first, second))) if evidence.has(sides)]
    if len(found) == 2:
        # The exact types: a subclass may permute, as torchvision's LayerNorm2d does.
        found = [NCHW] if type(layer) in _FIRST else [NHWC] if type(layer) in _LAST else []
    if not found or _is_by_tokens((second, third) if found == [NCHW] else (first, second), evidence):
        return UNKNOWN
    return found[0]


def _axes_of_tokens(value: Tensor, layer: nn.Module, evidence: Evidence) -> str:
    if isinstance(layer, (nn.Conv1d, nn.BatchNorm1d)):
        return UNKNOWN
    _, length, channels = value.shape
    if length == channels:
        return NLC if type(layer) in _LAST else UNKNOWN
    is_width = evidence.is_width(channels)
    if _has_rows_of_shares(value) and not is_width:
        return UNKNOWN
    # Channels first, as a flattened map has them, or a layer that mixes tokens.
    if evidence.is_width(length) and not (is_width and evidence.is_token_count(length, of_any_map=True)):
        return UNKNOWN
    return NLC


def _is_plausible(sides: Sides, channels: int, evidence: Evidence) -> bool:
    """Whether a value of a model whose maps all have one layout is one of them, and not a number per pair of tokens."""
    if evidence.is_width(channels):
        return True
    if sides[0] == sides[1]:
        return evidence.has(sides) and not evidence.is_token_count(sides[0])
    return evidence.has(sides) or not any(evidence.is_token_count(side) for side in sides)


def _is_by_tokens(sides: Sides, evidence: Evidence) -> bool:
    return sides[0] == sides[1] and evidence.is_token_count(sides[0])


def _has_rows_of_shares(value: Tensor) -> bool:
    """Whether each row is non-negative and sums to one, as attention weights do."""
    if not value.is_floating_point() or value.shape[-1] < 2 or not value.numel():
        return False
    few = value.detach()[:1].float()
    tolerance = 2e-2 if value.dtype in (torch.float16, torch.bfloat16) else 1e-3
    return bool((few >= 0).all()) and bool(((few.sum(-1) - 1).abs() < tolerance).all())


def _sides_of(value: Tensor) -> Sides:
    return value.shape[2], value.shape[3]


def _divides(sides: Sides, image: Sides) -> bool:
    """Whether an image divides into square patches, a whole number of pixels wide, that form a map with these sides."""
    return (
        min(sides) > 0
        and all(whole % part == 0 for whole, part in zip(image, sides, strict=True))
        and (image[0] // sides[0] == image[1] // sides[1])
    )


def _is_halved(sides: Sides, seen: Sides) -> bool:
    """Whether a map with these sides comes from halving one that was seen, once or more, rounded either way."""
    floor = ceiling = seen
    while max(floor) > 1:
        floor, ceiling = (floor[0] // 2, floor[1] // 2), (-(-ceiling[0] // 2), -(-ceiling[1] // 2))
        if sides in (floor, ceiling):
            return True
    return False


def _widths(layer: nn.Module) -> set[int]:
    # Biases, scales, and the weights of any norm.
    own = [parameter for parameter in layer.parameters(recurse=False) if not is_lazy(parameter)]
    widths = {len(parameter) for parameter in own if parameter.ndim == 1}
    if isinstance(layer, _CONVOLUTIONS):
        widths |= {layer.out_channels, *((layer.in_channels,) if layer.in_channels > _MOST_COLOURS else ())}
    elif isinstance(layer, nn.Linear):
        widths |= {layer.in_features, layer.out_features}
    elif isinstance(layer, nn.LayerNorm):
        widths.add(int(layer.normalized_shape[-1]))
    elif isinstance(layer, nn.Embedding):
        widths.add(layer.embedding_dim)
    return widths
