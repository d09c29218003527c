"""Small seeded modules, each with one of the habits of real networks that mislead a hook."""

from __future__ import annotations

import copy
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    """The module from `build` in eval mode, with the same weights every time, and no batch norm without effect."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build().eval()
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.normal_(layer.bias)
                nn.init.normal_(layer.running_mean)
    return module


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def out_of_place(module: nn.Module) -> nn.Module:
    """A copy of the module with layers that change nothing in place."""
    twin = copy.deepcopy(module)
    for layer in twin.modules():
        if hasattr(layer, "inplace"):
            layer.inplace = False
    return twin


def chain() -> nn.Sequential:
    """Convolution, in-place ReLU, convolution, in-place ReLU."""
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 5, 3, padding=1), nn.ReLU(inplace=True)
        )
    )


class Recorder(nn.Module):
    """Passes its input on and remembers that it ran."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


class Repeated(nn.Module):
    """One ReLU in three places, each with another shape, as in ResNet's bottleneck."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.narrow = nn.Conv2d(3, 4, 3)
        self.wide = nn.Conv2d(4, 6, (3, 1))

    def stages(self, x: Tensor) -> list[Tensor]:
        """The correct outputs of `relu`, call by call, computed without in-place operations."""
        first = F.relu(x)
        second = F.relu(self.narrow(first))
        return [first, second, F.relu(self.wide(second))]

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x.clone())
        x = self.relu(self.narrow(x))
        return self.relu(self.wide(x))


class Sometimes(nn.Module):
    """Runs its `extra` layer for bright inputs only."""

    def __init__(self) -> None:
        super().__init__()
        self.always = nn.Linear(3, 3)
        self.extra = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.always(x)
        return self.extra(y) if x.mean() > 0 else y


class Varying(nn.Module):
    """Runs its layer `times` times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times
        self.layer = nn.Linear(3, 3)
        self.last = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = self.layer(x)
        return self.last(x)


class Recursive(nn.Module):
    """Splits an input that is too long in halves and calls itself on each."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 1:
            half = len(x) // 2
            return torch.cat([self(x[:half]), self(x[half:])])
        return self.layer(x)


class Entries(nn.Module):
    """Two encoders with one method each, as in CLIP; the forward pass calls both."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Linear(3, 4)
        self.text = nn.Linear(3, 5)

    def encode_image(self, x: Tensor) -> Tensor:
        return self.image(x)

    def encode_text(self, x: Tensor) -> Tensor:
        return self.text(self.text.weight.new_ones(len(x), 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.encode_image(x).sum() + self.encode_text(x).sum()


class Returning(nn.Module):
    """Returns the result of `make` for its input."""

    def __init__(self, make: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> object:
        return self.make(x)


class Holding(nn.Module):
    """A layer of any kind inside a model that itself returns a tensor, whatever the layer returns."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.after = Recorder()

    def forward(self, x: Tensor) -> Tensor:
        self.layer(x)
        return self.after(x)


Pair = namedtuple("Pair", ["mean", "spread"])


@dataclass
class Outcome:
    hidden: Tensor
    cache: Tensor | None = None
    loss: float = 0.0


class ModelOutput(OrderedDict):
    """The form of Hugging Face's outputs: both a dataclass and an ordered dictionary of all values except None."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) is not None:
                self[field.name] = getattr(self, field.name)


@dataclass
class EncoderOutput(ModelOutput):
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
