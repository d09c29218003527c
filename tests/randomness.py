"""A plugin file with a small network that draws random numbers in eval mode."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

import layertap
from tests.tiny import Squash, Stop

if TYPE_CHECKING:
    from torch import Tensor


class Random(layertap.ModelProvider):
    class Params(layertap.Params):
        name: str = Field("random", description="what to call it")

    def load(self) -> layertap.LoadedModel:
        import random

        import numpy as np
        import torch
        from torch import nn
        from torch.nn import functional as F

        class Masking(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return F.dropout(x, 0.5, training=True) + float(np.random.rand()) + random.random()

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = nn.Sequential(nn.Conv2d(3, 4, 3), Masking(), nn.Flatten())
        return layertap.LoadedModel(module, Squash.of(), {"name": "random"})


@layertap.hookimpl
def register_models(register: Any) -> None:
    register("random", Random)


@layertap.hookimpl
def register_observers(register: Any) -> None:
    register("stop", Stop)
