"""The process that decodes and prepares, and that a hostile image may kill: encoded bytes in, tensors out.

One process loads torch and the preprocessor once, and never sees an image. On request it forks the processes that do:
each starts at once and shares what was loaded. The first process has a single thread, so it can fork safely, which the
run's own process cannot. None of them outlives the run: the first notices the end of its socket and ends the others. An
alarm ends a process that takes too long over an image.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import os
import pickle
import signal
import socket
import struct
import sys
from dataclasses import dataclass
from typing import BinaryIO

from layertap.contracts import Preprocessor
from layertap.images.causes import cause_of, check_form, reason_of
from layertap.images.decoding import decode, wire
from layertap.images.decoding.bounds import Bounds
from layertap.records import Profile

READY = b"ready\n"
"""What a process says once it can work."""

LENGTH = struct.Struct(">Q")
"""The length in front of a message's bytes."""

REQUEST = struct.Struct(">cq")
"""A request to the process that forks: `FORK`, with the child's end of a socket, or `END` and the child."""

ANSWER = struct.Struct(">q")
"""Its answer: the number of the child, or the status that the child ended with."""

FORK, END = b"f", b"e"

# In addition to what one image may take: memory that allocators keep, and codecs that are loaded late.
_SLACK = 256 * 2**20
_DESCRIPTORS = 64


@dataclass(frozen=True, slots=True)
class Task:
    """What the children do: `form` is the shape and dtype that every image is prepared to."""

    preprocessor: Preprocessor
    profile: Profile
    form: wire.Form
    formats: tuple[str, ...]
    bounds: Bounds
    seconds: int


def packed(task: Task) -> bytes:
    """The task as a message. Raises whatever pickling the preprocessor raises."""
    module = sys.modules[type(task.preprocessor).__module__]
    return pickle.dumps((sys.path, module.__name__, getattr(module, "__file__", None), pickle.dumps(task)))


def main() -> None:
    """Serve the socket whose number is the last argument, until its other end is closed."""
    control = socket.socket(fileno=int(sys.argv[-1]))
    try:
        task = _unpacked(_message(control))
        _rehearse(task)
    except Exception as error:
        said = str(error).partition("\n")[0] or type(error).__name__
        control.sendall(f"{type(error).__name__}: {said}"[:500].encode())
        return
    control.sendall(READY)
    _fork_on_request(control, task)


def _message(control: socket.socket) -> bytes:
    with control.makefile("rb") as requests:
        return requests.read(*LENGTH.unpack(requests.read(LENGTH.size)))


def _unpacked(message: bytes) -> Task:
    places, name, file, task = pickle.loads(message)
    # After this process's own entries, so that the working directory shadows nothing.
    sys.path += [place for place in places if place and place not in sys.path]
    try:
        importlib.import_module(name)
    except ImportError:
        spec = importlib.util.spec_from_file_location(name, file) if file else None
        if spec is None or spec.loader is None:
            raise
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    found = pickle.loads(task)
    assert isinstance(found, Task)
    return found


def _rehearse(task: Task) -> None:
    """Prepare a synthetic image, so that everything which preparing needs is loaded before the first fork."""
    import torch
    from PIL import Image

    torch.set_num_threads(1)  # a child would not have the threads, and there is one child per worker
    task.preprocessor.profile = task.profile
    task.preprocessor.prepare(Image.new("RGB", task.preprocessor.example))


def _fork_on_request(control: socket.socket, task: Task) -> None:
    children: set[int] = set()
    gc.collect()
    gc.freeze()
    while True:
        request, descriptors, _, _ = socket.recv_fds(control, REQUEST.size, 1)
        if len(request) < REQUEST.size:
            break
        kind, number = REQUEST.unpack(request)
        if kind == FORK:
            number = os.fork()
            if number == 0:
                control.close()
                _live(descriptors[0], task)
            os.close(descriptors[0])
            children.add(number)
            control.sendall(ANSWER.pack(number))
        else:
            control.sendall(ANSWER.pack(_ended(number)))
            children.discard(number)
    for child in children:
        _ended(child)


def _ended(child: int) -> int:
    """Kill a child and whatever it has started, and return its status."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _live(descriptor: int, task: Task) -> None:
    """The life of a child: serve one socket until it is closed."""
    try:
        # In a session of its own, it does not get the terminal's Ctrl-C.
        os.setsid()
        with socket.socket(fileno=descriptor) as end, end.makefile("rb") as requests, end.makefile("wb") as answers:
            limit(task.bounds.memory)
            serve(requests, answers, task)
    finally:
        os._exit(0)


def serve(requests: BinaryIO, answers: BinaryIO, task: Task) -> None:
    """Answer every request with a prepared image or a reason."""
    answers.write(READY)
    answers.flush()
    while header := requests.read(LENGTH.size):
        data = requests.read(*LENGTH.unpack(header))
        signal.alarm(task.seconds)
        _answer(data, answers, task)


def _answer(data: bytes, answers: BinaryIO, task: Task) -> None:
    try:
        image = decode.decode(data, task.formats, None, task.bounds, task.preprocessor.memory)
        notes = decode.notes(image)
        wire.send_decoded(answers)
        prepared = task.preprocessor.prepare(image)
        check_form(prepared, task.form)
    except Exception as error:
        reason, cause = reason_of(error), cause_of(error)
    else:
        # The run may be slow to read: it may have been stopped.
        signal.alarm(0)
        return wire.send_prepared(answers, (prepared, notes))
    signal.alarm(0)
    wire.send_failure(answers, reason, cause)


def limit(memory: int) -> None:
    """Limit this process to what one image needs, as far as the system can."""
    import resource

    # Neither an inherited handler nor a signal mask may disable the alarm.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    limits = {"RLIMIT_CORE": 0, "RLIMIT_FSIZE": 0, "RLIMIT_NOFILE": _DESCRIPTORS}
    if (size := _address_space()) is not None:
        limits["RLIMIT_AS"] = size + memory + _SLACK
    for name, most in limits.items():
        with contextlib.suppress(AttributeError, OSError, ValueError):
            kind = getattr(resource, name)
            hard = resource.getrlimit(kind)[1]
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(kind, (most, most))


def _address_space() -> int | None:
    """The bytes that this process has mapped; None if the system does not report it."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGESIZE")
    except OSError:
        return None
