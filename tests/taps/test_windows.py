"""Windows that a model folds into the batch come back as the map of each image."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import layertap
from tests.models import noise, seeded


def swin(**options):
    import timm

    how = {"img_size": 56, "depths": (2, 1, 1, 1), "num_classes": 3, **options}
    return seeded(lambda: timm.create_model("swin_tiny_patch4_window7_224", **how))


@pytest.mark.parametrize("number", [0, 1], ids=["plain", "shifted"])
def test_windows_of_timms_swin(number):
    model, x = swin(), noise(3, 3, 56, 56)
    path = f"layers.0.blocks.{number}"
    taps = [
        {"layer": f"{path}.attn", "side": "input", "windows": "merge", "name": "given"},
        {"layer": f"{path}.attn", "windows": "merge", "name": "made"},
        {"layer": path, "op": "add", "index": 0, "name": "sum"},
        {"layer": path, "side": "input", "name": "block"},
    ]
    with torch.no_grad(), layertap.tap(model, taps) as tapped:
        found = tapped.run(x)
        axes = tapped.infos["made"].axes
        normed = model.get_submodule(path).norm1(found["block"])
    assert axes == "NHWC"
    assert torch.equal(found["given"], normed)
    assert torch.equal(found["block"] + found["made"], found["sum"])


@pytest.mark.parametrize("number", [0, 1], ids=["plain", "shifted"])
def test_windows_of_hugging_faces_swin(number):
    from transformers import SwinConfig, SwinModel

    config = SwinConfig(image_size=56, depths=[2, 1], num_heads=[1, 2], embed_dim=8, window_size=7)
    model, x = seeded(lambda: SwinModel(config)), noise(3, 3, 56, 56)
    path = f"encoder.layers.0.blocks.{number}"
    taps = [
        {"layer": f"{path}.attention", "side": "input", "windows": "merge", "name": "given"},
        {"layer": f"{path}.layernorm_before", "name": "normed"},
    ]
    with torch.no_grad(), layertap.tap(model, taps) as tapped:
        found = tapped.run(x)
    assert torch.equal(found["given"].flatten(1, 2), found["normed"])


def test_windows_go_through_an_extraction(photographs):
    from torchvision.transforms.v2.functional import resize, to_dtype, to_image

    def prepare(image):
        return resize(to_dtype(to_image(image.convert("RGB")), torch.float32, scale=True), [56, 56])

    tap = {"layer": "layers.0.blocks.0.attn", "windows": "merge", "reduce": ["mean_pool"]}
    (batch,) = layertap.extract(swin(), photographs[:3], [tap], preprocess=prepare, device="cpu")
    assert batch.values["layers.0.blocks.0.attn"].shape == (3, 96)


def test_windows_that_do_not_fit_are_errors_of_one_line():
    model, x = swin(), noise(1, 3, 56, 56)
    for tap, why in (
        ({"layer": "patch_embed"}, "no block around it states `input_resolution`"),
        ({"layer": "layers.0.blocks.0.attn", "op": "unbind", "select": [0]}, "which is not 4 windows of 7 x 7 tokens"),
    ):
        with torch.no_grad(), layertap.tap(model, [{**tap, "windows": "merge"}]) as taps:
            with pytest.raises(layertap.TapError, match=why) as error:
                taps.run(x)
            assert "\n" not in str(error.value)


def test_shifted_windows_of_a_padded_map_are_refused():
    block = nn.Module()
    block.input_resolution, block.window_size, block.shift_size = (6, 6), 4, 2
    block.inner = nn.Identity()
    block.forward = lambda x: block.inner(x)
    tap = [{"layer": "inner", "windows": "merge"}]
    with layertap.tap(block, tap) as taps, pytest.raises(layertap.TapError, match="shifted on a padded map"):
        taps.run(torch.ones(4, 16, 3))
    block.shift_size = 0
    with layertap.tap(block, tap) as taps:
        assert taps.run(torch.ones(8, 16, 3))["inner"].shape == (2, 6, 6, 3)
