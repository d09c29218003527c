"""A plugin file: a preprocessor that takes its time, without the seconds that it takes to import torchvision."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import Field

import layertap

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


class Slow(layertap.Preprocessor):
    class Params(layertap.Params):
        seconds: float = Field(0.0, description="per image")

    params: Params

    def prepare(self, image: Image.Image) -> Tensor:
        import numpy as np
        import torch

        time.sleep(self.params.seconds)
        return torch.from_numpy(np.array(image.convert("RGB").resize((16, 16)))).permute(2, 0, 1)

    def finish(self, batch: Tensor) -> Tensor:
        return batch.float() / 255


@layertap.hookimpl
def register_preprocessors(register: Callable[[str, type[layertap.Preprocessor]], None]) -> None:
    register("slow", Slow)
