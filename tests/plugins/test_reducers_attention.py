"""Attention weights: averaged over the heads, and what the class token looks at, as a map."""

from __future__ import annotations

import pytest
import torch

import layertap
from layertap import TapError
from layertap_plugins.reducers.from_cls import FromCls
from layertap_plugins.reducers.mean_heads import MeanHeads
from tests.models import noise, seeded
from tests.plugins.reducing import bound, info, reduced

CLASS = {"num_prefix_tokens": 1}


def shares(*shape):
    return noise(*shape).softmax(-1)


@pytest.mark.parametrize("axes", ["NHQK", ""])
def test_mean_heads_is_the_mean_over_axis_1(axes):
    weights = shares(2, 3, 5, 7)
    assert torch.equal(reduced(MeanHeads, weights, axes), weights.mean(1))
    half = reduced(MeanHeads, weights.bfloat16(), axes)
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("prefix", [1, 2, 5])
def test_from_cls_is_the_row_of_the_class_token_as_a_map(prefix):
    weights = shares(2, 3, prefix + 9, prefix + 9)
    found = reduced(FromCls, weights, "NHQK", {"num_prefix_tokens": prefix})
    assert torch.equal(found, weights[:, :, 0, prefix:].reshape(2, 3, 3, 3))
    after = bound(FromCls, weights, "NHQK", {"num_prefix_tokens": prefix})(weights.mean(1))
    assert torch.equal(after, weights.mean(1)[:, 0, prefix:].reshape(2, 3, 3))


def test_from_cls_of_a_map_that_is_not_square():
    weights = shares(2, 3, 7, 7)
    assert reduced(FromCls, weights, "NHQK", CLASS, grid=(2, 3)).shape == (2, 3, 2, 3)
    for params in ({}, {"grid": (3, 3)}):
        with pytest.raises(TapError, match=r"6 keys after the first 1, which do not form .*; set `grid:"):
            reduced(FromCls, weights, "NHQK", CLASS, **params)


@pytest.mark.parametrize("about", [{"num_prefix_tokens": 0}, {"num_prefix_tokens": 4, "has_class_token": False}])
def test_from_cls_refuses_a_model_without_a_class_token(about):
    with pytest.raises(TapError, match="belongs to a model without a class token; use mean_heads"):
        FromCls().bind(info(shares(2, 3, 5, 5), "NHQK", **about))


def test_from_cls_does_not_guess_the_prefix():
    with pytest.raises(TapError, match="does not state how many of them come before the patches"):
        FromCls().bind(info(shares(2, 3, 5, 5), "NHQK"))
    assert reduced(FromCls, shares(2, 3, 5, 5), "NHQK", {}, num_prefix_tokens=1).shape == (2, 3, 2, 2)


@pytest.mark.parametrize("cls", [MeanHeads, FromCls])
@pytest.mark.parametrize(("axes", "shape"), [("NCHW", (2, 3, 4, 4)), ("NLC", (2, 17, 8)), ("NC", (2, 8))])
def test_values_that_are_no_attention_weights_are_refused(cls, axes, shape):
    with pytest.raises(
        TapError, match=r"gives no attention weights .*; tap the weights, such as features\.3@attention"
    ):
        cls.of().bind(info(noise(*shape), axes, **CLASS))


def test_mean_heads_comes_before_from_cls():
    weights = shares(2, 3, 5, 5)
    with pytest.raises(TapError, match="put mean_heads before the reducers"):
        bound(MeanHeads, weights, "NHQK")(weights.mean(1))


def test_class_attention_of_a_real_transformer():
    import timm

    model = seeded(lambda: timm.create_model("vit_small_patch14_reg4_dinov2", img_size=56, depth=2))
    tap = {"layer": "blocks.*.attn", "op": "attention", "reduce": ["mean_heads", "from_cls"]}
    x = noise(2, 3, 56, 56)
    from layertap.taps.tapped import TappedModel

    with torch.no_grad(), TappedModel(model, [tap], about={"num_prefix_tokens": 5}) as taps:
        found = taps.run(x)
    with torch.no_grad(), layertap.tap(model, "blocks.*.attn@attention") as taps:
        whole = taps.run(x)
    for name, value in found.items():
        assert torch.equal(value, whole[name].mean(1)[:, 0, 5:].reshape(2, 4, 4))
