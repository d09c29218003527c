"""The process that decodes, and that a hostile image may kill: encoded bytes in, images out, until the end.

It loads Pillow and nothing larger. It outlives neither its parent, which it notices by the end of its input, nor an
image that takes too long, for which the alarm is set.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import sys
from typing import BinaryIO

from layertap.errors import ImageError
from layertap.images.decoding import decode, wire

READY = b"ready\n"
"""What it says once it can decode."""

LENGTH = struct.Struct(">Q")
"""What goes before an image's encoded bytes."""

_MEMORY = 2 * 2**30
_DESCRIPTORS = 32


def main() -> None:
    """Serve the standard input. Arguments: the seconds after which an image ends the process, then the formats."""
    seconds, *formats = sys.argv[1:]
    requests, answers = _pipes()
    _limit()
    answers.write(READY)
    answers.flush()
    while header := requests.read(LENGTH.size):
        data = requests.read(*LENGTH.unpack(header))
        signal.alarm(int(seconds))
        _serve(data, formats, answers)


def _serve(data: bytes, formats: list[str], answers: BinaryIO) -> None:
    reason = "error"
    try:
        image = decode.decode(data, formats)
        decoded = image, decode.notes(image)
    except ImageError as error:
        reason = error.reason
    except MemoryError:
        reason = "out_of_memory"
    except Exception:
        reason = "error"
    else:
        # The parent may take its time to read: it may have been stopped.
        signal.alarm(0)
        return wire.send_image(answers, decoded)
    signal.alarm(0)
    wire.send_failure(answers, reason)


def _pipes() -> tuple[BinaryIO, BinaryIO]:
    """The pipes to the parent, put where a decoder that prints does not reach them."""
    requests, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    os.close(nothing)
    return open(requests, "rb"), open(answers, "wb")


def _limit() -> None:
    """Take from this process what decoding does not need, as far as the system can."""
    import resource

    # Neither a parent's taste nor a thread's mask may disarm the alarm.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    limits = {"RLIMIT_CORE": 0, "RLIMIT_FSIZE": 0, "RLIMIT_NOFILE": _DESCRIPTORS}
    if (size := _address_space()) is not None:
        limits["RLIMIT_AS"] = size + _MEMORY
    for name, limit in limits.items():
        with contextlib.suppress(AttributeError, OSError, ValueError):
            kind = getattr(resource, name)
            hard = resource.getrlimit(kind)[1]
            limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
            resource.setrlimit(kind, (limit, limit))


def _address_space() -> int | None:
    """The bytes that this process has mapped; None where the system does not say, and hardly limits them either."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGESIZE")
    except OSError:
        return None
