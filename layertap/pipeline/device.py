"""How the model computes: its mode, device, memory format and precision; all are restored afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from layertap.errors import ConfigError
from layertap.taps.mode import eval_mode


@contextmanager
def ready(
    module: nn.Module, device: torch.device, memory_format: torch.memory_format = torch.preserve_format
) -> Iterator[None]:
    """The module in eval mode on `device`; every layer's mode and device are restored afterwards."""
    home = next((tensor.device for tensor in (*module.parameters(), *module.buffers())), device)
    try:
        if home != device:
            module.to(device)
        if memory_format is torch.channels_last:
            module.to(memory_format=memory_format)
        with eval_mode(module):
            yield
    finally:
        if memory_format is torch.channels_last:
            module.to(memory_format=torch.contiguous_format)
        if home != device:
            module.to(home)


@contextmanager
def rounding(tf32: bool | None) -> Iterator[None]:
    """Set whether NVIDIA GPUs may round to TF32 inside the block; None keeps the current setting."""
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        if tf32 is not None:
            for backend in backends:
                backend.allow_tf32 = tf32
        yield
    finally:
        if tf32 is not None:
            for backend, allowed in zip(backends, before, strict=True):
                backend.allow_tf32 = allowed


@contextmanager
def computing_threads(count: int | None) -> Iterator[None]:
    """Set torch's number of threads inside the block; None keeps the current one. Last bits depend on it."""
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        if count is not None:
            torch.set_num_threads(before)


def find_device(name: str) -> torch.device:
    """The device of a configuration's `device`. Raises `ConfigError` for one that this machine does not have."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"{name!r} is not a device; use auto, cpu, cuda, cuda:N or mps") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ConfigError(f"{name!r}: no such device: this machine has {count} CUDA devices; use auto or cpu")
        return torch.device("cuda", device.index or 0)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("'mps': no such device; use auto or cpu")
    return device
