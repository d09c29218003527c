"""Where an image is decoded: in the thread that asks, or in a process of its own that may die of it."""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, Protocol

import PIL
from PIL import Image

from layertap.errors import ConfigError, ImageError
from layertap.images.decoding import decode, wire
from layertap.images.decoding.child import LENGTH, READY
from layertap.images.decoding.wire import Decoded
from layertap.images.failure_codes import refusal

# Isolated from the working directory, the environment and the user's site: the child finds the standard library, and
# then the two packages where this process has them.
_PLACES = dict.fromkeys(
    str(place) for place in (Path(__file__).absolute().parents[3], Path(str(PIL.__file__)).absolute().parents[1])
)
COMMAND = (
    *(sys.executable or "python3", "-I", "-S", "-c"),
    f"import sys; sys.path += {list(_PLACES)!r}; from layertap.images.decoding.child import main; main()",
)
"""What is started as the child. It is given the seconds it may take over an image, and the formats."""

_IMAGES_A_CHILD = 1_000

# Starting is python and Pillow from a disk that may be slow; it counts against no image.
_START_SECONDS = 60

# The child's own alarm comes after the parent's limit, which is the one that decides.
_GRACE_SECONDS = 2

# For the pixels of most images, so that their memory is not asked for again each time.
_ROOM = 2**22


class CannotStart(ConfigError):
    """There is no process to decode in: no image's failure, but the run's."""


class Decoder(Protocol):
    """What one worker decodes with. Only `end` is called by other threads."""

    def ready(self) -> None:
        """Do what counts against no image's time. Raises `CannotStart` where nothing can be decoded at all."""

    def decode(self, data: bytes | Image.Image) -> Decoded:
        """The image and its notes. Raises `ImageError`."""

    def end(self) -> None:
        """Give up what is being decoded, and let go of everything. Decodes nothing any more."""


class InThread:
    """Decodes in the thread that asks."""

    def __init__(self, formats: Sequence[str], enough: decode.Enough | None = None) -> None:
        self._formats = formats
        self._enough = enough

    def ready(self) -> None:
        pass

    def decode(self, data: bytes | Image.Image) -> Decoded:
        image = decode.decode(data, self._formats, self._enough)
        return image, decode.notes(image)

    def end(self) -> None:
        pass


class InProcess:
    """Decodes in a child process, and in another one where that died. What is an image already stays where it is."""

    def __init__(self, formats: Sequence[str], timeout: float, command: Sequence[str] = COMMAND) -> None:
        self._here = InThread(formats)
        self._command = [*command, str(math.ceil(timeout) + _GRACE_SECONDS), *formats]
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._ended = False

    def ready(self) -> None:
        if self._child is not None and self._child.images >= _IMAGES_A_CHILD:
            self._leave(self._child)
        if self._child is None:
            self._start()

    def decode(self, data: bytes | Image.Image) -> Decoded:
        if not isinstance(data, bytes):
            return self._here.decode(data)
        while True:
            child = self._child or self._start()
            try:
                return child.decode(data)
            except ImageError as error:
                if error.reason == "out_of_memory":
                    self._leave(child)
                raise
            except (OSError, ValueError) as error:
                self._leave(child)
                # Its alarm went off although the limit has not passed here: both were stopped, and only it goes by
                # the clock.
                if child.status != -signal.SIGALRM or self._ended:
                    raise refusal("decoder_crash") from error
            except BaseException:
                self._leave(child)  # with half an answer in its pipe
                raise

    def end(self) -> None:
        with self._lock:
            self._ended, child = True, self._child
        if child is not None:
            child.end()

    def _start(self) -> _Child:
        child = _Child(self._command)
        with self._lock:
            self._child, ended = child, self._ended
        if ended:
            child.end()
        try:
            child.greet()
        except (OSError, ValueError) as error:
            self._leave(child)
            raise CannotStart(_no_start(f"{error} (status {child.status})")) from error
        return child

    def _leave(self, child: _Child) -> None:
        child.end()
        with self._lock:
            self._child = None


class _Child:
    """One process. `status` is what it ended with, None while it lives."""

    def __init__(self, command: Sequence[str]) -> None:
        try:
            # A session of its own: what a terminal sends to the run on Ctrl-C is not for the child.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            raise CannotStart(_no_start(str(error))) from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests: BinaryIO = self._process.stdin  # type: ignore[assignment]
        self._answers: BufferedReader = self._process.stdout  # type: ignore[assignment]
        self._using = threading.Lock()
        self._ending = threading.Lock()
        self.status: int | None = None
        self.images = 0
        self._room = bytearray(_ROOM)

    def greet(self) -> None:
        """Wait until it is ready. Raises `OSError` or `ValueError` where it will not be."""
        with self._using:
            poll = select.poll()
            poll.register(self._answers, select.POLLIN)
            if not poll.poll(1000 * _START_SECONDS):
                raise ValueError(f"it was not ready within {_START_SECONDS} seconds")
            if self._answers.read(len(READY)) != READY:
                raise ValueError("it ended before it was ready")

    def decode(self, data: bytes) -> Decoded:
        """What it makes of the data. Raises `ImageError`, and `OSError` or `ValueError` where it died of it."""
        with self._using:
            self.images += 1
            self._requests.write(LENGTH.pack(len(data)))
            self._requests.write(data)
            self._requests.flush()
            return wire.receive(self._answers, self._room)

    def end(self) -> None:
        """Kill it, whatever it does, and let go of it. Any thread may, at any time."""
        with self._ending:
            if self.status is None:
                # The whole session, for a decoder may have started something; macOS has no permission for the dead.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self.status = self._process.wait()
        # Who is using the pipes finds them at their end, now that nobody is behind them; a number that is closed under
        # a reader could be another file's a moment later.
        if self._using.acquire(timeout=1):
            try:
                for pipe in (self._requests, self._answers):
                    with contextlib.suppress(OSError):
                        pipe.close()
            finally:
                self._using.release()


def _no_start(why: str) -> str:
    return f"isolation: cannot start a process to decode in: {why}; use `isolation: thread`, or mend it"
