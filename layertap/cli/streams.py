"""stdout and stderr that end early: a reader such as `head` that has seen enough, and a disk that is full."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TextIO

from layertap.errors import PIPE_CLOSED, STORAGE

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


@dataclass(slots=True)
class Ended:
    """How a command has ended."""

    code: int | None = None


@contextmanager
def whole_streams() -> Iterator[Ended]:
    """Run a command whose output may be cut short; `code` is then that of a closed pipe, or of storage."""
    ended = Ended()
    try:
        yield ended
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        ended.code = PIPE_CLOSED
    except SystemExit as error:
        # click catches a closed pipe on its own, and exits with the code of a bug.
        if not isinstance(error.__context__, BrokenPipeError):
            raise
        ended.code = PIPE_CLOSED
    except OSError as error:
        # An error about a file names it.
        if error.filename is not None or error.errno not in _FULL:
            raise
        with suppress(OSError):
            print(f"stdout: cannot be written to: {error.strerror}", file=sys.stderr)
        ended.code = STORAGE
    _discard_what_is_lost()


def _is_lost(stream: TextIO) -> bool:
    try:
        stream.flush()
    except (OSError, ValueError):
        return True
    return False


def _discard_what_is_lost() -> None:
    """Send what a stream still holds nowhere: the interpreter would complain of it at its end."""
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None and _is_lost(stream):
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)
