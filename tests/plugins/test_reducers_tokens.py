"""Tokens: the model or the user says which are the class, registers and patches, and nothing is guessed."""

from __future__ import annotations

import pytest
import torch

from layertap import TapError
from layertap_plugins.reducers.cls_token import ClsToken
from layertap_plugins.reducers.grid_pool import GridPool
from layertap_plugins.reducers.mean_patch import MeanPatch
from tests.models import noise
from tests.plugins.reducing import info, reduced

TOKENS = [ClsToken, MeanPatch, GridPool]
tokens_only = pytest.mark.parametrize("cls", TOKENS, ids=[cls.name for cls in TOKENS])


@pytest.mark.parametrize("prefix", [1, 2, 5])
def test_cls_token_is_the_first_before_any_registers(prefix):
    tokens = noise(2, prefix + 16, 3)
    assert torch.equal(reduced(ClsToken, tokens, "NLC", {"num_prefix_tokens": prefix}), tokens[:, 0])


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_mean_patch_leaves_out_class_and_register_tokens(prefix):
    tokens = noise(2, prefix + 16, 3)
    tokens[:, :prefix] = torch.nan
    about = {"num_prefix_tokens": prefix}
    torch.testing.assert_close(reduced(MeanPatch, tokens, "NLC", about), tokens[:, prefix:].mean(1))


@tokens_only
@pytest.mark.parametrize("about", [{}, {"num_prefix_tokens": None}])
def test_model_that_does_not_say_is_not_guessed_at(cls, about):
    with pytest.raises(TapError, match=r"'features\.3' has tokens, but .* num_prefix_tokens: 1}"):
        cls().bind(info(noise(2, 17, 3), "NLC", **about))


@tokens_only
def test_user_may_say_how_many_tokens_come_first(cls):
    tokens = noise(2, 17, 3)
    for about in ({}, {"num_prefix_tokens": 5}):
        value = reduced(cls, tokens, "NLC", about, num_prefix_tokens=1)
        assert torch.equal(value, reduced(cls, tokens, "NLC", {"num_prefix_tokens": 1}))


@tokens_only
@pytest.mark.parametrize(("count", "prefix"), [(1, 1), (1, 5), (5, 5)])
def test_layer_without_room_for_patches_is_refused(cls, count, prefix):
    with pytest.raises(
        TapError, match=rf"gives {count} tokens?, but {prefix} should come .*: no patches would be left"
    ):
        reduced(cls, noise(2, count, 3), "NLC", {"num_prefix_tokens": prefix})


@tokens_only
@pytest.mark.parametrize(("count", "prefix"), [(196, 1), (256, 5), (4, 1), (64, 2)])
def test_layer_that_seems_to_hold_the_patches_alone_is_refused(cls, count, prefix):
    with pytest.raises(TapError, match=rf"gives {count} tokens, but {prefix} should .*: these look like patches only"):
        reduced(cls, noise(2, count, 3), "NLC", {"num_prefix_tokens": prefix})


def test_layer_that_holds_the_patches_alone_is_served_when_the_user_says_so():
    tokens = noise(2, 196, 3)
    value = reduced(MeanPatch, tokens, "NLC", {"num_prefix_tokens": 1}, num_prefix_tokens=0)
    torch.testing.assert_close(value, tokens.mean(1))
    # One class token and 15 x 13 patches.
    value = reduced(MeanPatch, tokens, "NLC", num_prefix_tokens=1)
    torch.testing.assert_close(value, tokens[:, 1:].mean(1))


@pytest.mark.parametrize(
    "about",
    [{"num_prefix_tokens": 0}, {"num_prefix_tokens": 4, "has_class_token": False}],
)
def test_cls_token_refuses_a_model_that_has_none(about):
    with pytest.raises(TapError, match="belongs to a model without a class token; use mean_patch or mean_pool"):
        ClsToken().bind(info(noise(2, 20, 3), "NLC", **about))


@pytest.mark.parametrize(("axes", "shape"), [("NCHW", (3, 4, 4)), ("NHWC", (4, 4, 3)), ("NC", (3,))])
def test_cls_token_refuses_values_without_tokens(axes, shape):
    with pytest.raises(TapError, match=rf"'features\.3' has the axes {axes} .*, not NLC"):
        ClsToken().bind(info(noise(2, *shape), axes, num_prefix_tokens=1))


@pytest.mark.parametrize("cls", [MeanPatch, GridPool])
def test_maps_need_no_prefix(cls):
    assert reduced(cls, noise(2, 3, 4, 4), "NCHW").shape[:2] == (2, 3)
