"""The hooks on a tapped module, and what they know about the call in which they run."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import nn

from layertap.errors import TapError

ATTACHING = threading.Lock()
"""Held while hooks are registered: torch gives two hooks one id where two threads register at the same moment."""


class Hook:
    """A hook on one module that acts if `is_wanted` says so: calls in other threads belong to others.

    A copy or a pickle of the module that is made in the meantime has a hook that does nothing.
    """

    def __init__(self, module: nn.Module, act: Callable[..., None], is_wanted: Callable[[], bool]) -> None:
        self._module = module
        self._act = act
        self._is_wanted = is_wanted

    def __call__(self, module: nn.Module, *received: Any) -> None:
        # A shallow copy of the module shares its hooks, and its calls are not those of the tapped module. Within a
        # backward, checkpointing repeats earlier calls: these are not calls of the forward.
        if module is self._module and torch._C._current_graph_task_id() == -1 and self._is_wanted():
            self._act(*received)

    def __reduce__(self) -> tuple[type[_NoHook], tuple[()]]:
        return _NoHook, ()


class _NoHook:
    def __call__(self, *received: Any) -> None:
        pass


def calling_frame() -> FrameType:
    """The frame of the module's call whose hook asks: its callees are `Hook`, the hook's action and this function."""
    return sys._getframe(3)


def is_running(call: FrameType) -> bool:
    """Whether this call is still running: it is then one of the current callers."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame is not call:
        frame = frame.f_back
    return frame is not None


def is_running_anywhere(call: FrameType) -> bool:
    """Whether this call is still running, in any thread."""
    for frame in sys._current_frames().values():
        caller: FrameType | None = frame
        while caller is not None:
            if caller is call:
                return True
            caller = caller.f_back
    return False


def is_method_running(owner: nn.Module) -> bool:
    """Whether one of the current callers is a method of `owner`."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_argcount and frame.f_locals.get(code.co_varnames[0]) is owner:
            return True
        frame = frame.f_back
    return False


def refuse_unhookable(root: object) -> None:
    """Refuse modules whose hooks would not run, or would receive only a part of the batch."""
    if not isinstance(root, nn.Module):
        raise TapError(f"taps listen to an nn.Module, not to {type(root).__name__}")
    for path, module in root.named_modules():
        where = f"layer {path!r}" if path else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise TapError(f"{where} is a ScriptModule, which does not run hooks: tap the eager model instead")
        if isinstance(module, nn.DataParallel):
            raise TapError(f"{where} is wrapped in DataParallel, which splits the batch: tap its `.module` instead")
        if (
            "FullyShardedDataParallel" in (names := {cls.__name__ for cls in type(module).__mro__})
            or "FSDPModule" in names
        ):
            raise TapError(f"{where} is sharded by FSDP, whose layers do not hold their weights: tap the whole model")
        if hasattr(module, "_orig_mod"):
            raise TapError(f"{where} is compiled and would ignore new hooks: tap its `._orig_mod` instead")
        if getattr(module, "_compiled_call_impl", None) is not None:
            raise TapError(f"{where} was compiled in place and would ignore new hooks: tap it before `.compile()`")
