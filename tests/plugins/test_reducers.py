"""The promises of every reducer: one row per image, float32 inside, the dtype restored, the activation not kept."""

from __future__ import annotations

import pytest
import torch

import layertap
from layertap import TapError
from layertap_plugins.reducers.cls_token import ClsToken
from layertap_plugins.reducers.flatten import Flatten
from layertap_plugins.reducers.gem_pool import GemPool
from layertap_plugins.reducers.grid_pool import GridPool
from layertap_plugins.reducers.l2_normalise import L2Normalise
from layertap_plugins.reducers.max_pool import MaxPool
from layertap_plugins.reducers.mean_patch import MeanPatch
from layertap_plugins.reducers.mean_pool import MeanPool
from layertap_plugins.reducers.random_projection import RandomProjection
from tests.models import Holding, Returning, noise
from tests.plugins.reducing import bound, reduced

VIT = {"num_prefix_tokens": 1}
# Reducer, parameters, axes, shape of an activation, shape of a row.
CASES = [
    (Flatten, {}, "NCHW", (3, 4, 5), (60,)),
    *[
        (cls, {}, axes, shape, (3,))
        for cls in (MeanPool, MaxPool, GemPool)
        for axes, shape in {"NCHW": (3, 4, 5), "NHWC": (4, 5, 3), "NLC": (7, 3), "NC": (3,)}.items()
    ],
    (GridPool, {"k": 2}, "NCHW", (3, 4, 5), (3, 2, 2)),
    (GridPool, {"k": 2}, "NHWC", (4, 5, 3), (2, 2, 3)),
    (GridPool, {"k": 2}, "NLC", (10, 3), (2, 2, 3)),
    (GridPool, {"k": 4}, "NCHW", (3, 4, 4), (3, 4, 4)),
    (ClsToken, {}, "NLC", (10, 3), (3,)),
    (MeanPatch, {}, "NLC", (10, 3), (3,)),
    (MeanPatch, {}, "NCHW", (3, 4, 5), (3,)),
    (MeanPatch, {}, "NHWC", (4, 5, 3), (3,)),
    (MeanPatch, {}, "NCHW", (3, 1, 1), (3,)),
    (L2Normalise, {}, "NC", (6,), (6,)),
    (RandomProjection, {"dim": 4}, "NC", (30,), (4,)),
]
COMPUTING = [case for case in CASES if case[0] is not Flatten]
ids = [f"{cls.__name__}-{axes}-{'x'.join(map(str, shape))}" for cls, _, axes, shape, _ in CASES]
every = pytest.mark.parametrize(("cls", "params", "axes", "shape", "row"), CASES, ids=ids)
computing = pytest.mark.parametrize(("cls", "params", "axes", "shape", "row"), COMPUTING, ids=ids[1:])


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("images", [0, 1, 3])
def test_reducer_gives_one_row_an_image_in_the_dtype_it_was_given(cls, params, axes, shape, row, dtype, images):
    activation = noise(images, *shape).to(dtype)
    before = activation.clone()
    value = reduced(cls, activation, axes, VIT, **params)
    assert value.shape == (images, *row)
    assert value.dtype == dtype
    assert torch.equal(activation, before)


@every
def test_images_beside_it_do_not_change_a_row(cls, params, axes, shape, row):
    activation = noise(5, *shape)
    reducer = bound(cls, activation, axes, VIT, **params)
    value = reducer(activation)
    for number in range(5):
        for others in (0.0, torch.nan):
            alone = torch.full_like(activation, others)
            alone[number] = activation[number]
            assert torch.equal(reducer(alone)[number], value[number])


@computing
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_reducer_computes_in_float32(cls, params, axes, shape, row, dtype):
    activation = (noise(3, *shape).abs() * 1000).to(dtype)
    exact = reduced(cls, activation.float(), axes, VIT, **params).to(dtype)
    assert torch.equal(reduced(cls, activation, axes, VIT, **params), exact)


@computing
def test_reducer_loses_nothing_of_float64(cls, params, axes, shape, row):
    activation = noise(3, *shape).abs().double() + 1
    # Lost in float32, which has steps of 2**-23 at 1 and larger ones above.
    finer = activation * (1 + 2**-40)
    whole, close = (reduced(cls, value, axes, VIT, **params) for value in (activation, finer))
    if cls is L2Normalise:
        assert torch.allclose(whole.norm(dim=1), torch.ones(3, dtype=torch.float64), rtol=1e-14)
    else:
        torch.testing.assert_close(close / whole - 1, torch.full_like(whole, 2**-40), rtol=1e-2, atol=0)


@computing
def test_reducer_shares_no_memory_with_the_activation(cls, params, axes, shape, row):
    for memory_format in [torch.contiguous_format, *([torch.channels_last] if len(shape) == 3 else [])]:
        activation = noise(3, *shape).to(memory_format=memory_format)
        value = reduced(cls, activation, axes, VIT, **params)
        kept = value.clone()
        activation.zero_()
        assert torch.equal(value, kept)
        assert value.untyped_storage().nbytes() == value.numel() * value.element_size()


@computing
def test_reducer_lets_gradients_through(cls, params, axes, shape, row):
    activation = noise(2, *shape).double().abs().add(0.1).requires_grad_()
    assert torch.autograd.gradcheck(bound(cls, activation, axes, VIT, **params), activation)


@computing
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_reducer_refuses_values_that_are_not_floats(cls, params, axes, shape, row, dtype):
    activation = torch.ones(2, *shape, dtype=dtype)
    if cls is ClsToken:  # it computes nothing
        assert reduced(cls, activation, axes, VIT).dtype == dtype
        return
    with pytest.raises(TapError, match=rf"{cls.name}: the layer 'features\.3' gives {str(dtype)[6:]}"):
        reduced(cls, activation, axes, VIT, **params)


@every
def test_reducer_works_by_its_name_in_a_tap_and_the_value_owns_no_more_than_itself(cls, params, axes, shape, row):
    name = getattr(cls, "name", "flatten")
    layout = axes if len(axes) == 4 else "NCHW"
    model, x = Holding(Returning(lambda x: x)), noise(3, *shape)
    tap = {"layer": "layer", "name": "value", "reduce": [{"type": name, **params}]}
    with layertap.TappedModel(model, [tap], about={**VIT, "layout": layout}) as taps:
        value = taps.run(x)["value"]
    assert torch.equal(value, reduced(cls, x, axes, VIT, **params))
    assert value.untyped_storage().nbytes() == value.numel() * value.element_size()


def test_every_parameter_is_described():
    for cls in {case[0] for case in CASES}:
        for field in cls.Params.model_fields.values():
            assert field.description
