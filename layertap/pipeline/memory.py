"""Whether a batch fits into memory, found out before the first image."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

from layertap.errors import ConfigError
from layertap.pipeline.forward import ForwardPass, OutOfMemory
from layertap.pipeline.shards import row_bytes
from layertap.records import Column

# Batches of prepared images in memory at once, and shards: see stream and shards.
_BATCHES, _SHARDS = 4, 2

# Beyond it throughput does not grow, and what a failing run has to do again does.
_LARGEST, _LARGEST_ON_CPU = 1024, 256


def largest_batch(forward: ForwardPass, columns: Mapping[str, Column], most: int) -> int:
    """The largest power of two up to `most` images that the device takes in one forward."""
    size = 1 << (min(most, _LARGEST if forward.device.type != "cpu" else _LARGEST_ON_CPU).bit_length() - 1)
    while size > 1 and not (_modest(forward, columns, size) and (forward.device.type == "cpu" or _fits(forward, size))):
        size //= 2
    return size


def _modest(forward: ForwardPass, columns: Mapping[str, Column], batch_size: int) -> bool:
    return _needed(forward, columns, batch_size, batch_size) * 4 <= _there_is()


def refuse_more_than_there_is(
    forward: ForwardPass, columns: Mapping[str, Column], batch_size: int, shard_rows: int
) -> None:
    """Raise `ConfigError` where the images and shards in memory at once are more than the machine has."""
    needed, there_is = _needed(forward, columns, batch_size, shard_rows), _there_is()
    if needed > there_is:
        raise ConfigError(
            f"{batch_size} images per batch and {shard_rows} rows per shard need {needed / 1e9:.1f} GB of memory, but "
            f"this machine has {there_is / 1e9:.1f}; set smaller ones",
            where=("batch_size",),
        )


def rehearse(forward: ForwardPass, batch_size: int) -> None:
    """One forward of a whole black batch. Raises `ConfigError` where the device's memory does not take it."""
    fitting = batch_size
    while fitting and not _fits(forward, fitting):
        fitting //= 2
    if fitting < batch_size:
        cure = f"set batch_size={fitting}" if fitting else "not even one does: use device=cpu"
        what = f"{batch_size} images do not fit into the memory of {forward.device}; {cure}"
        raise OutOfMemory(what, where=("batch_size",))


def _needed(forward: ForwardPass, columns: Mapping[str, Column], batch_size: int, shard_rows: int) -> int:
    image = math.prod(forward.slot.shape) * forward.slot.dtype.itemsize
    return _BATCHES * batch_size * image + _SHARDS * shard_rows * row_bytes(columns)


def _there_is() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _fits(forward: ForwardPass, batch_size: int) -> bool:
    try:
        forward.rehearse(batch_size)
    except OutOfMemory:
        return False
    return True
