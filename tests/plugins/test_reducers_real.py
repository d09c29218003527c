"""Reducers on layers of real architectures, one after another."""

from __future__ import annotations

import functools

import pytest
import torch
import torchvision
from torch.nn import functional as F

import layertap
from layertap import TapError
from tests.models import noise, seeded

IMAGES = noise(2, 3, 64, 64)


def together(model, layer, about=None, **reduce):
    """One layer's value, unreduced and reduced in several ways, from one forward pass after the first."""
    taps = {"whole": layer, **{name: {"layer": layer, "reduce": spec} for name, spec in reduce.items()}}
    with layertap.TappedModel(model, taps, about=about or {}) as taps:
        taps.run(IMAGES)
        return taps.run(IMAGES)


def reduced(model, layer, *reduce, about=None):
    return together(model, layer, about, value=list(reduce))["value"]


@functools.cache
def resnet():
    return seeded(torchvision.models.resnet18)


@functools.cache
def vit():
    tiny = {"image_size": 64, "patch_size": 16, "num_layers": 2, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 16}
    return seeded(lambda: torchvision.models.VisionTransformer(**tiny))


@functools.cache
def swin():
    tiny = {"patch_size": [4, 4], "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": [4, 4]}
    return seeded(lambda: torchvision.models.SwinTransformer(**tiny))


def test_pools_on_resnet():
    names = ("mean_pool", "mean_patch", "max_pool", "grid_pool", "gem_pool")
    values = together(resnet(), "layer3", **{name: name for name in names})
    maps = values["whole"]
    assert maps.shape == (2, 256, 4, 4)
    assert torch.equal(values["mean_pool"], maps.mean((2, 3)))
    assert torch.equal(values["mean_patch"], maps.mean((2, 3)))
    assert torch.equal(values["max_pool"], maps.amax((2, 3)))
    torch.testing.assert_close(values["grid_pool"], F.adaptive_avg_pool2d(maps, 2))
    torch.testing.assert_close(values["gem_pool"], maps.clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3))


def test_mean_pool_of_the_last_maps_is_the_model_s_own_pool():
    with layertap.tap(resnet(), {"own": "avgpool", "ours": {"layer": "layer4", "reduce": "mean_pool"}}) as taps:
        resnet()(IMAGES)
        torch.testing.assert_close(taps["ours"], taps["own"].flatten(1))


def test_reducers_follow_one_another():
    short = {"type": "random_projection", "dim": 64, "seed": 3}
    values = together(
        resnet(),
        "layer3",
        short=["grid_pool", "flatten", short, "l2_normalise"],
        unit=["mean_pool", "l2_normalise"],
        twice=["grid_pool", {"type": "grid_pool", "k": 1}, "flatten"],
    )
    maps, short = values["whole"], values["short"]
    assert short.shape == (2, 64)
    torch.testing.assert_close(short.norm(dim=1), torch.ones(2))
    cells = F.adaptive_avg_pool2d(maps, 2).flatten(1)
    cosine = F.cosine_similarity(cells[:1], cells[1:])[0]
    torch.testing.assert_close(short[0] @ short[1], cosine, atol=0.3, rtol=0)
    torch.testing.assert_close(values["unit"], F.normalize(maps.mean((2, 3))))
    torch.testing.assert_close(values["twice"], maps.mean((2, 3)))


def test_value_that_an_earlier_reducer_made_is_refused_where_it_has_other_axes():
    for first in ("flatten", "mean_pool"):
        with pytest.raises(TapError, match=r"max_pool: the layer 'layer1' has the axes NCHW, but .* put it before"):
            reduced(resnet(), "layer1", first, "max_pool")


def test_half_precision_model_is_reduced_in_float32():
    model = seeded(torchvision.models.resnet18).bfloat16()
    with layertap.tap(model, {"maps": "layer1", "mean": {"layer": "layer1", "reduce": "mean_pool"}}) as taps:
        model(IMAGES.bfloat16())
        assert torch.equal(taps["mean"], taps["maps"].float().mean((2, 3)).bfloat16())


