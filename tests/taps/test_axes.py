"""Pools average what they should: the axes of a value are known, or refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import layertap
from layertap.taps.axes import axes_of


def pooled(model: nn.Module, layer: str, x: torch.Tensor) -> torch.Tensor:
    with layertap.tap(model.eval(), [{"layer": layer, "reduce": "mean_pool"}]) as taps, torch.no_grad():
        model(x)
        return taps[layer]


@pytest.mark.parametrize(
    ("layer", "channels_last"),
    [("features.0", True), ("features.1.0.norm1", True), ("features.3", True), ("norm", True), ("permute", False)],
)
def test_swin_is_pooled_over_its_sides_without_being_told(layer, channels_last):
    from torchvision.models import swin_t

    torch.manual_seed(0)
    model, x = swin_t().eval(), torch.randn(2, 3, 96, 96)
    with layertap.tap(model, layer) as taps, torch.no_grad():
        model(x)
        whole = taps[layer]
    expected = whole.mean((1, 2) if channels_last else (2, 3))
    assert torch.allclose(pooled(model, layer, x), expected, atol=1e-6)


@pytest.mark.parametrize("layer", ["features.0", "features.1.0.block.0", "features.1"])
def test_convnext_blocks_are_channels_first(layer):
    from torchvision.models import convnext_tiny

    torch.manual_seed(0)
    model, x = convnext_tiny(), torch.randn(2, 3, 64, 64)
    with layertap.tap(model.eval(), layer) as taps, torch.no_grad():
        model(x)
        whole = taps[layer]
    assert torch.allclose(pooled(model, layer, x), whole.mean((2, 3)), atol=1e-6)


def test_convolutions_are_channels_first_at_any_size():
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))
    x = torch.randn(2, 3, 7, 12)
    model(x)
    assert pooled(model, "1", x).shape == (2, 5)


def test_map_that_could_be_either_is_refused():
    model = nn.Sequential(nn.Identity(), nn.Flatten(), nn.LayerNorm(6 * 4 * 5))
    with pytest.raises(layertap.TapError, match="say `axes: NCHW`"):
        pooled(model, "0", torch.randn(2, 6, 4, 5))
    with layertap.tap(model, [{"layer": "0", "reduce": {"type": "mean_pool", "axes": "NHWC"}}]) as taps:
        model(torch.randn(2, 6, 4, 5))
        assert taps["0"].shape == (2, 5)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((2,), "N"), ((2, 5), "NC"), ((2, 4, 5), "NLC"), ((2, 3, 4, 5), "NCHW"), ((2, 3, 4, 5, 6), "")],
)
def test_axes_by_rank(shape, axes):
    assert axes_of(shape, nn.Identity(), nn.Identity(), {}) == axes


def test_facts_of_the_model_come_first():
    assert axes_of((2, 7, 7, 3), nn.Identity(), nn.Identity(), {"layout": "NCHW"}) == "NCHW"
    assert axes_of((2, 7, 7, 3), nn.Identity(), nn.Identity(), {"layout": None}) == "NHWC"
    assert axes_of((2, 7, 7, 7), nn.Conv2d(1, 1, 1), nn.Identity(), {"layout": None}) == "NCHW"
    assert axes_of((2, 7, 7, 7), nn.Identity(), nn.Identity(), {"layout": None}) == ""
    assert axes_of((2, 4, 9), nn.Conv1d(1, 1, 1), nn.Identity(), {}) == ""
