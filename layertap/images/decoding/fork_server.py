"""The run's side of the process that forks those which decode and prepare."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import PIL

from layertap.errors import ConfigError
from layertap.images.decoding.child import ANSWER, END, FORK, LENGTH, READY, REQUEST, Task, packed
from layertap.plugins import label_of

# Isolated from the working directory, the environment and the user's site. It finds the standard library first, then
# the two packages where this process has them, then the other packages of this process.
_PLACES = dict.fromkeys(
    str(place) for place in (Path(__file__).absolute().parents[3], Path(str(PIL.__file__)).absolute().parents[1])
)
COMMAND = (
    *(sys.executable or "python3", "-I", "-S", "-c"),
    f"import sys; sys.path += {list(_PLACES)!r}; from layertap.images.decoding.child import main; main()",
)
"""What is started. It is given the number of its socket."""

# Starting is python, torch and the preprocessor from a disk that may be slow; it counts against no image.
_START_SECONDS = 120


class CannotStart(ConfigError):
    """There is no process to decode in: the run fails, and not one image."""


class ForkServer:
    """Started with the first child, and ended with all of them by `close`. Any thread may call anything."""

    def __init__(self, task: Task, command: Sequence[str] = COMMAND) -> None:
        self._task = task
        self._command = command
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._closed = False

    def fork(self) -> tuple[int, socket.socket]:
        """A new child, and this end of its socket. Raises `CannotStart`."""
        ours, theirs = socket.socketpair()
        with theirs, self._lock:
            try:
                control = self._started()
                socket.send_fds(control, [REQUEST.pack(FORK, 0)], [theirs.fileno()])
                return self._answer(control), ours
            except (OSError, ValueError) as error:
                ours.close()
                raise cannot_start(str(error)) from error
            except BaseException:
                ours.close()
                raise

    def end(self, child: int) -> int | None:
        """Kill a child, whatever it does, and give its status; None if the server has ended, and the child with it."""
        with self._lock:
            if self._control is None:
                return None
            try:
                self._control.sendall(REQUEST.pack(END, child))
                return self._answer(self._control)
            except (OSError, ValueError):
                return None

    def close(self) -> None:
        """End all children, and the server."""
        with self._lock:
            self._closed = True
            if self._control is not None:
                self._control.close()
                self._control = None
            if self._process is not None:
                try:
                    self._process.wait(1)
                except subprocess.TimeoutExpired:
                    self._process.kill()
                    self._process.wait()

    def _started(self) -> socket.socket:
        if self._closed:
            raise ValueError("it was ended")
        if self._control is not None:
            return self._control
        try:
            message = packed(self._task)
        except Exception as error:
            name = label_of(type(self._task.preprocessor))
            raise ValueError(f"{name} cannot be pickled ({error})") from error
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [*self._command, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
                start_new_session=True,
            )
        ours = self._control
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # its reason is read next
            ours.sendall(LENGTH.pack(len(message)) + message)
        if not select.select([ours], [], [], _START_SECONDS)[0]:
            raise ValueError(f"it was not ready within {_START_SECONDS} seconds")
        said = ours.recv(1024)
        if said != READY:
            raise ValueError(said.decode(errors="replace") or f"it ended before it was ready ({self._process.wait()})")
        return ours

    @staticmethod
    def _answer(control: socket.socket) -> int:
        answer = control.recv(ANSWER.size, socket.MSG_WAITALL)
        if len(answer) < ANSWER.size:
            raise ValueError("the process that forks has ended")
        (number,) = ANSWER.unpack(answer)
        return int(number)


def cannot_start(why: str) -> CannotStart:
    """The error for a process that cannot be started, and how to run without it."""
    return CannotStart(f"isolation: cannot start a process to decode in: {why}; use `isolation: thread`, or mend it")
