"""Random numbers in a model: whether it gives the same values twice, and how it is seeded."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from layertap.images.batches import Slot

Nondeterministic: TypeAlias = Literal["refuse", "seed"]

# Where the last bits may change, on other machines or by the atomic additions of a GPU: the share of a tap's largest
# value by which they may.
_TOLERANCES = {"float16": 1e-2, "bfloat16": 1e-1}
_TOLERANCE = 1e-3


def tolerance(dtype: str) -> float:
    """By which share of a tap's largest value two computations of it may differ where last bits may."""
    return _TOLERANCES.get(dtype, _TOLERANCE)


def noise(slot: Slot, count: int) -> Tensor:
    """A batch of images of random pixels, the same every time. Black images would hide a mask or a scaled noise."""
    generator = torch.Generator().manual_seed(0)
    batch = slot.batch(count)
    if batch.is_floating_point():
        return batch.copy_(torch.rand(batch.shape, generator=generator))
    top = 256 if batch.dtype is torch.uint8 else 2
    return batch.copy_(torch.randint(0, top, batch.shape, generator=generator))


def different(first: Mapping[str, Tensor], second: Mapping[str, Tensor], device: torch.device) -> list[str]:
    """The taps whose values differ: in any bit on a CPU, elsewhere by more than rounding. NaN equals NaN."""
    return [name for name, value in first.items() if not _same(value, second.get(name), device)]


def _same(first: Tensor, second: Tensor | None, device: torch.device) -> bool:
    if second is None or first.shape != second.shape or first.dtype != second.dtype:
        return False
    bits = [value.contiguous().flatten().view(torch.uint8) for value in (first, second)]
    if torch.equal(*bits):
        return True
    if not (first.is_floating_point() or first.is_complex()):
        return False
    wide = torch.complex128 if first.is_complex() else torch.float64
    one, other = first.to(wide), second.to(wide)
    missing = one.isnan()
    if not torch.equal(missing, other.isnan()):
        return False
    one, other = one.masked_fill(missing, 0), other.masked_fill(missing, 0)
    if device.type == "cpu":
        return torch.equal(one, other)
    share = tolerance(str(first.dtype).removeprefix("torch."))
    # Equal infinities have no difference.
    return bool(((one - other).masked_fill(one == other, 0).abs() <= share * one.abs().max()).all())


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """The random numbers of torch, NumPy and Python begin at `seed` inside; their states are put back afterwards."""
    states = _states(device)
    try:
        # torch.manual_seed would also seed the devices whose state is not put back.
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        elif device.type == "mps":
            torch.mps.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield
    finally:
        _put_back(states, device)


class Draws:
    """Whether anything has drawn random numbers since this was made."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = _comparable(device)

    def __bool__(self) -> bool:
        return self._before != _comparable(self._device)


def _states(device: torch.device) -> tuple[Tensor, Tensor | None, tuple[object, ...], tuple[object, ...]]:
    accelerator = None
    if device.type == "cuda":
        accelerator = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        accelerator = torch.mps.get_rng_state()
    return torch.get_rng_state(), accelerator, np.random.get_state(), random.getstate()  # type: ignore[return-value]


def _put_back(
    states: tuple[Tensor, Tensor | None, tuple[object, ...], tuple[object, ...]], device: torch.device
) -> None:
    host, accelerator, numpys, pythons = states
    torch.set_rng_state(host)
    if accelerator is not None:
        if device.type == "cuda":
            torch.cuda.set_rng_state(accelerator, device)
        else:
            torch.mps.set_rng_state(accelerator)
    np.random.set_state(numpys)  # type: ignore[arg-type]
    random.setstate(pythons)


def _comparable(device: torch.device) -> tuple[object, ...]:
    host, accelerator, numpys, pythons = _states(device)
    tensors = [bytes(state.numpy()) for state in (host, accelerator) if state is not None]
    return (*tensors, str(numpys[2:]), np.asarray(numpys[1]).tobytes(), pythons)
