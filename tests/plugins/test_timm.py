"""The provider gives timm's own models and transforms, bit for bit, and fetches nothing unasked."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

import layertap
from layertap import ConfigError, ImageError, TapError, UnsafeError, WeightsError
from tests.published import COMMIT, as_we_do, empty_hub, layers, one_line, picture, pictures, publish, same

timm = pytest.importorskip("timm", reason="needs `pip install 'layertap[timm]'`")

from layertap_plugins.models.timm import TimmModel  # noqa: E402  (after the reason to skip)
from layertap_plugins.preprocessors.composed import TimmTransform  # noqa: E402

TINY_SWIN = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "img_size": 56}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    with empty_hub(tmp_path / "hub", monkeypatch) as folder:
        yield folder


def load(name, **params):
    return TimmModel.of(name=name, **params).load()


def seeded(name, **args):
    """The module that timm builds from seed 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model(name, **args)


def test_random_weights_are_timms_own_from_seed_0_each_time():
    first, second = load("test_resnet", weights="random"), load("test_resnet", weights="random")
    theirs = seeded("test_resnet")
    assert same(first.module, second.module.state_dict())
    assert same(first.module, theirs.state_dict())
    assert layers(first.module) == layers(theirs)
    assert (first.about["weights"], first.about["untrained"]) == ("random", True)
    assert first.about["weights_file"] is first.about["weights_sha256"] is None


@pytest.mark.parametrize("weights", ["random", "file"])
def test_loading_draws_from_no_random_state(tmp_path, weights):
    torch.save(seeded("test_vit").state_dict(), tmp_path / "mine.pth")
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    with torch.device("meta"):
        loaded = load("test_vit", weights="random" if weights == "random" else str(tmp_path / "mine.pth"))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]
    assert {parameter.device.type for parameter in loaded.module.parameters()} == {"cpu"}


@pytest.mark.parametrize(
    ("name", "args", "facts"),
    [
        ("test_resnet", {}, {"layout": "NCHW"}),
        ("test_vit", {}, {"layout": None, "num_prefix_tokens": 1, "attention": "fused"}),
        ("test_vit", {"reg_tokens": 4}, {"layout": None, "num_prefix_tokens": 5, "attention": "fused"}),
        ("test_convnext", {}, {"layout": None}),
        ("swin_tiny_patch4_window7_224", TINY_SWIN, {"layout": None, "attention": "plain"}),
    ],
)
def test_the_facts_are_the_models_and_survive_json(name, args, facts):
    about = load(name, weights="random", args=args).about
    assert json.loads(json.dumps(about)) == about
    assert {key: about[key] for key in ("layout", "num_prefix_tokens", "attention") if key in about} == facts
    assert (about["library"], about["library_version"], about["name"]) == ("timm", timm.__version__, name)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_nfnet"])
def test_the_preprocessor_is_timms_transform_to_the_bit(name):
    loaded = load(name, weights="random")
    theirs = timm.data.create_transform(**timm.data.resolve_model_data_config(loaded.module), is_training=False)
    images = pictures()
    ours = as_we_do(loaded.preprocessor, images)
    assert torch.equal(ours, torch.stack([theirs(image.convert("RGB")) for image in images]))
    assert ours.is_contiguous()


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize(("size", "crop_pct"), [((64, 64), 0.875), ((96, 64), 0.95), ((33, 70), 1.0), ((64, 64), 1.1)])
def test_every_kind_of_config_gives_timms_bits(crop_mode, size, crop_pct):
    for interpolation in ("bicubic", "bilinear", "lanczos"):
        numbers = {"crop_pct": crop_pct, "crop_mode": crop_mode, "interpolation": interpolation}
        numbers |= {"mean": (0.43, 0.411, 0.296), "std": (0.213, 0.156, 0.143)}
        theirs = timm.data.create_transform(input_size=(3, *size), is_training=False, **numbers)
        images = pictures()
        ours = as_we_do(TimmTransform.of(size=size, **numbers), images)
        assert torch.equal(ours, torch.stack([theirs(image.convert("RGB")) for image in images]))


