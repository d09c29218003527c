"""Opening regular files, and telling one that has changed without reading it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from layertap.images.failure_codes import refusal


def file_stamp(facts: os.stat_result) -> str:
    """What identifies a file's version: its size and modification time."""
    return f"{facts.st_size} {facts.st_mtime_ns}"


def open_regular(path: str | Path, stamp: str | None = None) -> int:
    """A descriptor of a regular file, which the caller closes.

    Raises `OSError`, and `ImageError`: `not_regular`, or `changed` if the file does not have the given stamp.
    """
    # Opening a FIFO without a writer must not hang, and only a descriptor shows reliably what kind of file it is.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise refusal("not_regular")
        if stamp not in (None, file_stamp(facts)):
            raise refusal("changed")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
