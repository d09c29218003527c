"""Transfers between the host and the device: batches to it, activations back, during the computation if possible.

On CUDA a batch is copied on a stream of its own while the one before it is computed, and its activations come back on a
third while the next is. Every hand-over is an event that the next stream, or the host, waits for. Pinned memory comes
from torch's own pool, which gives a block out again only after the copies from it are done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

Values: TypeAlias = dict[str, Tensor]


class Transfer(Protocol):
    """How batches get to one device and values back."""

    behind: int
    """How many batches may be on the device before the values of the first are waited for."""

    def send(self, pixels: Tensor) -> Tensor:
        """The batch on the device, ready for what is computed next."""

    def fetch(self, values: Mapping[str, Tensor]) -> Callable[[], Values]:
        """Start to bring values to the host. What is returned waits for them."""


def transfer_for(device: torch.device) -> Transfer:
    """The transfer for a device."""
    return Streams(device) if device.type == "cuda" else Direct(device)


class Direct:
    """Copies and computes one after the other."""

    behind = 0

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def send(self, pixels: Tensor) -> Tensor:
        return pixels.to(self._device)

    def fetch(self, values: Mapping[str, Tensor]) -> Callable[[], Values]:
        fetched = {name: value.cpu() for name, value in values.items()}
        return lambda: fetched


class Streams:
    """A CUDA device: copies both ways during the computation."""

    behind = 1

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._there = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._back = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(self, pixels: Tensor) -> Tensor:
        computing = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._there):
            moved = pixels.to(self._device, non_blocking=True)
        computing.wait_stream(self._there)
        # The pool must not give its memory to the next copy before the computing is done with it.
        moved.record_stream(computing)
        return moved

    def fetch(self, values: Mapping[str, Tensor]) -> Callable[[], Values]:
        self._back.wait_stream(torch.cuda.current_stream(self._device))
        fetched: Values = {}
        with torch.cuda.stream(self._back):
            for name, value in values.items():
                dense = value.contiguous()
                fetched[name] = torch.empty(dense.shape, dtype=dense.dtype, pin_memory=True)
                fetched[name].copy_(dense, non_blocking=True)
                value.record_stream(self._back)
        arrived = self._back.record_event()

        def wait() -> Values:
            arrived.synchronize()
            return fetched

        return wait