def test_images_cross_as_bytes_and_the_preprocessor_survives_pickle():
    preprocessor = load("test_vit", weights="random").preprocessor
    image = picture(97, 64)
    prepared = preprocessor.prepare(image)
    assert (prepared.dtype, tuple(prepared.shape)) == (torch.uint8, (3, 160, 160))
    assert torch.equal(pickle.loads(pickle.dumps(preprocessor)).prepare(image), prepared)


def test_images_that_cannot_be_used_are_refused():
    preprocessor = load("test_vit", weights="random").preprocessor
    for image, reason in [
        (picture(1, 4000), "aspect"),
        (Image.new("RGB", (0, 3)), "empty"),
        (Image.new("La", (4, 4)), "unsupported_mode"),
    ]:
        with pytest.raises(ImageError) as error:
            preprocessor.prepare(image)
        assert error.value.reason == reason


def test_the_transform_follows_the_size_that_the_model_is_built_for():
    loaded = load("test_vit", weights="random", args={"img_size": 96})
    assert loaded.preprocessor.params.size == (96, 96)
    loaded.module(as_we_do(loaded.preprocessor, [picture(50, 60)]))


def test_a_model_of_other_channels_has_no_preprocessor():
    assert load("test_resnet", weights="random", args={"in_chans": 1}).preprocessor is None


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_file_of_weights_is_loaded_as_it_is(tmp_path, suffix):
    state = seeded("test_resnet", num_classes=7).state_dict()
    path = tmp_path / f"mine.{suffix}"
    wrapped = {"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}
    save_file(state, path) if suffix == "safetensors" else torch.save(wrapped, path)
    loaded = load("test_resnet", weights=str(path), args={"num_classes": 7})
    assert same(loaded.module, state)
    assert (loaded.about["weights_file"], loaded.about["untrained"]) == (path.name, False)
    assert len(loaded.about["weights_sha256"]) == 64


def test_the_keys_of_the_models_authors_are_renamed_as_timm_does_it(tmp_path):
    state = seeded("test_vit").state_dict()
    save_file({f"visual.trunk.{key}": value for key, value in state.items()}, tmp_path / "clip.safetensors")
    assert same(load("test_vit", weights=str(tmp_path / "clip.safetensors")).module, state)


def test_a_head_of_other_classes_suggests_the_argument(tmp_path):
    torch.save(seeded("test_resnet", num_classes=10).state_dict(), tmp_path / "mine.pth")
    with pytest.raises(WeightsError, match=r"model\.args=\{num_classes: 10\}") as error:
        load("test_resnet", weights=str(tmp_path / "mine.pth"))
    assert one_line(error)


def test_weights_that_do_not_fit_are_listed(tmp_path):
    state = seeded("test_resnet").state_dict()
    state["x"] = state.pop("conv1.0.weight")
    torch.save(state, tmp_path / "mine.pth")
    with pytest.raises(WeightsError, match=r"1 missing: 'conv1\.0\.weight'; 1 unexpected: 'x'"):
        load("test_resnet", weights=str(tmp_path / "mine.pth"))


def test_a_hostile_file_is_refused_and_runs_nothing(tmp_path):
    class Gadget:
        def __reduce__(self):
            return (tmp_path / "canary").touch, ()

    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Gadget(), 2))
    with pytest.raises(UnsafeError):
        load("test_resnet", weights=str(tmp_path / "evil.pth"))
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("params", [{"name": "test_vit"}, {"name": "test_vit.r160_in1k"}])
@pytest.mark.parametrize("weights", ["DEFAULT", "r160_in1k"])
def test_weights_in_the_cache_are_used_without_a_network(cache, params, weights):
    state = {key: torch.randn_like(value) for key, value in seeded("test_vit").state_dict().items()}
    save_file(state, publish(cache, "timm/test_vit.r160_in1k") / "model.safetensors")
    loaded = load(**params, weights=weights)
    assert same(loaded.module, state)
    assert (loaded.about["weights_name"], loaded.about["revision"]) == ("test_vit.r160_in1k", COMMIT)
    assert "state_dict" not in loaded.module.pretrained_cfg


