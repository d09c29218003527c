"""Pools over maps and tokens: correct values, whatever the layout, without guessing the layout."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

import layertap
from layertap import ConfigError, TapError
from layertap_plugins.reducers.flatten import Flatten
from layertap_plugins.reducers.gem_pool import GemPool
from layertap_plugins.reducers.grid_pool import GridPool
from layertap_plugins.reducers.max_pool import MaxPool
from layertap_plugins.reducers.mean_patch import MeanPatch
from layertap_plugins.reducers.mean_pool import MeanPool
from tests.models import chain, noise
from tests.plugins.reducing import bound, info, reduced

sides = st.integers(1, 9)
seeds = st.integers(0, 1000)


def whole_numbers(*shape, seed):
    """Values with sums that are exact in any order."""
    return torch.randint(-9, 10, shape, generator=torch.Generator().manual_seed(seed)).float()


# --- flatten


@pytest.mark.parametrize(
    ("shape", "values"), [((2, 3, 4, 5), 60), ((2, 7), 7), ((2,), 1), ((0, 3, 2), 6), ((2, 0, 3), 0)]
)
def test_flatten_gives_one_row_an_image(shape, values):
    activation = torch.randn(shape)
    flat = Flatten()(activation)
    assert flat.shape == (shape[0], values)
    assert torch.equal(flat.reshape(shape), activation)


def test_flatten_keeps_the_order_of_the_axes_in_channels_last():
    activation = torch.randn(2, 3, 4, 5)
    assert torch.equal(Flatten()(activation.to(memory_format=torch.channels_last)), activation.flatten(1))


# --- one value per channel


@pytest.mark.parametrize(("axes", "shape", "dims"), [("NCHW", (2, 3, 4, 5), (2, 3)), ("NHWC", (2, 4, 5, 3), (1, 2))])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("cls", [MeanPool, MeanPatch])
def test_mean_averages_maps_over_space(cls, axes, shape, dims, memory_format):
    activation = noise(*shape).to(memory_format=memory_format)
    assert torch.equal(reduced(cls, activation, axes), activation.mean(dims))


def test_mean_pool_averages_all_tokens():
    activation = noise(2, 7, 3)
    assert torch.equal(reduced(MeanPool, activation, "NLC", {"num_prefix_tokens": 1}), activation.mean(1))


@pytest.mark.parametrize("cls", [MeanPool, MaxPool])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_pool_leaves_a_row_as_it_is(cls, dtype):
    activation = torch.tensor([[1.1, -3e4, 0.0, torch.inf, -torch.inf]]).to(dtype)
    assert torch.equal(reduced(cls, activation, "NC"), activation)


@given(h=sides, w=sides, seed=seeds)
def test_pool_does_not_mind_where_things_are(h, w, seed):
    maps = whole_numbers(2, 3, h, w, seed=seed)
    order = torch.randperm(h * w, generator=torch.Generator().manual_seed(seed))
    shuffled = maps.flatten(2)[:, :, order].reshape(maps.shape)
    for cls in (MeanPool, MaxPool, MeanPatch):
        assert torch.equal(reduced(cls, maps, "NCHW"), reduced(cls, shuffled, "NCHW"))
    torch.testing.assert_close(reduced(GemPool, maps, "NCHW"), reduced(GemPool, shuffled, "NCHW"))


@given(h=sides, w=sides, seed=seeds)
def test_pool_gives_the_same_whatever_the_layout(h, w, seed):
    maps = whole_numbers(2, 3, h, w, seed=seed)
    layouts = {"NCHW": maps, "NHWC": maps.permute(0, 2, 3, 1).contiguous(), "NLC": maps.flatten(2).mT.contiguous()}
    for cls in (MeanPool, MaxPool, MeanPatch):
        values = [reduced(cls, value, axes, {"num_prefix_tokens": 0}) for axes, value in layouts.items()]
        assert torch.equal(values[0], values[1])
        assert torch.equal(values[0], values[2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_long_sums_of_half_precision_do_not_overflow(dtype):
    maps = torch.full((1, 2, 250, 280), 1000, dtype=dtype)
    for cls, params in [(MeanPool, {}), (MeanPatch, {}), (GemPool, {"p": 8}), (GridPool, {"k": 1})]:
        assert torch.equal(reduced(cls, maps, "NCHW", **params).flatten(), torch.full((2,), 1000, dtype=dtype))


def test_max_pool_shows_what_is_not_a_number():
    maps = torch.tensor([[[[1.0, torch.nan]], [[2.0, torch.inf]], [[-torch.inf, -3.0]]]])
    torch.testing.assert_close(
        reduced(MaxPool, maps, "NCHW"), torch.tensor([[torch.nan, torch.inf, -3.0]]), equal_nan=True
    )


# --- gem_pool


def test_gem_pool_is_the_generalised_mean_of_the_paper():
    maps = noise(2, 3, 6, 7)
    paper = F.avg_pool2d(maps.clamp(min=1e-6).pow(3), (6, 7)).pow(1 / 3).flatten(1)
    torch.testing.assert_close(reduced(GemPool, maps, "NCHW"), paper)


def test_gem_pool_goes_from_the_mean_to_the_maximum():
    maps = noise(2, 3, 6, 7).abs()
    torch.testing.assert_close(reduced(GemPool, maps, "NCHW", p=1), maps.mean((2, 3)))
    torch.testing.assert_close(reduced(GemPool, maps, "NCHW", p=5000), maps.amax((2, 3)), rtol=1e-3, atol=0)


@pytest.mark.parametrize(("value", "p"), [(1e30, 3), (1e-20, 3), (1e4, 50), (3.0, 1000)])
def test_gem_pool_neither_overflows_nor_vanishes_in_its_powers(value, p):
    maps = torch.full((1, 1, 3, 3), value)
    torch.testing.assert_close(
        reduced(GemPool, maps, "NCHW", p=p, eps=1e-30), torch.tensor([[value]]), rtol=1e-5, atol=0
    )


def test_gem_pool_counts_values_below_eps_as_eps():
    maps = torch.tensor([[[[-5.0, 0.0]], [[0.0, 2.0]]]])
    value = reduced(GemPool, maps, "NCHW", p=2, eps=0.5)
    torch.testing.assert_close(value, torch.tensor([[0.5, ((0.25 + 4) / 2) ** 0.5]]))
    torch.testing.assert_close(reduced(GemPool, maps[:, :, 0, 0], "NC", eps=0.5), torch.tensor([[0.5, 0.5]]))


@pytest.mark.parametrize("params", [{"p": 0.5}, {"p": float("inf")}, {"p": float("nan")}, {"eps": 0}, {"eps": -1}])
def test_gem_pool_refuses_powers_and_limits_without_a_mean(params):
    with pytest.raises(ConfigError, match=r"^taps\[0\]\.reduce\[0\]\.(p|eps): "):
        layertap.tap(chain(), [{"layer": "0", "reduce": {"type": "gem_pool", **params}}])


# --- grid_pool


@given(h=sides, w=sides, k=st.integers(1, 9), seed=seeds)
def test_grid_pool_is_adaptive_average_pooling(h, w, k, seed):
    maps = noise(2, 3, max(h, k), max(w, k), seed=seed)
    exact = F.adaptive_avg_pool2d(maps.double(), k).float()
    torch.testing.assert_close(reduced(GridPool, maps, "NCHW", k=k), exact)
    last = maps.permute(0, 2, 3, 1).contiguous()
    torch.testing.assert_close(reduced(GridPool, last, "NHWC", k=k), exact.permute(0, 2, 3, 1))


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_grid_pool_lays_the_grid_over_the_patches(prefix):
    tokens = noise(2, prefix + 36, 4)
    maps = tokens[:, prefix:].mT.reshape(2, 4, 6, 6)
    value = reduced(GridPool, tokens, "NLC", {"num_prefix_tokens": prefix}, k=3)
    torch.testing.assert_close(value, F.adaptive_avg_pool2d(maps, 3).permute(0, 2, 3, 1))


def test_grid_pool_keeps_its_precision_on_large_maps():
    maps = torch.full((1, 1, 700, 700), 1000.1)
    torch.testing.assert_close(reduced(GridPool, maps, "NCHW", k=2), maps[:, :, :2, :2], rtol=1e-6, atol=0)


def test_grid_pool_refuses_a_map_smaller_than_its_grid():
    with pytest.raises(TapError, match=r"'features\.3' has maps of 3 x 1, too small for 2 x 2 cells; use a smaller k"):
        reduced(GridPool, noise(2, 4, 3, 1), "NCHW", k=2)


def test_grid_pool_refuses_patches_that_are_not_a_square():
    with pytest.raises(TapError, match=r"'features\.3' has 8 patches, which do not form a square map; use mean_patch"):
        reduced(GridPool, noise(2, 9, 4), "NLC", num_prefix_tokens=1)


# --- axes


@pytest.mark.parametrize("cls", [MeanPool, MaxPool, GemPool, GridPool, MeanPatch])
@pytest.mark.parametrize(
    ("shape", "way_out"), [((5, 6, 7, 8), "flatten"), ((5, 6, 7), "axes: NHWC"), ((5, 6), "axes: NLC"), ((), "flatten")]
)
def test_unknown_axes_are_refused_with_a_way_out(cls, shape, way_out):
    with pytest.raises(TapError) as error:
        cls().bind(info(torch.zeros(2, *shape), "" if shape else "N"))
    for part in (cls.name, "features.3", str(shape), way_out):
        assert part in str(error.value)


@pytest.mark.parametrize("cls", [GridPool, MeanPatch])
def test_row_without_space_is_refused(cls):
    with pytest.raises(TapError, match=r"has the axes NC \(.*\), not NCHW or NHWC or NLC; omit it for this layer"):
        cls().bind(info(torch.zeros(2, 5), "NC"))


def test_user_may_say_what_the_axes_are():
    maps = noise(2, 4, 5, 3)
    for known in ("", "NCHW"):
        assert torch.equal(reduced(MeanPool, maps, known, axes="NHWC"), maps.mean((1, 2)))


@pytest.mark.parametrize("axes", ["NWHC", "NC", "nchw", ""])
def test_misspelt_axes_are_refused(axes):
    with pytest.raises(ConfigError, match=r"^taps\[0\]\.reduce\[0\]\.axes: "):
        layertap.tap(chain(), [{"layer": "0", "reduce": {"type": "mean_pool", "axes": axes}}])


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4), (2, 3, 4, 5, 6)])
def test_value_that_cannot_have_the_axes_is_refused(shape):
    reducer = bound(MeanPool, noise(2, 3, 4, 5), "NCHW")
    with pytest.raises(TapError, match=rf"'features\.3' has the axes NCHW, but .* \(N, {str(shape[1:])[1]}.*`axes`"):
        reducer(noise(*shape))


@pytest.mark.parametrize("cls", [MeanPool, MaxPool, GemPool, GridPool, MeanPatch])
def test_map_without_positions_is_refused(cls):
    with pytest.raises(TapError, match=r"'features\.3' gives \(N, 3, 0, 4\), which has no values"):
        reduced(cls, torch.zeros(2, 3, 0, 4), "NCHW")
