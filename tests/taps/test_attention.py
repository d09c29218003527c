"""Attention weights: those of the model's eager path to 1e-6, whatever computes the attention."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import _get_current_function_mode_stack as modes

import layertap
from tests.models import noise, seeded
from tests.taps.test_operations import refused


def weights(model: nn.Module, taps, x: Tensor, **options) -> dict[str, Tensor]:
    """The weights of a whole forward, which are shares and those of a forward that stops early."""
    with torch.no_grad(), layertap.tap(model, taps, **options) as tapped:
        found = tapped.run(x)
        again = tapped.run(x)
        infos = tapped.infos
    assert not modes()
    for name, value in found.items():
        assert torch.equal(value, again[name])
        assert torch.allclose(value.sum(-1), torch.ones(()), atol=1e-5)
        assert infos[name].axes == "NHQK"
    return found


def is_derived(model, tap, x) -> bool:
    with torch.no_grad(), layertap.tap(model, tap) as tapped:
        tapped.run(x)
        (info,) = tapped.infos.values()
        return info.derived


def close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one - other).abs().max() <= 1e-6)


# Models of others


@pytest.mark.parametrize(
    ("name", "size", "depth"),
    [
        ("vit_tiny_patch16_224", 48, 2),
        ("vit_small_patch14_reg4_dinov2", 56, 2),
        ("deit3_small_patch16_224", 48, 2),
        ("beit_base_patch16_224", 48, 1),
        ("eva02_tiny_patch14_224", 56, 2),
    ],
)
def test_timm_fused_is_eager(name, size, depth):
    import timm

    model, x = seeded(lambda: timm.create_model(name, img_size=size, depth=depth)), noise(2, 3, size, size)
    taps = [f"blocks.{number}.attn@attention" for number in range(depth)]
    assert all(block.attn.fused_attn for block in model.blocks)
    fused = weights(model, taps, x)
    assert is_derived(model, taps[0], x)
    for block in model.blocks:
        block.attn.fused_attn = False
    eager = weights(model, taps, x)
    assert not is_derived(model, taps[0], x)
    softmax = weights_of_softmax(model, x, depth)
    for tap, value in fused.items():
        assert close(value, eager[tap])
        assert torch.equal(eager[tap], softmax[tap.replace("attention", "softmax")])


def weights_of_softmax(model, x, depth):
    with torch.no_grad(), layertap.tap(model, [f"blocks.{number}.attn@softmax" for number in range(depth)]) as taps:
        return taps.run(x)


def test_timm_swin_windows_with_their_bias_and_mask():
    import timm

    model = seeded(
        lambda: timm.create_model("swin_tiny_patch4_window7_224", img_size=56, depths=(2, 1, 1, 1), num_classes=3)
    )
    x, taps = noise(2, 3, 56, 56), ["layers.0.blocks.0.attn@attention", "layers.0.blocks.1.attn@attention"]
    fused = weights(model, taps, x)
    for layer in model.modules():
        if hasattr(layer, "fused_attn"):
            layer.fused_attn = False
    eager = weights(model, taps, x)
    assert fused[taps[0]].shape == (8, 3, 49, 49)
    assert all(close(fused[tap], eager[tap]) for tap in taps)


def hugging_face(kind: str, attention: str) -> nn.Module:
    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    name = {"vit": "ViT", "dinov2": "Dinov2", "clip": "CLIPVision", "siglip": "SiglipVision", "deit": "DeiT"}[kind]
    config = getattr(transformers, f"{name}Config")(**sizes, image_size=8, patch_size=4)
    config._attn_implementation = attention
    return seeded(lambda: getattr(transformers, f"{name}Model")(config))


@pytest.mark.parametrize("kind", ["vit", "dinov2", "clip", "siglip", "deit"])
def test_hugging_faces_sdpa_is_its_eager_path(kind):
    x, found = noise(2, 3, 8, 8), {}
    for attention in ("sdpa", "eager"):
        model = hugging_face(kind, attention)
        found[attention] = {k: v for k, v in weights(model, "**@attention", x).items() if "head" not in k}
    assert len(found["sdpa"]) == 2
    assert list(found["sdpa"]) == list(found["eager"])
    for tap, value in found["sdpa"].items():
        assert close(value, found["eager"][tap])
    with torch.no_grad():
        model = hugging_face(kind, "eager")
        model.config.output_attentions = True
        theirs = model(x, output_attentions=True).attentions
    for mine, their in zip(found["sdpa"].values(), theirs, strict=True):
        assert close(mine, their)


def test_torchvisions_vit():
    from torchvision.models import VisionTransformer

    model = seeded(lambda: VisionTransformer(32, 8, 2, 4, 16, 32, num_classes=3))
    x = noise(2, 3, 32, 32)
    found = weights(model, "encoder.layers.*.self_attention@attention", x)
    assert [value.shape for value in found.values()] == [(2, 4, 17, 17)] * 2
    with torch.no_grad():
        tokens = torch.cat([model.class_token.expand(2, -1, -1), model._process_input(x)], 1)
        block = model.encoder.layers[0]
        given = block.ln_1(tokens + model.encoder.pos_embedding)
        expected = block.self_attention(given, given, given, average_attn_weights=False)[1]
    assert close(found["encoder.layers.encoder_layer_0.self_attention@attention"], expected)


def test_open_clips_vision_tower():
    open_clip = pytest.importorskip("open_clip")
    model = seeded(
        lambda: open_clip.model._build_vision_tower(
            8, open_clip.model.CLIPVisionCfg(layers=2, width=64, head_width=32, patch_size=4, image_size=8)
        )
    )
    x = noise(2, 3, 8, 8)
    found = weights(model, "**@attention", x)
    assert [value.shape for value in found.values()] == [(2, 2, 5, 5)] * 2


@pytest.mark.parametrize("norm_first", [True, False])
def test_torchs_transformer_block(norm_first):
    block = seeded(lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first))
    x = noise(2, 5, 8)
    found = weights(block, "self_attn@attention", x)["self_attn@attention"]
    with torch.no_grad():
        given = block.norm1(x) if norm_first else x
        expected = block.self_attn(given, given, given, average_attn_weights=False)[1]
        plain = block(x)
        with layertap.tap(block, "self_attn@attention"):
            assert torch.allclose(block(x), plain, atol=1e-6)
    assert close(found, expected)


# Kinds of attention


class Calling(nn.Module):
    """Passes its input to a function of query, key and value."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@settings(deadline=None, max_examples=60)
