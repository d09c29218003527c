"""A plugin file of a model that looks its values up: the pixels of an image say which row of a table they are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import layertap

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


def numbered(number: int) -> Image.Image:
    from PIL import Image

    return Image.new("RGB", (2, 2), (number % 256, number // 256, 0))


class Numbered(layertap.Source):
    class Params(layertap.Params):
        numbers: list[int]
        meta: str | None = None

    params: Params

    def records(self) -> Iterator[layertap.ImageRecord]:
        meta = json.loads(Path(self.params.meta).read_text()) if self.params.meta else {}
        for number in self.params.numbers:
            found = {key: values[number] for key, values in meta.items()}
            yield layertap.ImageRecord(f"{number:04d}.png", numbered(number), found)


class Exact(layertap.Preprocessor):
    def prepare(self, image: Image.Image) -> Tensor:
        from torchvision.transforms.functional import pil_to_tensor

        return pil_to_tensor(image.convert("RGB").resize((2, 2)))


class Table(layertap.ModelProvider):
    class Params(layertap.Params):
        weights: str

    params: Params

    def load(self) -> layertap.LoadedModel:
        import hashlib

        import numpy as np
        import torch
        from torch import nn

        class Rows(nn.Module):
            def __init__(self, values: Any) -> None:
                super().__init__()
                self.values = values

            def forward(self, x: Tensor) -> Tensor:
                # Modulo, because a probe may be of any pixels.
                return self.values[(x[:, 0, 0, 0].long() + 256 * x[:, 1, 0, 0].long()) % len(self.values)]

        class Branches(nn.Module):
            def __init__(self, tables: list[Any]) -> None:
                super().__init__()
                for number, table in enumerate(tables):
                    self.add_module(f"tap{number}", Rows(torch.from_numpy(table)))

            def forward(self, x: Tensor) -> list[Tensor]:
                return [child(x) for child in self.children()]

        with np.load(self.params.weights) as tables:
            module = Branches([tables[name] for name in tables.files])
        digest = hashlib.sha256(Path(self.params.weights).read_bytes()).hexdigest()
        return layertap.LoadedModel(module, Exact.of(), {"name": "table", "weights_sha256": digest})


@layertap.hookimpl
def register_sources(register: Any) -> None:
    register("numbered", Numbered)


@layertap.hookimpl
def register_models(register: Any) -> None:
    register("table", Table)
