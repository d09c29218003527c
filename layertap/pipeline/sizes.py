"""A batch of images of different sizes: one forward per size."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from torch import Tensor

from layertap.images.batches import Slot
from layertap.images.causes import cause
from layertap.records import Batch, Failure


def inputs(batch: Batch, slot: Slot) -> Iterator[tuple[list[int], Tensor]]:
    """The batch's images by shape: their slots, and a batch of full length with zeros in all others.

    Each image is in its own slot of a batch that is as long as ever. So its values depend neither on the images of
    other sizes nor on whether they are good, just as in a batch of one size.
    """
    for slots in batch.groups():
        shape = tuple(batch.sized[slots[0]].shape)
        pixels = dataclasses.replace(slot, shape=shape).zeros(len(batch.records))
        for place in slots:
            pixels[place].copy_(batch.sized[place])
        yield slots, pixels


def without(batch: Batch, slots: list[int], error: Exception) -> Batch:
    """The batch after its images in `slots` failed, because the model or a tap cannot take their size."""
    why = cause(type(error).__name__, str(error), "")
    failed = {slot: Failure(batch.records[slot], "prepare", "shape", why) for slot in slots}
    failures = dict(sorted({**batch.failures, **failed}.items()))
    notes = {slot: words for slot, words in batch.notes.items() if slot not in failed}
    return dataclasses.replace(batch, failures=failures, notes=notes)
