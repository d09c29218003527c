"""The peak of memory in use."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(slots=True)
class Peak:
    """Bytes of the process, including libraries and the model, and of the GPU; None if the system reports no figure."""

    process: int | None = None
    device: int | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """The peak within the block, known after it."""
    found = Peak()
    resets = _reset()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    yield found
    if resets:
        found.process = _high_water()
    if device.type == "cuda":
        found.device = torch.cuda.max_memory_allocated(device)


def _reset() -> bool:
    try:
        # Linux: 5 sets the high-water mark to what is in use now.
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _high_water() -> int | None:
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), flags=re.MULTILINE)
    return int(found[1]) * 1024 if found else None
