"""A plugin file for tests of clusters: its preprocessor does, on the nodes that a variable names, what nodes do wrong.

LAYERTAP_TEST_HELD   compute up to the first image that is 25 pixels wide, create `GATE.reached`, and wait for `GATE`
LAYERTAP_TEST_WRONG  threads: compute with another number of them; version: have another version of Pillow

The other nodes wait for `GATE.reached` before such an image, so that every node takes part, however slowly it starts.
"""

from __future__ import annotations

import importlib.metadata
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

import layertap
from tests.tiny import Squash, Tiny

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

HELD, WRONG = os.environ.get("LAYERTAP_TEST_HELD"), os.environ.get("LAYERTAP_TEST_WRONG")

if WRONG == "version":
    installed = importlib.metadata.version
    importlib.metadata.version = lambda name: "0.1" if name == "pillow" else installed(name)


class OnNodes(Squash):
    class Params(layertap.Params):
        size: int = Field(16, ge=1, description="side in pixels")
        gate: str | None = Field(None, description="a file that the test creates")

    params: Params

    def prepare(self, image: Image.Image) -> Tensor:
        if self.params.gate and image.width == 25:
            self._wait(Path(self.params.gate))
        return super().prepare(image)

    def finish(self, batch: Tensor) -> Tensor:
        import torch

        if WRONG == "threads":
            torch.set_num_threads(2)
        return super().finish(batch)

    def _wait(self, gate: Path) -> None:
        reached = gate.with_name(f"{gate.name}.reached")
        if HELD:
            print("waiting at the gate", flush=True)
            reached.touch()
        while not (gate if HELD else reached).exists():
            time.sleep(0.02)


@layertap.hookimpl
def register_models(register: Any) -> None:
    register("tiny", Tiny)


@layertap.hookimpl
def register_preprocessors(register: Any) -> None:
    register("on_nodes", OnNodes)
