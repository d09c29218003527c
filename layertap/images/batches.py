"""Records -> batches: in order, bounded, prepared on threads straight into the batch's memory."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal, TypeVar

import torch
from PIL import Image
from torch import Tensor

from layertap.contracts import Preprocessor
from layertap.errors import ImageError, PluginError, within
from layertap.images.decoding import decode
from layertap.images.decoding.bounds import DEFAULT, Bounds
from layertap.images.decoding.child import Task
from layertap.images.decoding.decode import Enough
from layertap.images.decoding.fork_server import COMMAND, ForkServer
from layertap.images.decoding.isolation import Decoder, InProcess, InThread
from layertap.images.workers import Pending, Workers
from layertap.plugins import guard, label_of
from layertap.records import Batch, Planned
from layertap.timing import Stopwatch

T = TypeVar("T")

# Batches in memory ahead of the model: its next one, and one that is being decoded in the meantime.
_AHEAD = 2

_GRACE_SECONDS = 2


@dataclass(frozen=True, slots=True)
class Decoding:
    """How images are decoded and prepared: which formats besides the standard ones, within which bounds, and where.

    `timeout` is the number of seconds from when an image is read until it is prepared. `enough` comes from the
    preprocessor if a JPEG may be decoded at a reduced size; a process always decodes the full size. `command` starts
    the process that forks those.
    """

    formats: tuple[str, ...] = ()
    timeout: float = 10.0
    isolation: Literal["thread", "process"] = "thread"
    bounds: Bounds = DEFAULT
    enough: Enough | None = None
    command: tuple[str, ...] = COMMAND

    @contextmanager
    def decoders(self, preprocessor: Preprocessor, slot: Slot) -> Iterator[Callable[[], Decoder]]:
        """A function that makes the decoder of one worker. It is valid inside the block."""
        form = None if slot.other else slot.shape, slot.dtype
        here = InThread(preprocessor, form, self.formats, self.bounds, self.enough)
        if self.isolation == "thread":
            yield lambda: here
            return
        # The child's own alarm comes after the limit here, which is the one that decides.
        seconds = math.ceil(self.timeout) + _GRACE_SECONDS
        task = Task(preprocessor, preprocessor.profile, form, self.formats, self.bounds, seconds)
        with closing(ForkServer(task, self.command)) as server:
            yield lambda: InProcess(here, form, server)


@dataclass(frozen=True, slots=True)
class Slot:
    """The shape and dtype that every prepared image has; `pinned` if a device copies from it on its own.

    `other` is set where the preprocessor gives images of different sizes: then `shape` is only that of the first, and
    `other` is another one. `differs` says that images of both were found.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    pinned: bool = False
    other: tuple[int, ...] | None = None
    differs: bool = False

    @classmethod
    def of(cls, preprocessor: Preprocessor, device: torch.device) -> Slot:
        """The form of what `prepare` returns for a synthetic image. Raises `PluginError` if that is not a tensor.

        `other` is the shape of a larger one of other proportions, if it is another.
        """
        decode.refuse_lenient()
        width, height = preprocessor.example
        prepared = _synthetic(preprocessor, (width, height))
        try:
            larger = _synthetic(preprocessor, (width + width // 2 + 7, 2 * height + 13))
        except (PluginError, ImageError):
            larger = prepared  # it takes images of one size only
        shape, other = tuple(prepared.shape), tuple(larger.shape)
        return cls(shape, prepared.dtype, device.type == "cuda", None if other == shape else other)

    def seen(self, batches: Iterable[Batch]) -> Slot:
        """This slot with the shape of the first good image in `batches` of sizes of their own, and another shape."""
        found = dict.fromkeys(tuple(image.shape) for batch in batches for image in batch.sized.values())
        if not found:
            return self
        shape, *others = found
        synthetic = (other for other in (self.other, self.shape) if other != shape)
        return replace(self, shape=shape, other=others[0] if others else next(synthetic), differs=bool(others))

    def batch(self, count: int) -> Tensor:
        """Memory for `count` prepared images. Threads fill it, which a caller's inference mode does not reach."""
        with torch.inference_mode(False):
            return torch.empty((count, *self.shape), dtype=self.dtype, pin_memory=self.pinned)

    def zeros(self, count: int) -> Tensor:
        """A batch of black images, for probing a model."""
        return self.batch(count).zero_()


def _synthetic(preprocessor: Preprocessor, size: tuple[int, int]) -> Tensor:
    with within("preprocess"), guard(preprocessor):
        prepared = preprocessor.prepare(Image.new("RGB", size, (124, 116, 104)))
    if not isinstance(prepared, Tensor):
        raise PluginError(f"{label_of(type(preprocessor))} gives {_described(prepared)}, not a tensor")
    return prepared


def _described(value: object) -> str:
    if isinstance(value, Image.Image):
        return "a PIL image"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def default_workers() -> int:
    """One decoding thread per core that this process may use."""
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

    A record that fails keeps its slot, filled with zeros. Where images have different sizes, each keeps its own.
    At most three batches are in memory. What the source raises
    is raised here. Close the iterator to stop the threads and processes; closing waits one second for those that hang.
    """
    waiting: deque[Pending] = deque()
    with (
        decoding.decoders(preprocessor, slot) as decoder,
        closing(Workers(workers, decoder, decoding.timeout)) as pool,
    ):
        for group in _groups(planned, batch_size):
            waiting.append(pool.fill(group, None if slot.other else slot.batch(len(group))))
            if len(waiting) > _AHEAD:
                yield waiting.popleft().done(stopwatch)
        while waiting:
            yield waiting.popleft().done(stopwatch)


def _groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group