@pytest.mark.parametrize("where", ["hub", "file"])
def test_a_pinned_file_is_loaded_and_another_refused(cache, tmp_path, where):
    folder = publish(cache, "timm/test_vit.r160_in1k") if where == "hub" else tmp_path
    state = seeded("test_vit").state_dict()
    save_file(state, folder / "model.safetensors")
    params = {"weights": "DEFAULT" if where == "hub" else str(folder / "model.safetensors")}
    digest = load("test_vit", **params).about["weights_sha256"]
    assert same(load("test_vit", **params, weights_sha256=digest.upper()).module, state)
    with pytest.raises(UnsafeError, match=f"expected {'0' * 64}, found {digest}"):
        load("test_vit", **params, weights_sha256="0" * 64)


def test_weights_of_its_own_serve_a_model_without_a_head_but_none_with_another(cache):
    state = seeded("test_vit").state_dict()
    save_file(state, publish(cache, "timm/test_vit.r160_in1k") / "model.safetensors")
    headless = load("test_vit", args={"num_classes": 0})
    assert same(headless.module, {key: value for key, value in state.items() if not key.startswith("head.")})
    with pytest.raises(ConfigError, match="1000 classes, so a head of 10 would be untrained"):
        load("test_vit", args={"num_classes": 10})


def test_a_damaged_file_under_a_models_own_name_is_an_error_about_weights(cache):
    save_file({"x": torch.ones(1)}, publish(cache, "timm/test_vit.r160_in1k") / "model.safetensors")
    with pytest.raises(WeightsError, match=r"does not fit test_vit\.r160_in1k") as error:
        load("test_vit")
    assert one_line(error)


@pytest.mark.parametrize("place", ["hub", "folder"])
def test_a_model_that_somebody_saved_is_built_as_its_config_says(cache, tmp_path, place):
    folder = publish(cache, "someone/model") if place == "hub" else tmp_path / "model"
    theirs = seeded("test_vit", num_classes=5, img_size=64)
    timm.models.save_for_hf(theirs, folder, model_args={"img_size": 64, "num_classes": 5})
    loaded = load("hf-hub:someone/model" if place == "hub" else f"local-dir:{folder}")
    assert same(loaded.module, theirs.state_dict())
    assert loaded.about["revision"] == (COMMIT if place == "hub" else None)
    assert loaded.module.num_classes == 5


def test_a_config_cannot_fetch_weights_unasked(tmp_path):
    config = {"architecture": "test_vit", "model_args": {"pretrained_strict": False}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="pretrained_strict"):
        load(f"local-dir:{tmp_path}", weights="random")


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        ({"architecture": "nonesuch"}, "has no model 'nonesuch'"),
        ({}, "has no model None"),
        ({"architecture": "test_vit", "pretrained_cfg": {"colour": 1}}, "does not suit the library"),
    ],
)
def test_a_config_that_timm_cannot_build_is_reported(tmp_path, config, fault):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises((ConfigError, WeightsError), match=fault) as error:
        load(f"local-dir:{tmp_path}", weights="random")
    assert one_line(error)


@pytest.mark.parametrize("name", ["test_vit", "legacy_seresnet18", "hf-hub:timm/test_vit.r160_in1k"])
def test_weights_that_cannot_be_fetched_end_at_once_with_the_ways_out(cache, name):
    started = time.monotonic()
    with pytest.raises(WeightsError, match=r"cannot be (fetched|downloaded)") as error:
        load(name)
    assert time.monotonic() - started < 15  # the libraries would retry for longer
    assert str(cache) in str(error.value)
    assert one_line(error)


@pytest.mark.parametrize(
    ("params", "error", "part"),
    [
        ({"name": "resnet10"}, ConfigError, "did you mean 'resnet10t'"),
        ({"name": "test_vit.r160"}, ConfigError, "did you mean 'r160_in1k'"),
        ({"name": "vovnet57a"}, WeightsError, "timm has no weights for vovnet57a.untrained"),
        ({"name": "test_vit", "weights": "r160"}, WeightsError, "did you mean 'r160_in1k'"),
        ({"name": "test_vit", "weights": "random", "args": {"dept": 3}}, ConfigError, "{'dept': 3} does not suit"),
        ({"name": "local-dir:nowhere"}, WeightsError, "is not a folder"),
    ],
)
def test_what_is_wrong_in_the_configuration_is_named(params, error, part):
    with pytest.raises(error) as caught:
        load(**params)
    assert part in str(caught.value)
    assert one_line(caught)


