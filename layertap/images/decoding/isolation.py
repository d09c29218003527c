"""Where an image is decoded and prepared: in the thread that asks, or in a process of its own that may die of it."""

from __future__ import annotations

import contextlib
import select
import signal
import threading
from collections.abc import Callable, Sequence
from io import BufferedReader
from typing import Protocol

from PIL import Image

from layertap.contracts import Preprocessor
from layertap.errors import ImageError
from layertap.images.causes import check_form
from layertap.images.decoding import decode, wire
from layertap.images.decoding.bounds import DEFAULT, Bounds
from layertap.images.decoding.child import LENGTH, READY
from layertap.images.decoding.fork_server import ForkServer, cannot_start
from layertap.images.decoding.wire import Form, Prepared
from layertap.images.failure_codes import refusal

_IMAGES_A_CHILD = 1_000

# A fork starts at once; it does not count against any image.
_START_SECONDS = 60


class Decoder(Protocol):
    """What one worker decodes and prepares with. Only `end` is called by other threads."""

    def ready(self) -> None:
        """Do what counts against no image's time. Raises `CannotStart` where nothing can be decoded at all."""

    def prepared(self, data: bytes | Image.Image, decoded: Callable[[], None]) -> Prepared:
        """The tensor of an image, and its notes; calls `decoded` in between. Raises `ImageError`."""

    def end(self) -> None:
        """Give up what is being worked on, and let go of everything. Decodes nothing any more."""


class InThread:
    """Works in the thread that asks."""

    def __init__(
        self,
        preprocessor: Preprocessor,
        form: Form,
        formats: Sequence[str] = (),
        bounds: Bounds = DEFAULT,
        enough: decode.Enough | None = None,
    ) -> None:
        self._preprocessor = preprocessor
        self._form = form
        self._formats = formats
        self._bounds = bounds
        self._enough = enough

    def ready(self) -> None:
        pass

    def prepared(self, data: bytes | Image.Image, decoded: Callable[[], None]) -> Prepared:
        image = decode.decode(data, self._formats, self._enough, self._bounds, self._preprocessor.memory)
        notes = decode.notes(image)
        decoded()
        tensor = self._preprocessor.prepare(image)
        check_form(tensor, self._form)
        return tensor, notes

    def end(self) -> None:
        pass


class InProcess:
    """Works in a child process, and in another one where that died. An image that is already decoded stays here."""

    def __init__(self, here: InThread, form: Form, server: ForkServer) -> None:
        self._here = here
        self._form = form
        self._server = server
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._ended = False

    def ready(self) -> None:
        if self._child is not None and self._child.images >= _IMAGES_A_CHILD:
            self._leave(self._child)
        if self._child is None:
            self._start()

    def prepared(self, data: bytes | Image.Image, decoded: Callable[[], None]) -> Prepared:
        if not isinstance(data, bytes):
            return self._here.prepared(data, decoded)
        while True:
            child = self._child or self._start()
            try:
                return child.prepared(data, self._form, decoded)
            except ImageError as error:
                if error.reason == "out_of_memory":
                    self._leave(child)
                raise
            except (OSError, ValueError) as error:
                self._leave(child)
                # Its alarm ended it before the limit here: both were stopped for a while, and only the alarm goes by
                # the clock.
                if child.status != -signal.SIGALRM or self._ended:
                    raise refusal("decoder_crash") from error
            except BaseException:
                self._leave(child)  # with half an answer on its way
                raise

    def end(self) -> None:
        with self._lock:
            self._ended, child = True, self._child
        if child is not None:
            child.end()

    def _start(self) -> _Child:
        child = _Child(self._server)
        with self._lock:
            self._child, ended = child, self._ended
        if ended:
            child.end()
        try:
            child.greet()
        except (OSError, ValueError) as error:
            self._leave(child)
            raise cannot_start(f"{error} (status {child.status})") from error
        return child

    def _leave(self, child: _Child) -> None:
        child.end()
        with self._lock:
            self._child = None


class _Child:
    """One process. `status` is what it ended with, None while it lives."""

    def __init__(self, server: ForkServer) -> None:
        self._server = server
        self._number, self._socket = server.fork()
        self._answers: BufferedReader = self._socket.makefile("rb")
        self._using = threading.Lock()
        self._ending = threading.Lock()
        self._over = False
        self.status: int | None = None
        self.images = 0

    def greet(self) -> None:
        """Wait until it is ready. Raises `OSError` or `ValueError` where it will not be."""
        with self._using:
            if not select.select([self._socket], [], [], _START_SECONDS)[0]:
                raise ValueError(f"it was not ready within {_START_SECONDS} seconds")
            if self._answers.read(len(READY)) != READY:
                raise ValueError("it ended before it was ready")

    def prepared(self, data: bytes, form: Form, decoded: Callable[[], None]) -> Prepared:
        """What it makes of the data. Raises `ImageError`, and `OSError` or `ValueError` where it died of it."""
        with self._using:
            self.images += 1
            self._socket.sendall(LENGTH.pack(len(data)))
            self._socket.sendall(data)
            return wire.receive(self._answers, form, decoded)

    def end(self) -> None:
        """Kill it, whatever it does, and let go of it. Any thread may, at any time."""
        with self._ending:
            if not self._over:
                self.status = self._server.end(self._number)
                self._over = True
        # A reader now finds the end of the data. The descriptor is closed after that: if it were closed during a read,
        # it could belong to another file a moment later.
        if self._using.acquire(timeout=1):
            try:
                with contextlib.suppress(OSError):
                    self._answers.close()
                    self._socket.close()
            finally:
                self._using.release()
