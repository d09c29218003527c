"""A third-party plugin: a source, a preprocessor and a sink, which use only the public names of layertap."""

from pydantic import Field

import layertap


class Stripes(layertap.Source):
    """Drawn images: number n has n + 1 stripes."""

    class Params(layertap.Params):
        count: int = Field(3, ge=1, description="how many images")

    def records(self):
        for number in range(self.params.count):
            yield layertap.ImageRecord(f"stripes-{number}", lambda n=number: draw(n), {"stripes": number + 1})


class Shrink(layertap.Preprocessor):
    """The whole image as a small square of floats."""

    class Params(layertap.Params):
        side: int = Field(16, ge=1, description="the side of the square, in pixels")

    def prepare(self, image):
        import torch

        side = self.params.side
        pixels = bytearray(image.convert("RGB").resize((side, side)).tobytes())
        return torch.frombuffer(pixels, dtype=torch.uint8).reshape(side, side, 3).permute(2, 0, 1)

    def finish(self, batch):
        return batch / 255


class TextSink(layertap.FileSink):
    """One text file per tap, with one line per image."""

    def save(self, shard, folder):
        import numpy as np

        for tap, values in shard.values.items():
            np.savetxt(folder / f"{self.stems[tap]}.txt", values.reshape(len(values), -1), fmt="%.9g")

    def load(self, folder, tap):
        import numpy as np

        return np.loadtxt(folder / f"{self.stems[tap]}.txt", dtype=np.float32, ndmin=2)


def draw(number):
    from PIL import Image

    return Image.linear_gradient("L").point(lambda value: value * (number + 1) % 256)


@layertap.hookimpl
def register_sources(register):
    register("stripes", Stripes)


@layertap.hookimpl
def register_preprocessors(register):
    register("shrink", Shrink)


@layertap.hookimpl
def register_sinks(register):
    register("text", TextSink)
