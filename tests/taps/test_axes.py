"""Pools average what they should: the axes of a value are known, or refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import layertap


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
    with pytest.raises(layertap.TapError, match="set `axes: NCHW`"):
        pooled(model, "0", torch.randn(2, 6, 4, 5))
    with layertap.tap(model, [{"layer": "0", "reduce": {"type": "mean_pool", "axes": "NHWC"}}]) as taps:
        model(torch.randn(2, 6, 4, 5))
        assert taps["0"].shape == (2, 5)


def axes(model, layer, *inputs, about=None, **kwargs):
    """The axes that the taps of a model say `layer` has, after one forward."""
    with layertap.TappedModel(model.eval(), layer, about=about) as taps, torch.no_grad():
        taps.run(*inputs, **kwargs)
        (info,) = taps.infos.values()
        return info.axes


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((2,), "N"), ((2, 5), "NC"), ((2, 4, 5), "NLC"), ((2, 3, 4, 5), "NCHW"), ((2, 3, 4, 5, 6), "")],
)
def test_axes_by_rank(shape, expected):
    assert axes(nn.Sequential(nn.Identity()), "0", torch.randn(shape)) == expected


def test_facts_of_the_model_come_first():
    convolution, image = nn.Sequential(nn.Conv2d(3, 7, 1), nn.Identity(), nn.LayerNorm(7)), torch.randn(2, 3, 7, 7)
    assert axes(convolution, "1", image, about={"layout": "NCHW"}) == "NCHW"
    assert axes(convolution, "1", image, about={"layout": "NHWC"}) == "NHWC"
    assert axes(convolution, "0", image, about={"layout": None}) == "NCHW"
    assert axes(convolution, "1", image, about={"layout": None}) == ""
    assert axes(nn.Sequential(nn.Conv1d(5, 4, 1)), "0", torch.randn(2, 5, 9)) == ""


class Attention(nn.Module):
    """Attention weights as a layer of their own, as timm has them without fused attention."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.qkv, self.drop = heads, nn.Linear(width, 3 * width), nn.Dropout()
        self.scores = nn.Identity()

    def forward(self, x):
        n, length, width = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = self.scores(q @ k.transpose(-2, -1))
        return (self.drop(scores.softmax(-1)) @ v).transpose(1, 2).reshape(n, length, width)


class Tokens(nn.Module):
    """Patches of an image, a class token, one attention: with layer norms, or without."""

    def __init__(self, *, patch=4, width=24, heads=3, norm=nn.LayerNorm):
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.flat = nn.Flatten(2)
        self.norm, self.attention = norm(width), Attention(width, heads)
        self.pairs, self.similar = nn.Identity(), nn.Identity()

    def forward(self, x):
        x = self.flat(self.patches(x)).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        x = x + self.attention(self.norm(x))
        self.similar(x @ x.transpose(1, 2))
        self.pairs(x[:, :, None] * x[:, None])
        return x


NOT_A_MAP = ["attention.drop", "attention.scores", "similar", "pairs"]


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm, nn.Identity])
@pytest.mark.parametrize("layer", [*NOT_A_MAP, "flat"])
@pytest.mark.parametrize("size", [20, 32, 64])
def test_tokens_by_tokens_are_no_map_until_the_user_says_so(norm, layer, size):
    torch.manual_seed(0)
    model, image = Tokens(norm=norm), torch.randn(2, 3, size, size)
    with pytest.raises(layertap.TapError, match="it is not clear which are space or tokens; "):
        pooled(model, layer, image)
    stated = {"type": "mean_pool", "axes": "NLC" if layer in ("similar", "flat") else "NCHW"}
    with layertap.tap(model, [{"layer": layer, "reduce": stated}]) as taps, torch.no_grad():
        model(image)
        assert taps[layer].ndim == 2


@pytest.mark.parametrize("layer", ["patches", "norm", "attention", "attention.qkv", "."])
def test_maps_and_tokens_beside_them_are_known(layer):
    model, image = Tokens(), torch.randn(2, 3, 32, 32)
    assert axes(model, layer, image) == ("NCHW" if layer == "patches" else "NLC")


def test_as_many_tokens_as_channels_are_known_where_the_layer_says_which_are_which():
    model, image = Tokens(width=26, heads=2), torch.randn(2, 3, 20, 20)
    assert axes(model, "norm", image) == "NLC"
    assert axes(model, ".", image) == ""