@pytest.mark.parametrize("layer", ["encoder.layers.encoder_layer_1", "encoder.ln", "encoder"])
def test_tokens_of_a_vision_transformer(layer):
    names = ("cls_token", "mean_patch", "mean_pool", "grid_pool")
    values = together(vit(), layer, {"num_prefix_tokens": 1}, **{name: name for name in names})
    tokens = values["whole"]
    assert tokens.shape == (2, 17, 8)
    assert torch.equal(values["cls_token"], tokens[:, 0])
    torch.testing.assert_close(values["mean_patch"], tokens[:, 1:].mean(1))
    assert torch.equal(values["mean_pool"], tokens.mean(1))
    cells = F.adaptive_avg_pool2d(tokens[:, 1:].mT.reshape(2, 8, 4, 4), 2).permute(0, 2, 3, 1)
    torch.testing.assert_close(values["grid_pool"], cells)


@pytest.mark.parametrize("reducer", ["cls_token", "mean_patch", "grid_pool"])
def test_tokens_of_a_module_that_says_nothing_are_refused_until_the_user_says(reducer):
    with pytest.raises(TapError, match=r"'encoder' has tokens, but the model does not state how many"):
        reduced(vit(), "encoder", reducer)
    said = reduced(vit(), "encoder", {"type": reducer, "num_prefix_tokens": 1})
    assert torch.equal(said, reduced(vit(), "encoder", reducer, about={"num_prefix_tokens": 1}))


def test_torchvision_says_how_many_tokens_come_first():
    from layertap_plugins.models.torchvision import TorchvisionModel

    about = TorchvisionModel.of(name="vit_b_32", weights="random", args={"image_size": 64}).load().about
    values = together(vit(), "encoder", about, token="cls_token")
    assert torch.equal(values["token"], values["whole"][:, 0])


def test_registers_are_not_patches():
    timm = pytest.importorskip("timm")
    model = seeded(
        lambda: timm.models.VisionTransformer(
            img_size=64, patch_size=16, embed_dim=8, depth=1, num_heads=2, reg_tokens=4, num_classes=2
        )
    )
    about = {"num_prefix_tokens": model.num_prefix_tokens, "layout": None}
    values = together(model, "norm", about, token="cls_token", patches="mean_patch")
    tokens = values["whole"]
    assert tokens.shape == (2, 21, 8)
    assert torch.equal(values["token"], tokens[:, 0])
    torch.testing.assert_close(values["patches"], tokens[:, 5:].mean(1))
    for reducer in ("cls_token", "mean_patch", "grid_pool"):
        with pytest.raises(TapError, match="'patch_embed' gives 16 tokens, but 5 should come before its patches"):
            reduced(model, "patch_embed", reducer, about=about)


@pytest.mark.parametrize("layer", ["features.1", "features.3", "norm"])
@pytest.mark.parametrize("layout", ["NHWC", None])
def test_maps_of_swin_have_their_channels_last(layer, layout):
    said = {} if layout else {"axes": "NHWC"}
    names = ("mean_pool", "max_pool", "grid_pool")
    values = together(swin(), layer, {"layout": layout}, **{name: {"type": name, **said} for name in names})
    maps = values["whole"]
    assert maps.shape[3] in (8, 16)
    assert torch.equal(values["mean_pool"], maps.mean((1, 2)))
    assert torch.equal(values["max_pool"], maps.amax((1, 2)))
    cells = F.adaptive_avg_pool2d(maps.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    torch.testing.assert_close(values["grid_pool"], cells)


def test_gradients_pass_through_a_line_of_reducers():
    model = seeded(torchvision.models.resnet18)
    short = {"type": "random_projection", "dim": 16}
    tap = {"layer": "layer2", "name": "value", "reduce": ["gem_pool", short, "l2_normalise"]}
    with layertap.tap(model, [tap], detach=False) as taps:
        model(IMAGES)
        taps["value"][:, 0].sum().backward()
    assert model.conv1.weight.grad.abs().sum() > 0
