"""A model of a few layers for tests that need a whole run without torchvision: `--plugin tiny.py`, `model: tiny`."""

from pydantic import Field

import layertap


class Squares(layertap.Preprocessor):
    """8 x 8 pixels."""

    def prepare(self, image):
        import torch

        pixels = bytearray(image.convert("RGB").resize((8, 8)).tobytes())
        return torch.frombuffer(pixels, dtype=torch.uint8).reshape(8, 8, 3).permute(2, 0, 1)

    def finish(self, batch):
        return batch / 255


class TinyModel(layertap.ModelProvider):
    """Two convolutions, a ReLU that one of them ends in, and a layer that never runs."""

    class Params(layertap.Params):
        name: str = Field("net", description="a name, which changes nothing")
        width: int = Field(4, ge=1, description="channels")
        breaks: bool = Field(False, description="raise in the forward")

    def load(self):
        import torch
        from torch import nn

        class Tiny(nn.Module):
            def __init__(self, width, breaks):
                super().__init__()
                self.features = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(inplace=True), nn.Conv2d(width, 2, 3))
                self.unused = nn.Linear(2, 2)
                self.breaks = breaks

            def forward(self, x):
                if self.breaks:
                    raise ValueError("no forward today\nsee above")
                return self.features(x).mean((2, 3))

        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            module = Tiny(self.params.width, self.params.breaks)
        return layertap.LoadedModel(module, Squares(), {"weights": "random", "layout": "NCHW"})


@layertap.hookimpl
def register_models(register):
    register("tiny", TinyModel)