@pytest.mark.parametrize("key", ["pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path"])
def test_arguments_cannot_fetch_weights_unasked(key):
    with pytest.raises(ConfigError, match=rf"'{key}'.*model\.weights"):
        load("test_vit", weights="random", args={key: True})


def test_a_run_gives_what_a_plain_loop_gives(photos):
    report = layertap.run(
        {
            "model": {"type": "timm", "name": "test_vit", "weights": "random"},
            "taps": ["blocks.1.mlp.fc1", "norm"],
            "source": {"type": "folder", "path": str(photos)},
            "sink": "memory",
            "device": "cpu",
            "batch_size": 4,
            "limit": 6,
            "observers": [],
        }
    )
    module = seeded("test_vit").eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(module), is_training=False)
    images = [Image.open(photos / name).convert("RGB") for name in report.ids]
    kept = []
    module.norm.register_forward_hook(lambda _module, _args, output: kept.append(output))
    with torch.no_grad():
        for start in (0, 4):
            module(torch.stack([transform(image) for image in images[start : start + 4]]))
    assert report.kept == 6
    assert np.array_equal(report.values["norm"], torch.cat(kept).numpy())


def run(photos, taps, **model):
    return layertap.run(
        {
            "model": {"type": "timm", "name": "test_vit", "weights": "random", **model},
            "taps": taps,
            "source": {"type": "folder", "path": str(photos)},
            "sink": "memory",
            "device": "cpu",
            "batch_size": 2,
            "limit": 2,
            "observers": [],
        }
    )


def test_a_layer_that_fused_attention_skips_names_a_cure_that_works(photos):
    with pytest.raises(TapError, match=r"blocks\.0\.attn computes fused attention.*TIMM_FUSED_ATTN=0") as error:
        run(photos, ["blocks.0.attn.attn_drop"])
    assert one_line(error)
    script = f"""
import layertap
from tests.plugins.test_timm import run
report = run({str(photos)!r}, ["blocks.0.attn.attn_drop"])
weights = report.values["blocks.0.attn.attn_drop"]
print(weights.shape, abs(weights.sum(-1) - 1).max() < 1e-5)
"""
    environment = {**os.environ, "TIMM_FUSED_ATTN": "0"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout.strip()) == (0, "(2, 2, 101, 101) True"), done.stderr


@pytest.mark.parametrize(
    ("name", "layer"),
    [("test_vit3", "blocks.0.attn.attn_drop"), ("beit_base_patch16_224", "blocks.0.attn.attn_drop")],
)
def test_the_cure_is_known_wherever_attention_is_fused_also_for_a_module_of_ones_own(name, layer):
    module = timm.create_model(name, **({"depth": 1, "embed_dim": 24, "num_heads": 2} if "beit" in name else {}))
    size = timm.data.resolve_model_data_config(module)["input_size"]
    with (
        layertap.tap(module.eval(), [layer]) as taps,
        pytest.raises(TapError, match=r"timm\.layers\.set_fused_attn\(False\)"),
    ):
        taps.run(torch.zeros(1, *size))
    before = timm.layers.use_fused_attn()
    timm.layers.set_fused_attn(False)
    try:
        plain = timm.create_model(name, **({"depth": 1, "embed_dim": 24, "num_heads": 2} if "beit" in name else {}))
    finally:
        timm.layers.set_fused_attn(before)
    with layertap.tap(plain.eval(), [layer]) as taps:
        rows = taps.run(torch.zeros(1, *size))[layer].sum(-1)
    assert torch.allclose(rows, torch.ones_like(rows), atol=1e-5)


def test_a_model_of_one_channel_advises_grey_images(photos):
    with pytest.raises(ConfigError, match="comes without preprocessing; it takes 1 channel") as error:
        run(photos, ["norm"], args={"in_chans": 1})
    assert one_line(error)
    (said,) = re.findall(r"`preprocess: (.*?)`", str(error.value))
    model = {"type": "timm", "name": "test_vit", "weights": "random", "args": {"in_chans": 1}}
    (batch,) = layertap.extract(model, [picture(50, 60)], ["norm"], preprocess=yaml.safe_load(said))
    assert batch.values["norm"].shape == (1, 101, 64)
    with pytest.raises(ConfigError, match="it takes 5 channels"):
        run(photos, ["norm"], args={"in_chans": 5})
