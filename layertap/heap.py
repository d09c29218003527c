"""Memory that the process keeps between batches, instead of giving it back to the system with every forward.

By itself glibc takes a large block from the system each time, and gives it back when it is freed: a forward of AlexNet
on 64 images then touches 54,000 pages that the system has to find and clear first, a quarter of its time. Values are
the same to the bit. See mallopt(3); other allocators (musl's, macOS's, jemalloc) are left as they are.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4

_KEPT = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1}

# Where glibc's own dynamic thresholds come to rest once blocks of some size have been freed.
_USUAL = {_MMAP_MAX: 65536, _MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20}

_lock = threading.Lock()
_holders = 0


@contextmanager
def kept() -> Iterator[None]:
    """Within the block, memory that is freed stays with the process; at its end it goes back to the system."""
    global _holders
    libc = _glibc()
    if libc is None:
        yield
        return
    with _lock:
        _holders += 1
        _set(libc, _KEPT)
    try:
        yield
    finally:
        with _lock:
            _holders -= 1
            if not _holders:
                _set(libc, _USUAL)
                libc.malloc_trim(0)


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
