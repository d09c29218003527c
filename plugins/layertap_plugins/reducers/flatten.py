"""Every value of an image in one row."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import layertap

if TYPE_CHECKING:
    from torch import Tensor


class Flatten(layertap.Reducer):
    """`(N, ...)` as `(N, values)`, the axes in order whatever the memory format; a view where one is possible."""

    def __call__(self, activation: Tensor) -> Tensor:
        # Not -1, which fails for zero rows, and not view(), which fails for channels_last.
        return activation.reshape(activation.shape[0], math.prod(activation.shape[1:]))


@layertap.hookimpl
def register_reducers(register: Callable[[str, type[layertap.Reducer]], None]) -> None:
    register("flatten", Flatten)
