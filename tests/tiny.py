"""A plugin file as a user would write it: a small seeded network, quick to build, with traps in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

import layertap

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


class Squash(layertap.Preprocessor):
    class Params(layertap.Params):
        size: int = Field(16, ge=1, description="side in pixels")

    params: Params

    def prepare(self, image: Image.Image) -> Tensor:
        from torchvision.transforms.functional import pil_to_tensor

        return pil_to_tensor(image.convert("RGB").resize((self.params.size, self.params.size)))

    def finish(self, batch: Tensor) -> Tensor:
        return batch.float() / 255


class Tiny(layertap.ModelProvider):
    class Params(layertap.Params):
        name: str = Field("tiny", description="what to call it")
        seed: int = Field(0, description="seed of its weights")

    params: Params

    def load(self) -> layertap.LoadedModel:
        import torch
        from torch import nn

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.params.seed)
            features = nn.Sequential(
                nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(inplace=True)
            )
            module = nn.Sequential()
            module.add_module("features", features)
            module.add_module("flatten", nn.Flatten())
            module.add_module("dropout", nn.Dropout())
            module.add_module("classifier", nn.Linear(8 * 5 * 5, 10))
        about: dict[str, Any] = {"name": self.params.name, "seed": self.params.seed}
        return layertap.LoadedModel(module, Squash.of(), about)


class Stop(layertap.Observer):
    """Ends a run after a given number of images, as a fault would."""

    class Params(layertap.Params):
        after: int = Field(description="images")

    params: Params
    seen = 0

    def batch_done(self, count: int) -> None:
        self.seen += count
        if self.seen >= self.params.after:
            raise RuntimeError("stopped")


@layertap.hookimpl
def register_observers(register: Any) -> None:
    register("stop", Stop)


@layertap.hookimpl
def register_models(register: Any) -> None:
    register("tiny", Tiny)


@layertap.hookimpl
def register_preprocessors(register: Any) -> None:
    register("tiny_squash", Squash)
