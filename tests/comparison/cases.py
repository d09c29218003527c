"""The cases: small models with habits that mislead tools, and the true results, computed without any tool."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.comparison.tools import Tool, thingsvision
from tests.models import Holding, Outcome, Repeated, Returning, Sometimes, chain, noise, out_of_place, seeded

CLOSE = 1e-6


@dataclass(frozen=True)
class Case:
    """A row. `check` gives True for right, False for wrong, None if the case does not apply, or raises.

    An error with one of `reasons` in its text says why.
    """

    title: str
    check: Callable[[Tool], bool | None]
    reasons: tuple[str, ...]


CASES: list[Case] = []


def case(title: str, *reasons: str) -> Callable[[Callable[..., bool | None]], Callable[..., bool | None]]:
    def add(check: Callable[..., bool | None]) -> Callable[..., bool | None]:
        CASES.append(Case(title, check, reasons))
        return check

    return add


def same(value: Any, expected: Tensor) -> bool:
    if not isinstance(value, Tensor) or value.shape != expected.shape:
        return False
    return bool((value.detach() - expected.detach()).abs().max() <= CLOSE)


def value_of(tool: Tool, model: nn.Module, layer: str, x: Tensor, *also: str) -> Any:
    (values,) = tool.extract(model, [layer, *also], [x])
    return values[layer]


# Changed in place after the layer returned


@case("`Sequential(Conv2d, ReLU(inplace=True), ...)`: the convolution")
def sequential(tool: Tool, *also: str) -> bool:
    model, x = chain(), noise(2, 3, 8, 7)
    return same(value_of(tool, model, "0", x, *also), model[0](x))


@case("the same, and a later layer asked for too")
def sequential_and_later(tool: Tool) -> bool:
    return sequential(tool, "3")


@case("AlexNet `features.0`")
def alexnet(tool: Tool, *also: str) -> bool:
    from torchvision import models

    model, x = seeded(lambda: models.alexnet(num_classes=3)), noise(2, 3, 63, 70)
    return same(value_of(tool, model, "features.0", x, *also), model.features[0](x))


@case("AlexNet `features.0`, and `features.2` asked for too")
def alexnet_and_later(tool: Tool) -> bool:
    return alexnet(tool, "features.2")


@case("ResNet-18 `layer1.0.bn2`")
def resnet18(tool: Tool, *also: str) -> bool:
    from torchvision import models

    model, x = seeded(lambda: models.resnet18(num_classes=3)), noise(2, 3, 33, 40)
    block, stem = model.layer1[0], model.maxpool(F.relu(model.bn1(model.conv1(x))))
    expected = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(stem)))))
    return same(value_of(tool, model, "layer1.0.bn2", x, *also), expected)


@case("ResNet-18 `layer1.0.bn2`, and `layer1.0` asked for too")
def resnet18_and_later(tool: Tool) -> bool:
    return resnet18(tool, "layer1.0")


@case("ResNet-50 `layer1.0.bn3`")
def resnet50(tool: Tool) -> bool:
    from torchvision import models

    model, x = seeded(lambda: models.resnet50(num_classes=3)), noise(2, 3, 33, 40)
    block, stem = model.layer1[0], model.maxpool(F.relu(model.bn1(model.conv1(x))))
    inner = F.relu(block.bn2(block.conv2(F.relu(block.bn1(block.conv1(stem))))))
    return same(value_of(tool, model, "layer1.0.bn3", x), block.bn3(block.conv3(inner)))


@case("DenseNet `features.norm5`, which a functional ReLU overwrites")
def densenet(tool: Tool, *also: str) -> bool:
    from torchvision.models import DenseNet

    model = seeded(lambda: DenseNet(growth_rate=4, block_config=(1, 2), num_init_features=8, num_classes=3))
    x = noise(2, 3, 32, 40)
    return same(value_of(tool, model, "features.norm5", x, *also), out_of_place(model).features(x))


@case("DenseNet `features.norm5`, and `classifier` asked for too")
def densenet_and_later(tool: Tool) -> bool:
    return densenet(tool, "classifier")


# Which call, which name, which tensor


@case("one ReLU called three times: its second call")
def second_call(tool: Tool) -> bool | None:
    if tool.calls is None:
        return None
    model, x = seeded(Repeated), noise(2, 3, 8, 7)
    return same(value_of(tool, model, tool.calls.format("relu", 1), x), model.stages(x)[1])


@case("one ReLU called three times: its bare name", "choose")
def bare_name(tool: Tool) -> bool:
    model, x = seeded(Repeated), noise(2, 3, 8, 7)
    value = value_of(tool, model, "relu", x)
    # torchvision names calls relu, relu_1, relu_2, so that the bare name means the first.
    return tool.name == "torchvision" and same(value, model.stages(x)[0])


class Aliased(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 4)
        self.alias = self.stem

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(x).tanh()


@case("one layer under two names: the second name", "not present", "not a valid")
def second_name(tool: Tool) -> bool:
    model, x = seeded(Aliased), noise(2, 3)
    return same(value_of(tool, model, "alias", x), model.alias(x))


def _second(tool: Tool, make: Callable[[Tensor, Tensor], Any], key: Any) -> bool:
    """The second of two tensors: by the tool's own way if it has one, else from the structure that it returns."""
    model, x = Holding(Returning(lambda x: make(x * 2, x + 1))), noise(2, 3)
    layer = f"layer[{key}]" if tool.parts else "layer.add" if tool.name == "torchvision" else "layer"
    value = value_of(tool, model, layer, x)
    if not isinstance(value, Tensor):
        value = value[key] if isinstance(value, (tuple, dict)) else getattr(value, key)
    return same(value, x + 1)


