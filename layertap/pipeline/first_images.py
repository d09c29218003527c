"""The sizes of the first images, and whether the taps allow images of different sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from itertools import chain, islice
from typing import TypeVar

from layertap.contracts import Preprocessor
from layertap.errors import LayertapError, TapError
from layertap.images.batches import Decoding, Slot, batches
from layertap.pipeline.forward import ForwardPass
from layertap.records import Column, Planned

T = TypeVar("T")

LOOK = 16
"""How many images are read before a run for their sizes."""


def looked(slot: Slot, first: Iterable[Planned], preprocessor: Preprocessor, decoding: Decoding, workers: int) -> Slot:
    """The slot after a look at the first images, which is only taken where the preprocessor gives different sizes."""
    if slot.other is None:
        return slot
    stream = batches(islice(first, LOOK), preprocessor, slot, batch_size=4, workers=workers, decoding=decoding)
    with closing(stream):
        return slot.seen(stream)


def settled(forward: ForwardPass, columns: Mapping[str, Column]) -> ForwardPass:
    """The forward pass that a run uses: for images of any size if each tap has one shape at two of them.

    Otherwise images keep to the size of the first, and one of another size fails. Raises `TapError` where the first
    images have different sizes already.
    """
    slot = forward.slot
    if slot.other is None:
        return forward
    fixed = of_one_size(forward).slot
    try:
        other = dataclasses.replace(forward, slot=dataclasses.replace(fixed, shape=slot.other)).probe()
    except LayertapError as error:
        if slot.differs:
            raise TapError(
                f"images are prepared to {slot.shape} and {slot.other}, and the second cannot be used: "
                f"{error.message}; use a preprocessor that resizes",
                where=error.where,
            ) from error
        return dataclasses.replace(forward, slot=fixed)
    for name, column in columns.items():
        found = other.get(name)
        if found is None or (found.shape, found.dtype) != (column.shape, column.dtype):
            if not slot.differs:
                return dataclasses.replace(forward, slot=fixed)
            raise TapError(
                f"tap {name!r} has {column.shape} for an image prepared to {slot.shape}, and "
                f"{None if found is None else found.shape} for {slot.other}; reduce it to one shape, as with "
                "`reduce: [mean_pool]`, or use a preprocessor that resizes",
                where=forward.tapped.places.get(name, ("taps",)),
            )
    return forward


def of_one_size(forward: ForwardPass) -> ForwardPass:
    """The forward pass for images of the size of the first; those of another size fail."""
    return dataclasses.replace(forward, slot=dataclasses.replace(forward.slot, other=None, differs=False))


def with_first(items: Iterator[T], count: int) -> tuple[list[T], Iterator[T]]:
    """The first items, and an iterator of all, so that nothing which an iterator gives is lost."""
    first = list(islice(items, count))
    return first, chain(first, items)
