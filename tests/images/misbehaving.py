"""A child process as ours, but for images that begin with a word of `DEEDS`: those it does something at.

Started as `misbehaving.py FOLDER ...`, it forks children that hold a lock on FOLDER/PID for as long as they live.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from layertap.errors import ImageError
from layertap.images.decoding import child, decode, wire


def segfault() -> None:
    ctypes.string_at(0)


def abort() -> None:
    os.abort()


def leave() -> None:
    os._exit(0)


def leave_python() -> None:
    sys.exit("a decoder's own idea")


def hang() -> None:
    (FOLDER / "hung").touch()
    threading.Event().wait()


def eat() -> None:
    bytearray(2**33)


def alarm_once() -> None:
    try:
        (FOLDER / "alarmed").touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGALRM)


def talk() -> None:
    print("to the standard output", flush=True)
    print("to the standard error", file=sys.stderr, flush=True)
    os.write(1, b"past Python\n")
    os.write(2, b"past Python\n")


def tell_untruth() -> None:
    raise ImageError("a reason of its own")


def babble() -> None:
    wire.send_decoded = lambda pipe: pipe.writelines([b"\xff" * 100]) or pipe.flush()


def fill_disk() -> None:
    (FOLDER / "written").write_bytes(b"x")


# Each does its deed; where it comes back, the image is decoded as any other.
_DEEDS = (segfault, abort, leave, leave_python, hang, eat, alarm_once, talk, tell_untruth, babble, fill_disk)
DEEDS: dict[bytes, Callable[[], None]] = {deed.__name__.encode(): deed for deed in _DEEDS}


def decode_or(data: bytes, *how: object) -> Image.Image:
    word, _, rest = data.partition(b":")
    if word in DEEDS:
        DEEDS[word]()
        data = rest
    return real(data, *how)


def serve_as_one_of_the_brood(*arguments: object) -> None:
    alive = (FOLDER / str(os.getpid())).open("w")
    fcntl.flock(alive, fcntl.LOCK_EX)
    serve(*arguments)


if __name__ == "__main__":
    FOLDER = Path(sys.argv.pop(1))
    real, decode.decode = decode.decode, decode_or
    # The lock file is opened before the child's own limits: it may not write, and has few descriptors.
    serve, child.serve = child.serve, serve_as_one_of_the_brood
    child.main()
