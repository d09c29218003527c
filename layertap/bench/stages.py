"""The cost of each stage of the line alone, and how fast a line of such stages can be at most.

A core-second is the work that keeps one core busy for a second. Reading, decoding and preparing are measured on one
worker while nothing else runs. `finish` and `forward` use as many threads as torch is set to. For these, wall time by
threads counts idle cores, and processor time counts threads that spin while they wait for one another, so the smaller
of the two is used: that makes the limit higher, and never overstates how much of it is achieved.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from layertap.bench import trials
from layertap.bench.figures import Figure
from layertap.pipeline import malloc
from layertap.pipeline.forward import ForwardPass
from layertap.pipeline.prepare import Prepared
from layertap.pipeline.shards import gather
from layertap.pipeline.writer import Destination
from layertap.records import Activations, Batch, Gathered
from layertap.timing import Stopwatch

IMAGE_STAGES = ("read", "decode", "prepare")

# Gathering rows and checking their values is layertap's own overhead, not a necessity, so the limit leaves it out.
_OVERHEAD = ("gather",)

_COMPUTED = ("finish", "forward")


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds per image: wall time, and time for which cores were busy with it."""

    wall: float
    cores: float


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage's `Cost` over several rounds: seconds and core-seconds per image."""

    wall: Figure
    cores: Figure


def stages_of(rounds: Sequence[Mapping[str, Cost]]) -> dict[str, Stage]:
    """The figures of each stage, in the order of the line."""
    return {
        name: Stage(
            Figure.of([costs[name].wall for costs in rounds]), Figure.of([costs[name].cores for costs in rounds])
        )
        for name in rounds[0]
    }


def limits_of(costs: Mapping[str, Cost], cores: int, *, accelerated: bool) -> dict[str, float]:
    """The most images per second that each resource of the machine allows; the smallest value is the limit.

    `cores` adds up the core-seconds of all stages that run there. `writer` writes shards one after the other. With a
    GPU, `device` computes, `to_device` and `to_host` copy, and all of them overlap.
    """
    elsewhere = (*_COMPUTED, "to_device", "to_host") if accelerated else ()
    busy = sum(cost.cores for name, cost in costs.items() if name not in (*_OVERHEAD, *elsewhere))
    seconds = {"cores": busy / cores}
    if "write" in costs:
        seconds["writer"] = costs["write"].wall
    if accelerated:
        seconds["device"] = sum(costs[name].wall for name in _COMPUTED)
        seconds |= {name: costs[name].wall for name in ("to_device", "to_host")}
    return {name: 1 / spent for name, spent in seconds.items()}


def measure(this: Prepared, output: Destination | None) -> dict[str, Cost]:
    """One round: every stage alone on the images of a run, or on one shard of them from `finish` on.

    The result is written to `output`, if there is one; otherwise there is no stage `write`.
    """
    with malloc.kept():
        costs, batches = _images(this)
        computed, done = _computed(this.forward, batches)
        costs |= computed
        images = sum(len(batch.records) for batch in batches)
        with _measured() as spent:
            (gathered,) = gather(done, this.info.columns, images, [0])
        costs["gather"] = spent.over(images)
        if output is not None:
            costs["write"] = _written(output, gathered, images)
    return costs


def _written(output: Destination, gathered: Gathered, images: int) -> Cost:
    with _measured() as spent:
        output.write(gathered)
    return spent.over(images)


def _images(this: Prepared) -> tuple[dict[str, Cost], list[Batch]]:
    """The cost of images on one worker, and the batches of the first shard."""
    stopwatch, kept, rows = Stopwatch(), list[Batch](), 0
    with _measured() as spent, closing(trials.stream(this, workers=1, stopwatch=stopwatch)) as stream:
        for batch in stream:
            if rows < this.info.shard_rows:
                kept.append(batch)
                rows += len(batch.records)
    seconds = stopwatch.seconds
    whole = sum(seconds.values())
    # The stopwatch separates the stages; processor time does not depend on who else uses the machine. Decoding in
    # another process uses no processor time here.
    share = min(1.0, spent.cpu / whole) if this.config.isolation == "thread" else 1.0
    walls = {name: seconds.get(name, 0.0) / this.plan.count for name in IMAGE_STAGES}
    return {name: Cost(wall, wall * share) for name, wall in walls.items()}, kept


def _computed(
    forward: ForwardPass, batches: Sequence[Batch]
) -> tuple[dict[str, Cost], list[tuple[Batch, Activations]]]:
    """The cost of `batches` in the model, and the results."""
    names = ("to_device", *_COMPUTED, "to_host")
    spent = {name: _Spent() for name in names}
    done = []
    for batch in batches:
        with torch.inference_mode(False), torch.no_grad():
            with _measured(spent["to_device"], forward.device):
                moved = batch.pixels.to(forward.device)
            with _measured(spent["finish"], forward.device):
                inputs = forward.inputs(moved)
            with _measured(spent["forward"], forward.device):
                values = _forward(forward, inputs)
            with _measured(spent["to_host"], forward.device):
                values = {name: value.cpu() for name, value in values.items()}
        done.append((batch, _of_good_images(batch, values)))
    images = sum(len(batch.records) for batch in batches)
    return {name: spent[name].over(images) for name in names}, done


def _forward(forward: ForwardPass, inputs: Tensor) -> dict[str, Tensor]:
    with torch.autocast(forward.device.type, forward.autocast, enabled=forward.autocast is not None):
        return forward.tapped.run(inputs)


def _of_good_images(batch: Batch, values: Mapping[str, Tensor]) -> Activations:
    kept = [index for index in range(len(batch.records)) if index not in batch.failures]
    records = [batch.records[index] for index in kept]
    return Activations(records, {name: value[kept] for name, value in values.items()} if batch.failures else values)


class _Spent:
    """Accumulated time."""

    wall = 0.0
    cpu = 0.0

    def over(self, images: int) -> Cost:
        """The cost per image of the images that it was spent on."""
        return Cost(self.wall / images, min(self.cpu, self.wall * torch.get_num_threads()) / images)


@contextmanager
def _measured(spent: _Spent | None = None, device: torch.device | None = None) -> Iterator[_Spent]:
    """Add the time of the block, including the work that it leaves to its device."""
    spent = spent or _Spent()
    trials.settle(device)
    wall, cpu = time.perf_counter(), time.process_time()
    yield spent
    trials.settle(device)
    spent.wall += time.perf_counter() - wall
    spent.cpu += time.process_time() - cpu
