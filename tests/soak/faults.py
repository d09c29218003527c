"""The operations of a process on the files of one folder: counted, recorded, and made to fail at one of them.

Installed in a forked child, it is between the run and the operating system. Content goes through its own raw file, so
that an operation is one `write(2)` and not one call of `file.write`. Each event is appended to the trace as it happens,
and a child killed at operation N leaves the trace of the N operations before.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Event = tuple[Any, ...]

TAKES_SPACE = ("create", "write", "mkdir", "link", "rename", "fsync")
CHANGES = (*TAKES_SPACE, "unlink", "rmdir")

_installed: Faults | None = None


@dataclass(frozen=True)
class Fault:
    """A fault at operation number `at` (from 1), or at every operation of the kinds in `kinds` from there on.

    `how` is `before`, `after` or `torn` (half of a write) for a SIGKILL, `pause` for a SIGSTOP, or an errno by name.
    A persistent error, such as a full disk, also affects every later operation of these kinds.
    """

    at: int
    how: str
    kinds: tuple[str, ...] = ()

    def meets(self, number: int, kind: str) -> bool:
        return number >= self.at and kind in self.kinds if self.kinds else number == self.at


class Faults:
    """The operations below `place`, in the order in which they happen; names in the trace are relative to it."""

    def __init__(self, place: Path, trace: Path, fault: Fault | None = None) -> None:
        self._place = os.path.realpath(place)
        self._fault = fault
        self._lock = threading.RLock()
        self._real = {name: getattr(os, name) for name in (*_PATHS, "open", "write", "pwrite", "fsync", "ftruncate")}
        self._trace = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self._files: dict[int, int] = {}
        self._names: dict[int, str] = {}
        self._opened = 0
        self.count = 0

    def install(self) -> None:
        """Replace the functions of `os`, `io` and `builtins` until this process ends."""
        global _installed
        _installed = self
        for name in _PATHS:
            setattr(os, name, self._path_call(name))
        os.open, os.write, os.pwrite, os.ftruncate = self.open, self.write, self.pwrite, self.truncate
        os.fsync = os.fdatasync = self.fsync
        io.open = builtins.open = self._python_open(io.open)

    def restart(self, trace: Path, fault: Fault | None) -> None:
        """Count from 1 again in a forked process, with a trace and a fault of its own."""
        self._trace = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self._fault, self.count, self._lock = fault, 0, threading.RLock()

    def mark(self, *what: Any) -> None:
        """Record something in the trace that is not an operation."""
        with self._lock:
            self._record("mark", *what)

    def open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        """`os.open`."""
        name = self._inside(path, dir_fd)
        with self._lock:
            if name is None:
                return self._known(self._real["open"](path, flags, mode, dir_fd=dir_fd), None)
            creates = flags & os.O_CREAT and not os.path.lexists(path)
            empties = flags & os.O_TRUNC and not creates
            self._opened += 1
            handle = self._opened
            self._names[handle] = name
            if not (creates or empties):
                descriptor = self._real["open"](path, flags, mode, dir_fd=dir_fd)
                self._record("open", name, handle)
                return self._known(descriptor, handle)

            def act() -> int:
                return self._known(self._real["open"](path, flags, mode, dir_fd=dir_fd), handle)

            return self._operate("create", act, "create" if creates else "empty", name, handle)

    def write(self, descriptor: int, data: Any) -> int:
        """`os.write`."""
        return self._write(descriptor, data, lambda piece: self._real["write"](descriptor, piece))

    def pwrite(self, descriptor: int, data: Any, offset: int) -> int:
        """`os.pwrite`."""
        return self._write(descriptor, data, lambda piece: self._real["pwrite"](descriptor, piece, offset), offset)

    def truncate(self, descriptor: int, length: int) -> None:
        """`os.ftruncate`."""
        handle = self._files.get(descriptor)
        if handle is None:
            return self._real["ftruncate"](descriptor, length)
        return self._operate("write", lambda: self._real["ftruncate"](descriptor, length), "truncate", handle, length)

    def fsync(self, file: Any) -> None:
        """`os.fsync` and `os.fdatasync`."""
        descriptor = file if isinstance(file, int) else file.fileno()
        handle = self._files.get(descriptor)
        if handle is None:
            return self._real["fsync"](descriptor)
        return self._operate("fsync", lambda: self._real["fsync"](descriptor), "fsync", handle)

    def _write(self, descriptor: int, data: Any, act: Callable[[Any], int], offset: int | None = None) -> int:
        handle = self._files.get(descriptor)
        if handle is None:
            return act(data)
        data = memoryview(data).cast("B")
        with self._lock:
            if offset is None:
                offset = os.lseek(descriptor, 0, os.SEEK_CUR)
            half = bytes(data[: len(data) // 2])

            def torn() -> None:
                act(half)
                self._record("write", handle, offset, half)

            return self._operate("write", lambda: act(data), "write", handle, offset, bytes(data), torn=torn)

    def _path_call(self, name: str) -> Callable[..., Any]:
        real, kind = self._real[name], _PATHS[name]
        two = kind in ("rename", "link")

        def call(*args: Any, **kwargs: Any) -> Any:
            where = [kwargs.get("src_dir_fd", kwargs.get("dir_fd")), kwargs.get("dst_dir_fd")]
            names = [self._inside(path, fd) for path, fd in zip(args[: 1 + two], where, strict=False)]
            if None in names:
                return real(*args, **kwargs)
            return self._operate(kind, lambda: real(*args, **kwargs), kind, *names)

        return call

    def _operate(self, kind: str, act: Callable[[], Any], *event: Any, torn: Callable[[], None] | None = None) -> Any:
        with self._lock:
            self.count += 1
            fault = self._fault if self._fault and self._fault.meets(self.count, kind) else None
            if fault and fault.how == "pause":
                os.kill(os.getpid(), signal.SIGSTOP)
                fault = None
            if fault and fault.how == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault and fault.how not in ("before", "after"):
                if torn:
                    torn()
                if fault.how == "torn":
                    os.kill(os.getpid(), signal.SIGKILL)
                if kind == "fsync" and fault.how == "EIO":
                    self._lose(self._names[event[1]])
                number = getattr(errno, fault.how)
                self._record("failed", self.count, *event[:3])
                raise OSError(number, os.strerror(number), str(event[1]))
            try:
                result = act()
            except OSError:
                self._record("refused", *event)
                raise
            else:
                self._record(*event)
            finally:
                if fault:
                    os.kill(os.getpid(), signal.SIGKILL)
            return result

    def _lose(self, name: str) -> None:
        """Act like a disk that could not write a file's pages: they are lost, although the file exists."""
        path = os.path.join(self._place, name)
        if os.path.isfile(path):
            descriptor = self._real["open"](path, os.O_WRONLY)
            self._real["write"](descriptor, bytes(os.path.getsize(path)))
            os.close(descriptor)

    def _python_open(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def opened(
            file: Any,
            mode: str = "r",
            buffering: int = -1,
            encoding: str | None = None,
            errors: str | None = None,
            newline: str | None = None,
            closefd: bool = True,
            opener: Any = None,
        ) -> Any:
            inside = self._files.get(file) if isinstance(file, int) else self._inside(file, None)
            if inside is None or not set(mode) & set("wax+"):
                return real(file, mode, buffering, encoding, errors, newline, closefd, opener)
            raw = _Raw(self, file, mode, closefd, opener)
            if buffering == 0:
                return raw
            buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

        return opened

    def _inside(self, path: Any, dir_fd: int | None) -> str | None:
        """The name of a path below the place, None for any other path."""
        if isinstance(path, int):
            return None
        text = os.fsdecode(path)
        if dir_fd is not None and not os.path.isabs(text):
            text = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), text)
        folder, base = os.path.split(os.path.abspath(text))
        text = os.path.join(os.path.realpath(folder), base)
        if text == self._place:
            return "."
        return os.path.relpath(text, self._place) if text.startswith(self._place + os.sep) else None

    def _known(self, descriptor: int, handle: int | None) -> int:
        # The kernel reuses numbers: one that now belongs to another file must not be taken for the old one.
        self._files.pop(descriptor, None)
        if handle is not None:
            self._files[descriptor] = handle
        return descriptor

    def _record(self, *event: Any) -> None:
        self._real["write"](self._trace, pickle.dumps(event))