@case("a layer that returns a tuple of two tensors: the second", "choose")
def of_tuple(tool: Tool) -> bool:
    return _second(tool, lambda first, second: (first, second), 1)


@case("a layer that returns a dict: its second entry", "choose")
def of_dict(tool: Tool) -> bool:
    return _second(tool, lambda first, second: {"first": first, "second": second}, "second")


@case("a layer that returns a dataclass: its second field", "choose")
def of_dataclass(tool: Tool) -> bool:
    return _second(tool, Outcome, "cache")


# Rows, batches, layers that do not run


class Turned(nn.Module):
    """Its layer sees (tokens, batch, width), as open_clip's had it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(0, 1)).transpose(0, 1)


@case("a layer whose axis 0 is the token, as many tokens as images: one row per image", "axis 0")
def tokens_first(tool: Tool) -> bool | None:
    if not tool.rows:
        return None
    model, x = seeded(Turned), noise(4, 4, 3)
    return same(value_of(tool, model, "layer", x), model(x))


@case(
    "a layer that runs in the first batch only: the second batch",
    "did not run",
    "ran 0 times",
    "did not obtain",
    "control flow",
)
def second_batch(tool: Tool) -> bool:
    model, x = seeded(Sometimes), torch.ones(2, 3)
    # It has no value in the second batch, so that any value is wrong.
    tool.extract(model, ["extra"], [x, -x])[1]["extra"]
    return False


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


@case("`MultiheadAttention.out_proj`, which torch never calls", "did not run", "did not obtain", "not present")
def never_called(tool: Tool) -> bool:
    model, x = seeded(Attending), noise(2, 5, 8)
    return same(value_of(tool, model, "attention.out_proj", x), model(x))


# Effects on the model


def _in_training() -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.ReLU(inplace=True))
    return seeded(lambda: model).train()


@case("a model in train mode: the values of eval mode, and no buffer changed")
def train_mode(tool: Tool) -> bool:
    model, x = _in_training(), noise(2, 3, 8, 7)
    twin = copy.deepcopy(model).eval()
    value = value_of(tool, model, "2", x)
    buffers = zip(model.buffers(), twin.buffers(), strict=True)
    return same(value, twin[1](twin[0](x))) and all(torch.equal(mine, before) for mine, before in buffers)


@case("a model in train mode, one layer of it in eval mode: modes as they were")
def modes(tool: Tool) -> bool:
    model, x = _in_training(), noise(2, 3, 8, 7)
    model[1].eval()
    before = [layer.training for layer in model.modules()]
    value_of(tool, model, "2", x)
    return [layer.training for layer in model.modules()] == before


def _hooks(model: nn.Module) -> int:
    return sum(len(layer._forward_hooks) + len(layer._forward_pre_hooks) for layer in model.modules())


@case("no hook left on the model once the tool is gone")
def hooks_left(tool: Tool) -> bool:
    model = chain()
    value_of(tool, model, "0", noise(2, 3, 8, 7))
    gc.collect()
    return _hooks(model) == 0


@case("no hook left after a forward that raised")
def hooks_left_after_an_error(tool: Tool) -> bool:
    model = chain()
    try:
        value_of(tool, model, "0", noise(2, 99, 8, 7))
    except Exception as error:
        if "99 channels" not in str(error):
            raise
    gc.collect()
    return _hooks(model) == 0


# Uses of the values


def _trains(tool: Tool) -> bool:
    value = value_of(tool, chain(), "0", noise(2, 3, 8, 7)).flatten(1)
    with torch.inference_mode(False):
        probe = nn.Linear(value.shape[1], 1)
        probe(value).sum().backward()
    return probe.weight.grad is not None


@case("a probe trained on the values")
def probe(tool: Tool) -> bool:
    return _trains(tool)


@case("a probe trained on the values, extracted inside `torch.inference_mode()`")
def probe_after_inference_mode(tool: Tool) -> bool:
    with torch.inference_mode():
        return _trains(tool)


@case("a channels_last layer, flattened by the tool")
def channels_last(tool: Tool) -> bool | None:
    if not tool.flattens:
        return None
    model, x = chain().to(memory_format=torch.channels_last), noise(2, 3, 8, 7)
    x = x.contiguous(memory_format=torch.channels_last)
    if tool.distribution == "layertap":
        (values,) = tool.extract(model, [{"layer": "0", "reduce": "flatten"}], [x])
    else:
        (values,) = thingsvision(model, ["0"], [x], flatten=True)
    return same(values["0"], model[0](x).flatten(1))
