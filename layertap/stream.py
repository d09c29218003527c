"""Records -> batches: in order, bounded, decoded on threads straight into the batch's memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Literal, TypeVar

import torch
from PIL import Image
from torch import Tensor

from layertap import decode
from layertap.contracts import Preprocessor
from layertap.errors import ImageError, PluginError
from layertap.plugins import guard
from layertap.reading import read
from layertap.records import Batch, Failure, Planned
from layertap.timing import Stopwatch

T = TypeVar("T")

# Batches in memory ahead of the model: one that it works on next, and one that is being decoded meanwhile.
_AHEAD = 2


@dataclass(frozen=True, slots=True)
class Decoding:
    """How images are decoded: which formats besides the standard ones, within how many seconds an image, and where."""

    formats: tuple[str, ...] = ()
    timeout: float = 10.0
    isolation: Literal["thread", "process"] = "thread"


@dataclass(frozen=True, slots=True)
class Slot:
    """The shape and dtype that every prepared image has."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, preprocessor: Preprocessor) -> Slot:
        """What `prepare` gives, seen on one synthetic image. Raises `PluginError` where it gives no tensor."""
        decode.refuse_lenient()
        with guard(preprocessor):
            prepared = preprocessor.prepare(Image.new("RGB", (640, 480), (124, 116, 104)))
        if not isinstance(prepared, Tensor):
            raise PluginError(
                f"the preprocessor {type(preprocessor).__name__} prepares a {type(prepared).__name__}, not a tensor"
            )
        return cls(tuple(prepared.shape), prepared.dtype)

    def batch(self, count: int) -> Tensor:
        """Room for `count` prepared images, for threads to fill that a caller's inference mode does not reach."""
        with torch.inference_mode(False):
            return torch.empty((count, *self.shape), dtype=self.dtype)

    def zeros(self, count: int) -> Tensor:
        """A batch of black images, to probe a model with."""
        return self.batch(count).zero_()


def default_workers() -> int:
    """One decoding thread a core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def batches(
    planned: Iterable[Planned],
    preprocessor: Preprocessor,
    slot: Slot,
    *,
    batch_size: int,
    workers: int,
    decoding: Decoding = Decoding(),
    stopwatch: Stopwatch | None = None,
) -> Generator[Batch, None, None]:
    """Batch i is records `[i * batch_size, (i + 1) * batch_size)`, whatever fails and however many workers there are.

    A record that fails keeps its slot, filled with zeros. At most three batches are in memory. Close the iterator to
    stop the threads.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="layertap-decode")
    waiting: deque[_Pending] = deque()
    try:
        for group in _groups(planned, batch_size):
            waiting.append(_Pending(group, preprocessor, slot, pool))
            if len(waiting) > _AHEAD:
                yield waiting.popleft().done()
        while waiting:
            yield waiting.popleft().done()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Pending:
    """A batch whose slots are being filled."""

    def __init__(self, group: list[Planned], preprocessor: Preprocessor, slot: Slot, pool: ThreadPoolExecutor) -> None:
        self.records = [planned.record for planned in group]
        self.pixels = slot.batch(len(group))
        self.futures: list[Future[Failure | None]] = [
            pool.submit(_fill, planned, preprocessor, self.pixels[index]) for index, planned in enumerate(group)
        ]

    def done(self) -> Batch:
        found = ((index, future.result()) for index, future in enumerate(self.futures))
        return Batch(self.records, self.pixels, {index: failure for index, failure in found if failure is not None})


def _fill(planned: Planned, preprocessor: Preprocessor, slot: Tensor) -> Failure | None:
    """Read, decode and prepare one image into its slot; the failure if it cannot be."""
    stage = "read"
    try:
        data = read(planned)
        stage = "decode"
        image = decode.decode(data)
        stage = "prepare"
        prepared = preprocessor.prepare(image)
        if prepared.shape != slot.shape or prepared.dtype != slot.dtype:
            raise ImageError("shape")
        slot.copy_(prepared)
    except ImageError as error:
        reason = error.reason
    except MemoryError:
        reason = "out_of_memory"
    except Exception:
        # A stranger's code may raise anything at an odd image; one image is never worth the run.
        reason = "error"
    else:
        return None
    slot.zero_()
    return Failure(planned.record, stage, reason)


def _groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group
