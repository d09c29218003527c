"""A plugin file: a preprocessor whose batches fail in a worker, though not in the probe of the coordinator."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import layertap

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


class Failing(layertap.Preprocessor):
    def prepare(self, image: Image.Image) -> Tensor:
        import torch

        return torch.zeros(3, 16, 16, dtype=torch.uint8)

    def finish(self, batch: Tensor) -> Tensor:
        if "work" in sys.argv:
            raise RuntimeError("not today")
        return batch.float()


@layertap.hookimpl
def register_preprocessors(register: Callable[[str, type[layertap.Preprocessor]], None]) -> None:
    register("fails", Failing)
