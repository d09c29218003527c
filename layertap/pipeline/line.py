"""Records -> shards: the batches of a run through the model, gathered."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from typing import TypeAlias

from layertap.pipeline import malloc
from layertap.pipeline.prepare import Prepared
from layertap.pipeline.shards import gather
from layertap.records import Activations, Batch, Gathered, Planned
from layertap.timing import Stopwatch

Done: TypeAlias = tuple[Batch, Activations]


def computed(
    this: Prepared,
    planned: Iterable[Planned],
    numbers: Callable[[], Iterator[int]],
    watched: Callable[[Iterable[Done]], Iterator[Done]],
    stopwatch: Stopwatch,
) -> Generator[Gathered, None, None]:
    """The shards that some records fill, computed in this process.

    `numbers` gives those of the shards, in order, and is called twice. `watched` sees each batch between the model and
    its shard. Close it to stop the threads that decode.
    """
    info = this.info
    size = info.shard_rows // info.batch_size
    places = (place for number in numbers() for place in range(number * size, (number + 1) * size))
    stream = this.batches(planned, stopwatch)
    activations = malloc.keeping(this.forward.activations(stream, info.columns, stopwatch, numbers=places))
    with closing(stream), closing(activations):
        yield from gather(watched(activations), info.columns, min(info.shard_rows, info.planned), numbers())
