"""A worker's signs of life: what it says of itself on the board, once a second."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

from layertap.errors import BUG, FOREIGN, LayertapError
from layertap.pipeline.attempting import RunOver
from layertap.records import WorkerReport, WorkerState
from layertap.store.board import Board

_SECONDS = 1.0


class Signs:
    """Says from a thread of its own what the worker is doing, for as long as the block lasts."""

    def __init__(self, board: Board, name: str) -> None:
        self.images = 0
        self.device = ""
        self.computing: list[int] = []
        """The shards that have been begun and are not durable yet."""
        self._board = board
        self._name = name
        self._state: WorkerState = "starting"
        self._error, self._code = "", 0
        self._seconds, self._since = 0.0, time.monotonic()
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._repeat, name="layertap-signs", daemon=True)

    def __enter__(self) -> Self:
        self._say()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._state not in ("refused", "failed"):
            self._state = "left"
        self._say()

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Say what the block raises."""
        try:
            yield
        except RunOver:
            raise
        except Exception as error:
            self._code = error.code if isinstance(error, LayertapError) else BUG
            self._state = "refused" if self._code == FOREIGN else "failed"
            self._error = str(error) if isinstance(error, LayertapError) else f"{type(error).__name__}: {error}"
            self._say()
            raise

    def begun(self, shard: int) -> None:
        """A shard's images are being read."""
        if self._state != "computing":
            self._since = time.monotonic()
        self._state = "computing"
        self.computing.append(shard)

    def done(self, shard: int) -> None:
        """A shard is durable."""
        self.computing.remove(shard)

    def waiting(self) -> None:
        """There is no shard to compute."""
        if self._state == "computing":
            self._seconds += time.monotonic() - self._since
        if self._state != "waiting":
            self._state = "waiting"
            self._say()

    def _repeat(self) -> None:
        while not self._ended.wait(_SECONDS):
            self._say()

    def _say(self) -> None:
        seconds = self._seconds + (time.monotonic() - self._since if self._state == "computing" else 0.0)
        report = WorkerReport(
            self._name,
            self._state,
            host=socket.gethostname(),
            pid=os.getpid(),
            device=self.device,
            shard=next(iter(self.computing), None),
            images=self.images,
            rate=self.images / seconds if seconds else 0.0,
            error=self._error,
            code=self._code,
        )
        # The run may be over, and its folder gone.
        with self._lock, suppress(OSError):
            self._board.report(report)
