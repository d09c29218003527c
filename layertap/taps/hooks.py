"""What hangs on a module while it is tapped, and the questions it asks of the call that it is in."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import nn

from layertap.errors import TapError


class Hook:
    """A hook for one module. A copy or a pickle of the module, made meanwhile, carries one that does nothing."""

    def __init__(self, module: nn.Module, act: Callable[..., None]) -> None:
        self._module = module
        self._act = act

    def __call__(self, module: nn.Module, *heard: Any) -> None:
        # A shallow copy of the module shares its hooks: what it does is not what the tapped module does. And within a
        # backward, checkpointing runs what it has run before: no call of the forward.
        if module is self._module and torch._C._current_graph_task_id() == -1:
            self._act(*heard)

    def __reduce__(self) -> tuple[type[_NoHook], tuple[()]]:
        return _NoHook, ()


class _NoHook:
    def __call__(self, *heard: Any) -> None:
        pass


def caller() -> FrameType:
    """The frame of the module's call that has run the hook which asks: past that hook, its action and `Hook` itself."""
    return sys._getframe(3)


def is_running(call: FrameType) -> bool:
    """Whether this call is still on the way: one of the callers of what runs now."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame is not call:
        frame = frame.f_back
    return frame is not None


def is_method_running(owner: nn.Module) -> bool:
    """Whether one of the callers of what runs now is a method of `owner`."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_argcount and frame.f_locals.get(code.co_varnames[0]) is owner:
            return True
        frame = frame.f_back
    return False


def refuse_unhookable(root: object) -> None:
    """Refuse modules whose hooks would not fire, or would see a part of the batch."""
    if not isinstance(root, nn.Module):
        raise TapError(f"taps listen to an nn.Module, not to {type(root).__name__}")
    for path, module in root.named_modules():
        where = f"layer {path!r}" if path else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise TapError(f"{where} is a ScriptModule, whose layers take no hooks: tap the eager model instead")
        if isinstance(module, nn.DataParallel):
            raise TapError(f"{where} is wrapped in DataParallel, which splits the batch: tap its `.module` instead")
        if (
            "FullyShardedDataParallel" in (names := {cls.__name__ for cls in type(module).__mro__})
            or "FSDPModule" in names
        ):
            raise TapError(f"{where} is sharded by FSDP, whose layers do not hold their weights: tap the whole model")
        if hasattr(module, "_orig_mod"):
            raise TapError(f"{where} is compiled, and would pass over new hooks: tap its `._orig_mod` instead")
        if getattr(module, "_compiled_call_impl", None) is not None:
            raise TapError(f"{where} was compiled in place, and would pass over new hooks: tap it before `.compile()`")
