"""Threads that fill the slots of batches, and one that replaces a thread which takes too long over an image."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from queue import Empty, SimpleQueue

import torch
from torch import Tensor

from layertap.images.causes import cause_of, reason_of
from layertap.images.decoding.fork_server import CannotStart
from layertap.images.decoding.isolation import Decoder
from layertap.images.reading import read
from layertap.records import Batch, Failure, Planned
from layertap.timing import Stopwatch

# Time is counted in steps of at most this length, so that a process that was stopped for an hour has spent one step.
_SHORTEST_STEP, _LONGEST_STEP = 0.001, 0.1

# A signal between Python's last check and the wait itself does not end the wait: it is noticed after this time.
_NAP = 0.25

# How many seconds closing waits for images in progress.
_PATIENCE = 1.0


class Pending:
    """A batch whose slots are being filled."""

    def __init__(self, planned: Sequence[Planned], pixels: Tensor | None) -> None:
        self.planned = planned
        self._pixels = pixels
        self._sized: dict[int, Tensor] = {}
        self._left = len(planned)
        self._lock = threading.Lock()
        self._settled = threading.Event()
        self._failures: dict[int, Failure] = {}
        self._notes: dict[int, tuple[str, ...]] = {}
        self._seconds: dict[str, float] = {}
        self._fault: BaseException | None = None

    def put(self, index: int, prepared: Tensor) -> None:
        """Keep the prepared image of a slot: in the batch's memory, or as it is where images have different shapes."""
        if self._pixels is not None:
            self._pixels[index].copy_(prepared)
        else:
            with torch.inference_mode(False):
                kept = prepared.detach().clone()
            with self._lock:
                self._sized[index] = kept

    def clear(self, index: int) -> None:
        """Make a slot zeros."""
        if self._pixels is not None:
            self._pixels[index].zero_()

    def settle(
        self, index: int, seconds: Mapping[str, float], failure: Failure | None, notes: tuple[str, ...] = ()
    ) -> None:
        """Slot `index` is final: filled, or zeros for a `failure`."""
        with self._lock:
            for stage, spent in seconds.items():
                self._seconds[stage] = self._seconds.get(stage, 0.0) + spent
            if failure is not None:
                self._failures[index] = failure
            elif notes:
                self._notes[index] = notes
            self._left -= 1
            if not self._left:
                self._settled.set()

    def abort(self, fault: BaseException) -> None:
        """There is no batch, because of a fault that does not belong to one image."""
        self._fault = fault
        self._settled.set()

    def done(self, stopwatch: Stopwatch | None) -> Batch:
        """Wait for the batch. Raises the fault for which it was aborted."""
        while not self._settled.wait(_NAP):
            pass
        if self._fault is not None:
            raise self._fault
        if stopwatch is not None:
            for stage, spent in self._seconds.items():
                stopwatch.add(stage, spent)
        records = [planned.record for planned in self.planned]
        failures, notes = dict(sorted(self._failures.items())), dict(sorted(self._notes.items()))
        pixels = torch.empty(len(records), 0) if self._pixels is None else self._pixels
        return Batch(records, pixels, failures, notes, dict(sorted(self._sized.items())))


class Workers:
    """`count` threads, each with a decoder of its own.

    An image has `timeout` seconds from when it is read until it is prepared. A thread that is late is replaced
    by another one. It cannot be stopped, but its result is no longer written.
    """

    def __init__(self, count: int, decoder: Callable[[], Decoder], timeout: float) -> None:
        self._count = count
        self._decoder = decoder
        self._timeout = timeout
        self._queue: SimpleQueue[_Task | None] = SimpleQueue()
        self._workers: list[_Worker] = []
        self._replaced: list[_Worker] = []
        self._closing = threading.Event()
        self._watch = threading.Thread(target=self._keep_watch, name="layertap-decode-watch", daemon=True)

    def fill(self, planned: Sequence[Planned], pixels: Tensor | None) -> Pending:
        """Prepare the images into their slots of `pixels`, after everything that was requested earlier.

        Without `pixels`, each keeps its own shape.
        """
        if not self._workers:
            for _ in range(self._count):
                self._workers.append(self._hire())
            self._watch.start()
        pending = Pending(planned, pixels)
        for index in range(len(planned)):
            self._queue.put(_Task(pending, index))
        return pending

    def close(self) -> None:
        """Stop. Waits for images in progress, but not for threads that hang."""
        deadline = time.monotonic() + _PATIENCE
        self._closing.set()
        if self._watch.is_alive():
            self._watch.join(_PATIENCE)
        with contextlib.suppress(Empty):
            while True:
                self._queue.get_nowait()
        for worker in self._workers:
            self._queue.put(None)
            worker.decoder.end()
        for worker in (*self._workers, *self._replaced):
            worker.thread.join(max(0.0, deadline - time.monotonic()))

    def _hire(self) -> _Worker:
        worker = _Worker(self._queue, self._decoder())
        worker.thread.start()
        return worker

    def _keep_watch(self) -> None:
        step = max(_SHORTEST_STEP, min(_LONGEST_STEP, self._timeout / 4))
        before = time.monotonic()
        while not self._closing.wait(step):
            now = time.monotonic()
            passed, before = min(step, now - before), now
            for place, worker in enumerate(self._workers):
                task = worker.task
                if task is not None and task.spend(passed) > self._timeout:
                    self._replace(place, task)

    def _replace(self, place: int, task: _Task) -> None:
        stage = task.stage
        if not task.claim():
            return  # just in time
        late = self._workers[place]
        self._replaced.append(late)
        try:
            self._workers[place] = self._hire()
        except RuntimeError as fault:
            task.abort(fault)  # the system has no thread left
        else:
            task.settle(Failure(task.planned.record, stage, "timeout"), {stage: self._timeout})
        late.decoder.end()


