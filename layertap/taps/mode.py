"""Eval mode for as long as a block lasts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import nn

_LOCK = threading.Lock()
_HELD: WeakKeyDictionary[nn.Module, tuple[int, bool]] = WeakKeyDictionary()
"""For each layer, how many blocks keep it in eval mode, and its mode before the first of them."""


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """`module` in eval mode; each layer's own mode is restored once no other block keeps it in eval mode."""
    layers = list(module.modules())
    with _LOCK:
        for layer in layers:
            blocks, mode = _HELD.get(layer, (0, layer.training))
            _HELD[layer] = (blocks + 1, mode)
    try:
        module.eval()
        yield
    finally:
        with _LOCK:
            for layer in layers:
                blocks, mode = _HELD.pop(layer)
                if blocks > 1:
                    _HELD[layer] = (blocks - 1, mode)
                else:
                    layer.training = mode
