"""Eval mode for as long as a block lasts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import nn

_LOCK = threading.Lock()
_HELD: WeakKeyDictionary[nn.Module, tuple[int, bool]] = WeakKeyDictionary()
"""By layer, how many blocks hold it in eval mode, and the mode that it had before the first."""


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """`module` in eval mode; afterwards every layer has its own mode again, once no other block holds it."""
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