class _Raw(io.FileIO):
    """A file with writes that count as operations."""

    def __init__(self, faults: Faults, file: Any, mode: str, closefd: bool, opener: Any) -> None:
        self._faults = faults
        mode = mode.replace("b", "").replace("t", "")
        super().__init__(file, mode, closefd, opener or (None if isinstance(file, int) else faults.open))

    def write(self, data: Any) -> int:
        return self._faults._write(self.fileno(), data, super().write)

    def truncate(self, size: int | None = None) -> int:
        size = self.tell() if size is None else size
        self._faults.truncate(self.fileno(), size)
        return size


_PATHS = {
    "mkdir": "mkdir",
    "rmdir": "rmdir",
    "unlink": "unlink",
    "remove": "unlink",
    "rename": "rename",
    "replace": "rename",
    "link": "link",
}


def restart(trace: Path, fault: Fault | None) -> None:
    """Count the operations of this forked process apart from its parent's."""
    if _installed is not None:
        _installed.restart(trace, fault)


def mark(*what: Any) -> None:
    """Record something that is not an operation in this process's trace, if it has one."""
    if _installed is not None:
        _installed.mark(*what)


def read_trace(path: Path) -> list[Event]:
    """The events of a trace, in order, without one that a kill cut off; none if the kill came before the first."""

    def events() -> Iterator[Event]:
        with path.open("rb") as file:
            while True:
                try:
                    yield pickle.load(file)
                except (EOFError, pickle.UnpicklingError):
                    return

    return list(events()) if path.exists() else []


def operations(trace: list[Event]) -> list[Event]:
    """The events that should change the disk, in order: number N of a run is the Nth of these."""
    return [event for event in trace if event[0] not in ("mark", "open", "failed")]