def test_tokens_that_are_as_many_as_the_rows_of_an_earlier_map_are_no_map():
    class Hybrid(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.body = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 24, 8, 8)
            self.attention, self.norm = Attention(24, 3), nn.LayerNorm(24)

        def forward(self, x):
            x = self.body(self.stem(x)).flatten(2).transpose(1, 2)
            return self.attention(self.norm(x))

    image = torch.randn(2, 3, 64, 64)  # 8 x 8 = 64 tokens
    assert axes(Hybrid(), "stem", image) == "NCHW"
    assert axes(Hybrid(), "attention.drop", image) == axes(Hybrid(), "attention.scores", image) == ""


def test_weights_of_multihead_attention_are_not_tokens_with_channels():
    class Crossed(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.queries = nn.Conv2d(3, 24, 4, 4), nn.Parameter(torch.randn(1, 5, 24))
            self.attention, self.norm = nn.MultiheadAttention(24, 3, batch_first=True), nn.LayerNorm(24)

        def forward(self, x):
            x = self.norm(self.patches(x).flatten(2).transpose(1, 2))
            return self.attention(self.queries.expand(len(x), -1, -1), x, x)[0]

    image = torch.randn(2, 3, 24, 24)
    assert axes(Crossed(), "attention[1]", image) == ""
    assert axes(Crossed(), "attention[0]", image) == "NLC"


def test_layer_that_mixes_tokens_has_no_known_axes():
    import timm

    model, image = timm.create_model("mixer_s32_224"), torch.randn(2, 3, 224, 224)
    assert axes(model, "blocks.0.mlp_tokens.fc1", image) == ""
    assert axes(model, "blocks.0", image) == axes(model, "norm", image) == "NLC"


@pytest.mark.parametrize(
    "layer", ["layer1.0.relu:last", "layer2", "layer4.1.bn2", "maxpool", "conv1", "layer3.0.downsample"]
)
@pytest.mark.parametrize("size", [64, 96, 224])
def test_square_maps_of_a_convolutional_network_need_no_words(layer, size):
    from torchvision.models import resnet18

    assert axes(resnet18(), layer, torch.randn(2, 3, size, size)) == "NCHW"


def test_maps_are_known_where_another_entry_is_called():
    class Entered(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Tokens()

        def encode_image(self, x):
            return self.net(x)

    model, image = Entered(), torch.randn(2, 3, 32, 32)
    assert axes(model, "net.patches", image, call=model.encode_image) == "NCHW"
    assert axes(model, "net.attention.drop", image, call=model.encode_image) == ""


def test_watching_for_maps_ends_with_the_first_forward():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.ReLU())
    with layertap.tap(model, "2") as taps:
        taps.run(torch.randn(2, 3, 8, 8))
        assert not model[0]._forward_hooks
        assert not model[1]._forward_hooks
        assert len(model._forward_pre_hooks) == len(model._forward_hooks) == 1
    assert not model._forward_hooks


def unfused(name):
    """A model of timm whose attention weights are built."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name)
    for layer in model.modules():
        if hasattr(layer, "fused_attn"):
            layer.fused_attn = False
    return model


def test_maps_of_a_pyramid_of_tokens_are_known_beside_what_is_no_map():
    """Its maps of 56 x 56 are reduced to 7 x 7 keys: 56 could be those and seven tokens more."""
    model, image = unfused("pvt_v2_b0"), torch.randn(2, 3, 224, 224)
    assert axes(model, "stages.0", image) == "NCHW"
    assert axes(model, "stages.0.blocks.0.attn.attn_drop", image) == ""


def test_attention_of_a_vision_transformer_of_timm_is_no_map():
    model, image = unfused("test_vit"), torch.randn(2, 3, 160, 160)
    with pytest.raises(layertap.TapError, match="it is not clear which are space or tokens"):
        pooled(model, "blocks.0.attn.attn_drop", image)
    assert axes(model, "blocks.0.attn.attn_drop", image, about={"layout": None, "num_prefix_tokens": 1}) == ""
    assert axes(model, "patch_embed.proj", image, about={"layout": None}) == "NCHW"
    assert axes(model, "blocks.0", image) == "NLC"


def test_attention_of_a_vision_transformer_of_transformers_is_no_map():
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    tiny = ViTConfig(
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=3,
        intermediate_size=32,
        image_size=64,
        patch_size=8,
        attn_implementation="eager",
    )
    model, image = ViTModel(tiny), torch.randn(2, 3, 64, 64)
    (attention,) = (name for name, layer in model.named_modules() if type(layer).__name__.endswith("ViTAttention"))
    assert axes(model, f"{attention}[1]", pixel_values=image) == ""
    assert axes(model, f"{attention}[0]", pixel_values=image) == "NLC"
    assert axes(model, "embeddings.patch_embeddings.projection", pixel_values=image) == "NCHW"
