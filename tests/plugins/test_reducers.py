"""The reducers keep one row an image, name what they cannot serve, and change nothing they are given."""

from __future__ import annotations

import pytest
import torch

from layertap import TapError, TapInfo
from layertap_plugins.reducers.flatten import Flatten
from layertap_plugins.reducers.mean_pool import MeanPool


def pooled(activation, axes):
    reducer = MeanPool()
    reducer.bind(info(activation, axes))
    return reducer(activation)


def info(activation, axes):
    dtype = str(activation.dtype).removeprefix("torch.")
    return TapInfo("tap", "features.3", "output", None, (), tuple(activation.shape[1:]), dtype, axes)


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


@pytest.mark.parametrize(("axes", "shape", "dims"), [("NCHW", (2, 3, 4, 5), (2, 3)), ("NHWC", (2, 4, 5, 3), (1, 2))])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_mean_pool_averages_maps_over_space(axes, shape, dims, memory_format):
    activation = torch.randn(shape).to(memory_format=memory_format)
    assert torch.equal(pooled(activation, axes), activation.mean(dims))
    assert pooled(activation, axes).shape == (2, 3)


def test_mean_pool_averages_tokens():
    activation = torch.randn(2, 7, 3)
    assert torch.equal(pooled(activation, "NLC"), activation.mean(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("axes", ["NCHW", "NC"])
def test_mean_pool_sums_in_float32_and_gives_the_dtype_back(dtype, axes):
    activation = (torch.rand((2, 3, 64, 64) if axes == "NCHW" else (2, 3)) * 1000).to(dtype)
    exact = activation.float().mean((2, 3)) if axes == "NCHW" else activation
    assert torch.equal(pooled(activation, axes), exact.to(dtype))
    assert pooled(activation, axes).dtype == dtype


def test_mean_pool_loses_nothing_of_float64():
    activation = torch.tensor([[[[1.0, 1.0 + 2**-40]]]], dtype=torch.float64)
    assert pooled(activation, "NCHW").item() == 1.0 + 2**-41


@pytest.mark.parametrize(("axes", "shape"), [("NC", (2, 3)), ("NCHW", (2, 3, 1, 1)), ("NLC", (2, 1, 3))])
def test_mean_pool_shares_no_memory_with_the_activation(axes, shape):
    activation = torch.ones(shape)
    result = pooled(activation, axes)
    activation.zero_()
    assert torch.equal(result, torch.ones(2, 3))


@pytest.mark.parametrize("axes", ["", "N"])
def test_mean_pool_refuses_axes_that_nobody_knows_and_names_the_way_out(axes):
    with pytest.raises(TapError) as error:
        MeanPool().bind(info(torch.zeros(2, 5, 6, 7, 8), axes))
    for part in ("features.3", "(5, 6, 7, 8)", "flatten"):
        assert part in str(error.value)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_mean_pool_refuses_what_is_no_float(dtype):
    with pytest.raises(TapError, match=r"features\.3"):
        MeanPool().bind(info(torch.zeros(2, 3, dtype=dtype), "NC"))
