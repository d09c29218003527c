"""Which tool gives the value of an operation: `python tests/comparison/operations.py`, with the tools that are there.

Each tool is asked as its documentation does, with its defaults. The true values are computed without any tool, in a
model that changes nothing in place. A value is right if every element is within 1e-6 of the true one.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.models import noise, out_of_place, seeded

CLOSE = 1e-6


@dataclass(frozen=True)
class Case:
    """A row: the model, its input, the true value, and how each tool names it (a tool without a name cannot)."""

    title: str
    model: nn.Module
    x: Tensor
    expected: Callable[[nn.Module, Tensor], Tensor]
    names: dict[str, Any] = field(default_factory=dict)


def layertap(model: nn.Module, x: Tensor, name: str) -> Tensor:
    import layertap

    with layertap.tap(model, name) as taps:
        return taps.run(x)[name]


def torchvision(model: nn.Module, x: Tensor, name: Any) -> Tensor:
    from torchvision.models.feature_extraction import create_feature_extractor

    node, *part = name if isinstance(name, tuple) else (name,)
    value = create_feature_extractor(model, return_nodes=[node])(x)[node]
    return value[part[0]] if part else value


def torchlens(model: nn.Module, x: Tensor, name: tuple[str, str, int]) -> Tensor:
    import torchlens

    function, layer, number = name
    logged = torchlens.trace(model, x).layer_list
    found = [op for op in logged if op.func_name == function and (op.modules or [":"])[-1].partition(":")[0] == layer]
    return found[number].out


def nnsight(model: nn.Module, x: Tensor, name: Callable[[Any], Any]) -> Tensor:
    from nnsight import NNsight

    traced = NNsight(model)
    with traced.trace(x):
        value = name(traced).save()
    return value


TOOLS = {"layertap": layertap, "torchvision": torchvision, "torchlens": torchlens, "nnsight": nnsight}


def cases() -> list[Case]:
    """The rows, with untrained models of a few thousand parameters."""
    return [*_residuals(), *_functional(), *_attention()]


def _residuals() -> list[Case]:
    from torchvision import models

    def sum_of(model: nn.Module, x: Tensor) -> Tensor:
        twin = out_of_place(model)
        block, stem = twin.layer1[0], twin.maxpool(F.relu(twin.bn1(twin.conv1(x))))
        y = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(stem)))))
        if hasattr(block, "conv3"):
            y = block.bn3(block.conv3(F.relu(y)))
        return y + (stem if block.downsample is None else block.downsample(stem))

    return [
        Case(
            f"ResNet-{depth}: the first residual sum, which a ReLU overwrites",
            seeded(lambda: getattr(models, f"resnet{depth}")(num_classes=3)),  # noqa: B023
            noise(2, 3, 33, 40),
            sum_of,
            {
                "layertap": "layer1.0@add",
                "torchvision": "layer1.0.add",
                "torchlens": ("__iadd__", "layer1.0", 0),
                # It names calls, and the sum is a statement: the input of the call that follows.
                "nnsight": lambda m, last={18: 1, 50: 2}[depth]: getattr(m.layer1[0].source, f"self_relu_{last}").input,
            },
        )
        for depth in (18, 50)
    ]


def _functional() -> list[Case]:
    from torchvision import models

    dense = seeded(lambda: models.DenseNet(growth_rate=4, block_config=(1, 2), num_init_features=8, num_classes=3))
    return [
        Case(
            "DenseNet: the functional ReLU",
            dense,
            noise(2, 3, 32, 40),
            lambda model, x: F.relu(out_of_place(model).features(x)),
            {
                "layertap": ".@relu",
                "torchvision": "relu",
                "torchlens": ("relu_", "", 0),
                "nnsight": lambda m: m.source.F_relu_0.output,
            },
        ),
        Case(
            "DenseNet: what the functional in-place ReLU receives",
            dense,
            noise(2, 3, 32, 40),
            lambda model, x: out_of_place(model).features(x),
            {"layertap": "<.@relu", "nnsight": lambda m: m.source.F_relu_0.input},
        ),
        Case(
            "EfficientNet: what squeeze-and-excitation multiplies",
            seeded(lambda: models.efficientnet_b0(num_classes=3)),
            noise(2, 3, 33, 40),
            _excited,
            {
                "layertap": "features.1.0.block.1@mul",
                "torchlens": ("__mul__", "features.1.0.block.1", 0),
            },
        ),
    ]


def _excited(model: nn.Module, x: Tensor) -> Tensor:
    twin = out_of_place(model)
    block = twin.features[1][0].block
    y = block[0](twin.features[0](x))
    return block[1]._scale(y) * y


def _attention() -> list[Case]:
    import timm
    from torchvision.models import VisionTransformer

    def vit(fused: bool) -> nn.Module:
        model = seeded(lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=3))
        model.blocks[0].attn.fused_attn = fused
        return model

    def parts(model: nn.Module, x: Tensor) -> Tensor:
        block = model.blocks[0]
        tokens = block.norm1(model._pos_embed(model.patch_embed(x)))
        return block.attn.qkv(tokens).reshape(len(x), 5, 3, 3, 64).permute(2, 0, 3, 1, 4)

    def weights(model: nn.Module, x: Tensor) -> Tensor:
        q, k, _ = parts(model, x)
        return ((q * 64**-0.5) @ k.transpose(-2, -1)).softmax(-1)

    def shares(model: nn.Module, x: Tensor) -> Tensor:
        tokens = torch.cat([model.class_token.expand(len(x), -1, -1), model._process_input(x)], 1)
        block = model.encoder.layers[0]
        given = block.ln_1(tokens + model.encoder.pos_embedding)
        return block.self_attention(given, given, given, average_attn_weights=False)[1]

    x, eager, fused = noise(2, 3, 32, 32), vit(False), vit(True)
    return [
        Case(
            "timm ViT: the query of each head",
            fused,
            x,
            lambda model, x: parts(model, x)[0],
            {
                "layertap": "blocks.0.attn@unbind[0]",
                "torchvision": ("blocks.0.attn.unbind", 0),
                "torchlens": ("unbind", "blocks.0.attn", 0),
                "nnsight": lambda m: m.blocks[0].attn.source.qkv_unbind_0.output[0],
            },
        ),
        Case(
            "timm ViT, eager: the attention weights",
            eager,
            x,
            weights,
            {
                "layertap": "blocks.0.attn@attention",
                "torchvision": "blocks.0.attn.softmax",
                "torchlens": ("softmax", "blocks.0.attn", 0),
                "nnsight": lambda m: m.blocks[0].attn.source.attn_softmax_0.output,
            },
        ),
        Case("timm ViT, fused: the attention weights", fused, x, weights, {"layertap": "blocks.0.attn@attention"}),
        Case(
            "torchvision ViT: the attention weights",
            seeded(lambda: VisionTransformer(32, 8, 1, 4, 16, 32, num_classes=3)),
            x,
            shares,
            {"layertap": "encoder.layers.encoder_layer_0.self_attention@attention"},
        ),
    ]


def word(case: Case, tool: str) -> str:
    """What a tool's answer is."""
    if tool not in case.names:
        return "-"
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            expected = case.expected(case.model, case.x)
            found = TOOLS[tool](case.model, case.x, case.names[tool])
            right = found.shape == expected.shape and bool((found - expected).abs().max() <= CLOSE)
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        return f"error ({type(error).__name__}: {first[:60]})"
    return "right" if right else "wrong"


def table() -> list[str]:
    """The table, in Markdown, and the versions of the tools."""
    versions = {}
    for tool in TOOLS:
        with contextlib.suppress(PackageNotFoundError):
            versions[tool] = version(tool)
    lines = [f"| case | {' | '.join(versions)} |", "| --- |" + " --- |" * len(versions)]
    lines += [f"| {case.title} | {' | '.join(word(case, tool) for tool in versions)} |" for case in cases()]
    return [*lines, "", ", ".join(f"{tool} {number}" for tool, number in versions.items())]


if __name__ == "__main__":
    print("\n".join(table()))
