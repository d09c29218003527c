"""Which axis of a value is the batch, where it is not axis 0: what grows with the number of images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from layertap.errors import TapError
from layertap.taps.tapped import TappedModel

Shapes = Mapping[str, tuple[int, ...]]


def move_batch_axes(tapped: TappedModel, look: Callable[[TappedModel, int], object]) -> bool:
    """Let taps whose axis 0 is not the batch move their batch axis to the front; whether any does.

    `look` takes a tapped model through a forward of some images. The axis must be unambiguous: no other axis differs
    between 2 and 3 images, for which it has these lengths. An axis that a tap names itself is left alone.
    """
    captures = [capture for capture in tapped.captures if not capture.is_silent]
    plain = [capture.tap.model_copy(update={"reduce": (), "dtype": None, "batch_axis": None}) for capture in captures]
    try:
        with TappedModel(tapped.module, plain) as unreduced:
            shapes: list[list[Shapes]] = []
            for images in (2, 3):
                look(unreduced, images)
                shapes.append([capture.shapes for capture in unreduced.captures])
    except TapError:
        # A fault of another kind, which the caller has found already.
        return False
    moved = False
    for capture, two, three in zip(captures, *shapes, strict=True):
        axes = {_axis(shape, three.get(name, ())) for name, shape in two.items()}
        axis = axes.pop() if len(axes) == 1 else None
        if axis and capture.tap.batch_axis is None:
            capture.move_batch(axis)
            moved = True
    return moved


def _axis(two: Iterable[int], three: Iterable[int]) -> int | None:
    lengths = list(zip(two, three, strict=False))
    grown = [axis for axis, (few, more) in enumerate(lengths) if few != more]
    return grown[0] if len(grown) == 1 and lengths[grown[0]] == (2, 3) else None