@given(
    heads=st.sampled_from([(2, 2), (4, 2), (6, 1)]),
    queries=st.integers(1, 5),
    keys=st.integers(1, 5),
    mask=st.sampled_from([None, "bool", "float", "row"]),
    causal=st.booleans(),
    scale=st.sampled_from([None, 0.3]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 99),
)
def test_fused_attention_is_these_weights_times_the_values(heads, queries, keys, mask, causal, scale, dtype, seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=dtype)

    q, k = draw(2, heads[0], queries, 4), draw(2, heads[1], keys, 4)
    # The identity as values: what comes out is the weights.
    v = torch.eye(keys, dtype=dtype).expand(2, heads[1], keys, keys)
    attn_mask = None
    if mask == "bool":
        attn_mask = draw(2, 1, queries, keys) > 0
    elif mask == "float":
        attn_mask = draw(queries, keys)
    elif mask == "row":
        attn_mask = torch.ones(queries, keys, dtype=torch.bool)
        attn_mask[0] = False
    if mask is not None and causal:
        causal = False
    made = []

    def attend(x: Tensor) -> Tensor:
        made.append(
            F.scaled_dot_product_attention(
                q, k, v, attn_mask, 0.0, causal, scale=scale, enable_gqa=heads[0] != heads[1]
            )
        )
        return x

    with torch.no_grad(), layertap.tap(Calling(attend), ".@attention") as taps:
        found = taps.run(q)[".@attention"]
    assert found.dtype == dtype
    assert torch.allclose(found, made[0], atol=1e-6)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"bias": False},
        {"add_bias_kv": True},
        {"add_zero_attn": True},
        {"kdim": 6, "vdim": 5},
        {"dropout": 0.3},
    ],
    ids=str,
)
def test_multi_head_attention_of_torch(how, batch_first):
    attention = seeded(lambda: nn.MultiheadAttention(8, 2, batch_first=batch_first, **how))
    shapes = [(2, 5, 8), (2, 7, how.get("kdim", 8)), (2, 7, how.get("vdim", 8))]
    q, k, v = (noise(*shape, seed=n) for n, shape in enumerate(shapes))
    if not batch_first:
        q, k, v = (part.transpose(0, 1) for part in (q, k, v))
    masks = {
        "key_padding_mask": torch.tensor([[False] * 5 + [True] * 2, [False] * 7]),
        "attn_mask": torch.rand(5, 7, generator=torch.Generator().manual_seed(0)) > 0.8,
    }
    for options in ({}, masks):
        for need in (True, False):
            model = Calling(lambda x: x)
            model.attention = attention
            model.function = lambda x: attention(q, k, v, need_weights=need, **options)[0]  # noqa: B023
            found = weights(model, "attention@attention", q)["attention@attention"]
            with torch.no_grad():
                assert close(found, attention(q, k, v, average_attn_weights=False, **options)[1])
    model.function = lambda x: attention(q, k, v, average_attn_weights=False)[0]
    assert not is_derived(model, "attention@attention", q)


