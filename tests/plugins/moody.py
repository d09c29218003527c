"""A plugin file: a preprocessor that is another one in workers than in the coordinator."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import layertap

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


class InCoordinator(layertap.Preprocessor):
    def prepare(self, image: Image.Image) -> Tensor:
        import torch

        return torch.zeros(3, 16, 16, dtype=torch.uint8)

    def finish(self, batch: Tensor) -> Tensor:
        return batch.float()


class InWorker(InCoordinator):
    pass


@layertap.hookimpl
def register_preprocessors(register: Callable[[str, type[layertap.Preprocessor]], None]) -> None:
    register("moody", InWorker if "work" in sys.argv else InCoordinator)
