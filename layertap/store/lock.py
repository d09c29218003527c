"""One run at a time in an output folder."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from layertap.errors import LOCKED, StoreError
from layertap.store.manifest import read_manifest
from layertap.store.replace import staging

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class Lock:
    """A lock on the folder itself: it leaves no file, and the kernel releases it when the process ends.

    The lock of a process that died is therefore free at once, and a suspended process keeps its lock. Raises
    `StoreError` (5) naming the run if a live run holds it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = _locked(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Release the folder."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _locked(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between opening and locking, a run may have put another folder into this place.
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except (BlockingIOError, FileNotFoundError):
            os.close(descriptor)
            raise StoreError(f"{path}: another run is writing here{_owner(path)}", code=LOCKED) from None
        except OSError as error:
            os.close(descriptor)
            if error.errno in _NO_LOCKS:
                raise StoreError(
                    f"{path}: this file system has no locks (flock), so two runs could mix; use another file system"
                ) from error
            raise
        os.close(descriptor)


def _owner(path: Path) -> str:
    # A run that replaces a finished output records its owner in the folder that it builds next to it.
    for folder in (path, staging(path)):
        try:
            manifest = read_manifest(folder)
        except StoreError:
            continue
        if manifest and manifest.owner:
            return f": {manifest.owner}"
    return ""
