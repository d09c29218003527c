"""Memory that the process keeps between batches, instead of returning it to the system after every forward.

By default glibc returns a large block when it is freed, so that every forward allocates everything again: for AlexNet
on 64 images 54,000 pages, which the system has to find and clear, a sixth of the forward's time; for MobileNetV2 more
than half of it. Values are the same to the bit. See mallopt(3) and malloc_trim(3); other allocators (musl's, macOS's,
jemalloc) are left as they are.
"""

from __future__ import annotations

import ctypes
import gc
import os
import threading
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any, TypeVar

T = TypeVar("T")

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4

_KEPT = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1}

# Where glibc's own thresholds come to rest once blocks of many sizes have been freed.
_USUAL = {_MMAP_MAX: 65536, _MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20}

# Blocks of many sizes leave gaps that none of them fits into, so free memory is returned now and then.
_BATCHES = 16

_lock = threading.Lock()
_holders = 0


class Heap:
    """The memory of this process that is free and kept."""

    def __init__(self, libc: Any) -> None:
        self._libc = libc
        self._batches = 0

    def tidy(self) -> None:
        """To be called after each batch: now and then what is free goes back to the system, so that it cannot grow."""
        self._batches += 1
        if self._libc is not None and self._batches % _BATCHES == 0:
            self._libc.malloc_trim(0)


def keeping(items: Generator[T, None, None]) -> Generator[T, None, None]:
    """The items. Until they end, or are closed, the process keeps the memory that it frees."""
    with closing(items), kept() as heap:
        for item in items:
            yield item
            heap.tidy()


@contextmanager
def kept() -> Iterator[Heap]:
    """Within the block, memory that is freed stays with the process; at its end it goes back to the system.

    For a run only: these are settings of the whole process. glibc cannot say what they were, so afterwards they are
    where its own come to rest, and nothing is set where the environment sets one of them.
    """
    global _holders
    libc = None if _is_set_by_user() else _glibc()
    if libc is None:
        yield Heap(None)
        return
    with _lock:
        _holders += 1
        _set(libc, _KEPT)
    try:
        yield Heap(libc)
    finally:
        with _lock:
            _holders -= 1
            if not _holders:
                _set(libc, _USUAL)
                libc.malloc_trim(0)


@contextmanager
def uncollected() -> Iterator[None]:
    """Disable the garbage collector in the block: it scans a large library again and again while that is imported."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _is_set_by_user() -> bool:
    by_name = any(f"MALLOC_{name}_" in os.environ for name in ("MMAP_MAX", "MMAP_THRESHOLD", "TRIM_THRESHOLD"))
    return by_name or "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", "")


def _set(libc: Any, values: dict[int, int]) -> None:
    for parameter, value in values.items():
        libc.mallopt(parameter, value)


def _glibc() -> Any:
    """The C library, None where it is another one."""
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):
        return None
    return libc if hasattr(libc, "gnu_get_libc_version") else None
