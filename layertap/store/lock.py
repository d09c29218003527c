"""One run at a time in an output folder."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from layertap.errors import LOCKED, StoreError
from layertap.store.manifest import read_manifest
from layertap.store.replace import staging

# A run that only looks whether the folder is free holds it for a moment.
_ATTEMPTS, _PAUSE = 3, 0.01

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


def refuse_locked(path: Path) -> None:
    """Raise `StoreError` (5) if a live run holds the folder. The folder itself stays as it is."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _is_held(path) from None
    except OSError as error:
        # Without locks, the run says so when it takes one.
        if error.errno not in _NO_LOCKS:
            raise
    finally:
        os.close(descriptor)


def _locked(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _lock(descriptor)
            # Between opening and locking, a run may have put another folder into this place.
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except (BlockingIOError, FileNotFoundError):
            os.close(descriptor)
            raise _is_held(path) from None
        except OSError as error:
            os.close(descriptor)
            if error.errno in _NO_LOCKS:
                raise StoreError(
                    f"{path}: this file system has no locks (flock), so two runs could mix; use another file system"
                ) from error
            raise
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    for _ in range(_ATTEMPTS):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(_PAUSE)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_held(path: Path) -> StoreError:
    return StoreError(f"{path}: another run is writing here{_owner(path)}", code=LOCKED)


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
