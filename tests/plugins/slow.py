"""A plugin file: a preprocessor that takes its time, without the seconds that it takes to import torchvision."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

import layertap

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


class Slow(layertap.Preprocessor):
    class Params(layertap.Params):
        seconds: float = Field(0.0, description="per image")
        gate: str | None = Field(None, description="a file without which a process prepares no more than 14 images")

    params: Params
    _prepared = 0

    def prepare(self, image: Image.Image) -> Tensor:
        import numpy as np
        import torch

        self._prepared += 1
        while self.params.gate and self._prepared > 14 and not Path(self.params.gate).exists():
            time.sleep(0.05)
        time.sleep(self.params.seconds)
        return torch.from_numpy(np.array(image.convert("RGB").resize((16, 16)))).permute(2, 0, 1)

    def finish(self, batch: Tensor) -> Tensor:
        return batch.float() / 255


@layertap.hookimpl
def register_preprocessors(register: Callable[[str, type[layertap.Preprocessor]], None]) -> None:
    register("slow", Slow)
