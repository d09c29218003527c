"""Rows -> shards: activations gather, in the order of the plan, into arrays of a fixed number of records."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from layertap.records import Activations, Batch, Column, Failure, Gathered, ImageRecord, Shard
from layertap.store.dtypes import numpy_dtype
from layertap.store.tally import Causes

# Large enough that a commit's fsyncs cost little in comparison, small enough that two of them need little memory.
_SHARD_BYTES = 64_000_000
_MOST_ROWS = 1_024


def row_bytes(columns: Mapping[str, Column]) -> int:
    """What one image takes as it is stored, all taps together."""
    return sum(math.prod(column.shape) * numpy_dtype(column.dtype).itemsize for column in columns.values())


def default_rows(columns: Mapping[str, Column], batch_size: int) -> int:
    """Rows in a shard: about 64 MB, a whole number of batches, at least one, at most 1,024 rows where a batch fits."""
    batches = min(_SHARD_BYTES // max(1, row_bytes(columns) * batch_size), _MOST_ROWS // batch_size)
    return max(1, batches) * batch_size


def to_numpy(tensor: Tensor) -> NDArray[Any]:
    """A CPU tensor as an array of the same bits."""
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.uint16).numpy().view(numpy_dtype("bfloat16"))
    return tensor.numpy()


def gather(
    done: Iterable[tuple[Batch, Activations]], columns: Mapping[str, Column], rows: int, numbers: Iterable[int]
) -> Iterator[Gathered]:
    """The shards with these numbers, of `rows` planned records each, the plan's last one shorter.

    One is in memory besides the one last yielded.
    """
    following = iter(numbers)
    filling: _Filling | None = None
    for batch, activations in done:
        filling = filling or _Filling(columns, rows, next(following))
        filling.add(batch, activations)
        if filling.planned == rows:
            yield filling.gathered()
            filling = None
    if filling:
        yield filling.gathered()


class _Filling:
    def __init__(self, columns: Mapping[str, Column], rows: int, number: int) -> None:
        self.number = number
        self.first = number * rows
        self.planned = 0
        self.records: list[ImageRecord] = []
        self.failures: list[Failure] = []
        self.nonfinite = dict.fromkeys(columns, 0)
        self.notes: Counter[str] = Counter()
        self.causes = Causes()
        self.values = {name: np.empty((rows, *c.shape), numpy_dtype(c.dtype)) for name, c in columns.items()}

    def add(self, batch: Batch, activations: Activations) -> None:
        start = len(self.records)
        for name, tensor in activations.values.items():
            self.nonfinite[name] += nonfinite(tensor)
            self.values[name][start : start + len(activations.records)] = to_numpy(tensor)
        self.records.extend(activations.records)
        self.failures.extend(batch.failures.values())
        self.causes.add_failures(batch.failures.values())
        self.planned += len(batch.records)
        for words in batch.notes.values():
            self.notes.update(words)

    def gathered(self) -> Gathered:
        values = {name: array[: len(self.records)] for name, array in self.values.items()}
        shard = Shard(self.number, tuple(self.records), values)
        return Gathered(
            shard,
            self.first,
            self.planned,
            tuple(self.failures),
            self.nonfinite,
            dict(self.notes),
            self.causes.counted(),
        )


def nonfinite(tensor: Tensor) -> int:
    """How many values are NaN or infinite."""
    if not tensor.is_floating_point():
        return 0
    return int(tensor.numel() - torch.isfinite(tensor).sum())
