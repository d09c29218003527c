"""A plugin file: what spoils images once the plan is made, and what takes images of any size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

import layertap

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


class Spoiler(layertap.Observer):
    class Params(layertap.Params):
        remove: str = Field(description="a file")
        change: str = Field(description="a file")

    params: Params

    def run_started(self) -> None:
        Path(self.params.remove).unlink()
        Path(self.params.change).write_bytes(Path(self.params.change).read_bytes() + b" ")


class AsLarge(layertap.Preprocessor):
    """Every image at its own size."""

    def prepare(self, image: Image.Image) -> Tensor:
        import numpy as np
        import torch

        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)

    def finish(self, batch: Tensor) -> Tensor:
        return batch.float() / 255


class AnySize(layertap.ModelProvider):
    """A convolution."""

    def load(self) -> layertap.LoadedModel:
        import torch
        from torch import nn

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return layertap.LoadedModel(nn.Sequential(nn.Conv2d(3, 4, 3)), about={"layout": "NCHW"})


@layertap.hookimpl
def register_models(register: Callable[[str, type[layertap.ModelProvider]], None]) -> None:
    register("any_size", AnySize)


@layertap.hookimpl
def register_preprocessors(register: Callable[[str, type[layertap.Preprocessor]], None]) -> None:
    register("as_large", AsLarge)


@layertap.hookimpl
def register_observers(register: Callable[[str, type[layertap.Observer]], None]) -> None:
    register("spoiler", Spoiler)