def test_half_precision_keeps_its_dtype():
    q = noise(1, 2, 3, 4).bfloat16()
    model = Calling(lambda x: F.scaled_dot_product_attention(x, x, x))
    with torch.no_grad(), layertap.tap(model, ".@attention") as taps:
        found = taps.run(q)[".@attention"]
        expected = F.scaled_dot_product_attention(q.float(), q.float(), torch.eye(3).expand(1, 2, 3, 3))
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.float(), expected, atol=4e-3)


def test_autocast_does_not_round_the_weights():
    q = noise(1, 2, 3, 4)
    model = Calling(lambda x: F.scaled_dot_product_attention(x, x, x))
    with torch.no_grad(), layertap.tap(model, ".@attention") as taps:
        plain = taps.run(q)[".@attention"]
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(taps.run(q)[".@attention"], plain)


# Which, and errors


def twice(x: Tensor) -> Tensor:
    shares = (x @ x.transpose(-2, -1) / math.sqrt(x.shape[-1])).softmax(-1)
    return F.scaled_dot_product_attention(shares @ x, x, x)


def test_layer_that_attends_twice():
    x = noise(2, 2, 3, 4)
    found = weights(Calling(twice), [".@attention:0", ".@attention:1"], x)
    assert torch.equal(found[".@attention:0"], (x @ x.transpose(-2, -1) / 2).softmax(-1))
    said = refused(Calling(twice), ".@attention", x)
    assert "'attention' runs 2 times in layer '.'; choose .@attention:0, .@attention:1 (what ran there: " in said
    assert "its indices are 0 to 1" in refused(Calling(twice), ".@attention:2", x)


class Softmaxed(nn.Module):
    """Attention with a softmax layer, as many models have it, and a layer that ends in another softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.Softmax(dim=-1)
        self.head = nn.Sequential(nn.Flatten(), nn.Softmax(dim=-1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attend(x @ x.transpose(-2, -1)) @ x).softmax(-1)


def test_softmax_layer_belongs_to_the_attention_around_it():
    model, x = nn.Sequential(Softmaxed()), noise(2, 2, 3, 4)
    expected = (x @ x.transpose(-2, -1)).softmax(-1)
    for tap in ("0@attention", "0.attend@attention", "**@attention"):
        (found,) = weights(model, tap, x).values()
        assert torch.equal(found, expected)
    assert list(weights(model, "**@attention", x)) == ["0@attention"]
    assert "what ran there: transpose, matmul:0, matmul:1, softmax" in refused(model, "0@relu", x)
    with torch.no_grad(), layertap.tap(model, ["0@softmax", "0@attention"]) as taps:
        taps.run(x)
        assert taps.run(x)["0@softmax"].shape == (2, 24)


def test_shares_that_are_no_attention_do_not_count():
    def shares(x: Tensor) -> Tensor:
        return x.softmax(1).sum((1, 2)).softmax(-1)

    said = refused(Calling(shares), ".@attention", noise(2, 3, 4, 5))
    assert "no attention weights are computed in layer '.'" in said
    assert "what ran there: softmax:0, sum, softmax:1" in said


def test_block_without_attention_of_its_own_names_the_way():
    import timm

    model = seeded(lambda: timm.create_model("test_vit"))
    said = refused(model, "blocks.0@attention", noise(1, 3, 160, 160))
    assert "blocks.0.**@attention" in said
    assert "what ran there: add:0, add:1" in said
    assert list(weights(model, "blocks.0.**@attention", noise(1, 3, 160, 160))) == ["blocks.0.attn@attention"]


@pytest.mark.parametrize("tap", ["<a@attention", "a@attention[0]"])
def test_attention_is_one_tensor_without_an_input(tap):
    with pytest.raises(layertap.TapError, match="`@attention` gives one tensor"):
        layertap.tap(nn.Linear(1, 1), tap)


def test_dropout_is_refused():
    model = Calling(lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5))
    assert "eval mode" in refused(model, ".@attention", noise(1, 2, 3, 4))


def test_weights_can_stay_in_the_graph():
    q = noise(1, 2, 3, 4).requires_grad_()
    model = Calling(lambda x: F.scaled_dot_product_attention(x, x, x))
    with layertap.tap(model, ".@attention", detach=False) as taps:
        model(q)
    (gradient,) = torch.autograd.grad(taps[".@attention"][..., 0].sum(), q)
    assert gradient.abs().sum() > 0