class _Worker:
    """A thread, its decoder, and the image that it works on."""

    def __init__(self, queue: SimpleQueue[_Task | None], decoder: Decoder) -> None:
        self.decoder = decoder
        self.task: _Task | None = None
        self._queue = queue
        # A daemon: the interpreter must be able to exit while a decoder hangs.
        self.thread = threading.Thread(target=self._work, name="layertap-decode", daemon=True)

    def _work(self) -> None:
        while (task := self._queue.get()) is not None:
            self.task = task
            try:
                in_time = self._fill(task)
            except BaseException as fault:
                in_time = task.claim()
                if in_time:
                    task.abort(fault)
            if not in_time:
                return  # another thread has replaced this one
            self.task = task = None

    def _fill(self, task: _Task) -> bool:
        """Read, decode and prepare one image into its slot; False if that was too late."""
        failure: Failure | None = None
        notes: tuple[str, ...] = ()
        try:
            prepared, notes = self._prepared(task)
        except CannotStart:
            raise
        except Exception as error:
            failure = task.failed(error)
        if not task.claim():
            return False
        if failure is None:
            try:
                task.put(prepared)
            except Exception as error:
                failure = task.failed(error)
        task.settle(failure, task.seconds(), notes)
        return True

    def _prepared(self, task: _Task) -> tuple[Tensor, tuple[str, ...]]:
        task.enter("read")
        data = read(task.planned)
        if isinstance(data, bytes):
            self.decoder.ready()
        task.enter("decode")
        return self.decoder.prepared(data, lambda: task.enter("prepare"))


class _Task:
    """One image on its way into its slot. Either its worker or the watch claims it, and only the claimer settles it.

    A thread that hangs keeps its task for ever, so a settled task must not keep the whole batch.
    """

    def __init__(self, pending: Pending, index: int) -> None:
        self.planned = pending.planned[index]
        self.stage = "queue"
        self._pending: Pending | None = pending
        self._index = index
        self._marks: list[tuple[str, float]] = []
        self._spent: float | None = None
        self._lock = threading.Lock()

    def put(self, prepared: Tensor) -> None:
        """Write the image into its slot."""
        assert self._pending is not None
        self._pending.put(self._index, prepared)

    def failed(self, error: Exception) -> Failure:
        """What becomes of the image for which `error` was raised at this stage."""
        return Failure(self.planned.record, self.stage, reason_of(error), cause_of(error))

    def enter(self, stage: str) -> None:
        """Note that a stage begins."""
        self._marks.append((stage, time.perf_counter()))
        self.stage = stage

    def seconds(self) -> dict[str, float]:
        """The seconds that each stage took, the last one until now."""
        ends = [start for _, start in self._marks[1:]] + [time.perf_counter()]
        return {stage: end - start for (stage, start), end in zip(self._marks, ends, strict=True)}

    def spend(self, seconds: float) -> float:
        """Add a step of the watch, and return how much of its time the image has used since it was read."""
        if self.stage in ("decode", "prepare"):
            # It may have started anywhere within the first step, so that step does not count.
            self._spent = 0.0 if self._spent is None else self._spent + seconds
        return self._spent or 0.0

    def claim(self) -> bool:
        """Whether only the caller may write to the slot and settle the image. True once."""
        return self._lock.acquire(blocking=False)

    def settle(self, failure: Failure | None, seconds: Mapping[str, float], notes: tuple[str, ...] = ()) -> None:
        """The slot is final, or becomes zeros for a `failure`."""
        pending, self._pending = self._pending, None
        assert pending is not None
        if failure is not None:
            pending.clear(self._index)
        pending.settle(self._index, seconds, failure, notes)

    def abort(self, fault: BaseException) -> None:
        """There is no batch for this image, because of a fault that is not its own."""
        pending, self._pending = self._pending, None
        assert pending is not None
        pending.abort(fault)
