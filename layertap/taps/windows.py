"""Windows of a map, as Swin folds them into the batch -> the map of each image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from layertap.errors import TapError


def merged(value: Tensor, root: nn.Module, layer: str) -> Tensor:
    """The maps `(N, H, W, C)` of windows `(N * windows, tokens, C)`, with the shift of the block undone.

    The nearest block around the layer that states `input_resolution` and `window_size`, as Swin of timm and of Hugging
    Face does, says where they are. Raises `TapError` where none does, or where the value does not fit it.
    """
    block = _block(root, layer)
    if block is None:
        raise TapError(
            f"layer {layer!r}: no block around it states `input_resolution` and `window_size`, which say where its "
            "windows are in the map"
        )
    height, width = _pair(block.input_resolution)
    rows, columns = _pair(block.window_size)
    shift = _pair(getattr(block, "shift_size", 0))
    down, across = -(-height // rows), -(-width // columns)
    padded = (down * rows, across * columns) != (height, width)
    if value.ndim == 4 and value.shape[1:3] == (rows, columns):
        value = value.flatten(1, 2)
    windows = down * across
    if value.ndim != 3 or value.shape[1] != rows * columns or value.shape[0] % windows:
        raise TapError(
            f"layer {layer!r} gives {tuple(value.shape)}, which is not {windows} windows of {rows} x {columns} tokens "
            "per image"
        )
    if padded and any(shift):
        raise TapError(
            f"layer {layer!r}: its windows are shifted on a padded map, of which libraries differ in the order"
        )
    folded = value.reshape(-1, down, across, rows, columns, value.shape[-1]).transpose(2, 3)
    maps = folded.reshape(-1, down * rows, across * columns, value.shape[-1])[:, :height, :width]
    return torch.roll(maps, shift, (1, 2)) if any(shift) else maps


def _block(root: nn.Module, layer: str) -> nn.Module | None:
    """The layer itself or the nearest one around it that knows its windows."""
    path = "" if layer == "." else layer
    while True:
        found = root.get_submodule(path)
        if hasattr(found, "input_resolution") and hasattr(found, "window_size"):
            return found
        if not path:
            return None
        path = path.rpartition(".")[0]


def _pair(sides: object) -> tuple[int, int]:
    if isinstance(sides, (tuple, list)):
        return int(sides[0]), int(sides[1])
    assert isinstance(sides, int)
    return sides, sides
