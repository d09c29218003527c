"""The provider gives open_clip's own image tower and transform, bit for bit, without its text tower."""

from __future__ import annotations

import json
import pickle
import random
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import layertap
from layertap import ConfigError, ImageError, UnsafeError, WeightsError
from tests.published import COMMIT, as_we_do, empty_hub, layers, one_line, picture, pictures, publish, same

open_clip = pytest.importorskip("open_clip", reason="needs `pip install 'layertap[open_clip]'`")

from layertap_plugins.models.open_clip import OpenClipModel  # noqa: E402  (after the reason to skip)
from layertap_plugins.preprocessors.composed import OpenClipTransform  # noqa: E402

VIT = {"layers": 2, "width": 32, "head_width": 16, "embed_dim": 12, "image_size": 64}
RESNET = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 16, "embed_dim": 12, "image_size": 64}
TEXT = {"context_length": 4, "vocab_size": 9, "width": 16, "heads": 2, "layers": 1}
REPOSITORY = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    with empty_hub(tmp_path / "hub", monkeypatch) as folder:
        yield folder


def load(name, **params):
    return OpenClipModel.of(name=name, **params).load()


def seeded(name="ViT-B-32", args=VIT):
    """The whole model that open_clip builds from seed 0, with small towers."""
    config = open_clip.get_model_config(name)
    args = {**args}
    embed_dim = args.pop("embed_dim")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(embed_dim, {**config["vision_cfg"], **args}, TEXT, config.get("quick_gelu", False))
    return model.eval()


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("ViT-B-32", VIT),
        ("ViT-B-32-quickgelu", VIT),
        ("RN50", RESNET),
        ("coca_ViT-B-32", {**VIT, "attn_pooler_heads": 2}),
    ],
)
def test_random_weights_are_the_librarys_own_from_seed_0(name, args):
    loaded, theirs = load(name, weights="random", args=args), seeded(name, args).visual
    assert same(loaded.module, theirs.state_dict())
    assert layers(loaded.module) == layers(theirs)
    assert (loaded.about["weights"], loaded.about["untrained"], loaded.about["weights_file"]) == ("random", True, None)


def test_the_tower_is_the_one_of_the_librarys_own_factory_without_its_warnings(caplog):
    loaded = load("ViT-S-32-alt", weights="random")
    assert not caplog.records
    assert layers(loaded.module) == layers(open_clip.create_model("ViT-S-32-alt", load_weights=False).visual)


@pytest.mark.parametrize(
    ("name", "args", "layout", "prefix"), [("ViT-B-32", VIT, None, 1), ("RN50", RESNET, "NCHW", None)]
)
def test_the_facts_are_the_towers_and_survive_json(name, args, layout, prefix):
    about = load(name, weights="random", args=args).about
    assert json.loads(json.dumps(about)) == about
    assert (about["layout"], about.get("num_prefix_tokens")) == (layout, prefix)
    assert (about["library"], about["library_version"]) == ("open_clip", open_clip.__version__)


def test_a_tower_of_timm_reports_timms_tokens(tmp_path):
    vision = {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear", "image_size": 160}
    config = {"model_cfg": {"embed_dim": 12, "vision_cfg": vision, "text_cfg": TEXT}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    loaded = load(f"local-dir:{tmp_path}", weights="random")
    assert loaded.about["num_prefix_tokens"] == 1
    assert loaded.module(as_we_do(loaded.preprocessor, [picture(50, 60)])).shape == (1, 12)
    smaller = load(f"local-dir:{tmp_path}", weights="random", args={"image_size": 64})
    assert smaller.preprocessor.params.size == (64, 64)
    smaller.module(as_we_do(smaller.preprocessor, [picture(50, 60)]))


@pytest.mark.parametrize("weights", ["random", "file"])
def test_loading_draws_from_no_random_state(tmp_path, weights):
    torch.save(seeded().state_dict(), tmp_path / "mine.pth")
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    load("ViT-B-32", weights="random" if weights == "random" else str(tmp_path / "mine.pth"), args=VIT)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize(("size", "interpolation"), [((64, 64), "bicubic"), ((96, 64), "bilinear")])
def test_every_kind_of_config_gives_open_clips_bits_in_every_mode(resize_mode, size, interpolation):
    numbers = {"mean": (0.48, 0.46, 0.41), "std": (0.27, 0.26, 0.28), "interpolation": interpolation}
    numbers |= {"resize_mode": resize_mode, "fill_color": 0}
    theirs = open_clip.image_transform(size, is_train=False, **numbers)
    images = pictures()
    # The library takes an image in its own mode, and converts it after resizing.
    ours = as_we_do(OpenClipTransform.of(size=size, **numbers), images)
    assert torch.equal(ours, torch.stack([theirs(image) for image in images]))


def test_the_preprocessor_is_that_of_the_librarys_factory():
    _, _, theirs = open_clip.create_model_and_transforms("ViT-S-32-alt", load_weights=False)
    preprocessor = load("ViT-S-32-alt", weights="random").preprocessor
    images = pictures()
    assert torch.equal(as_we_do(preprocessor, images), torch.stack([theirs(image) for image in images]))
    assert preprocessor.prepare(images[0]).dtype == torch.uint8
    assert torch.equal(pickle.loads(pickle.dumps(preprocessor)).prepare(images[0]), preprocessor.prepare(images[0]))


def test_a_file_is_preprocessed_as_all_weights_of_its_model_are():
    siglip = load("ViT-B-16-SigLIP", weights="random", args={"timm_model_name": "test_vit", "timm_pool": "token"})
    assert (siglip.preprocessor.params.resize_mode, siglip.preprocessor.params.mean) == ("squash", (0.5, 0.5, 0.5))


def test_images_that_cannot_be_used_are_refused():
    preprocessor = load("ViT-B-32", weights="random", args=VIT).preprocessor
    refused = [
        (picture(1, 40000), "aspect"),
        (Image.new("RGB", (0, 3)), "empty"),
        (Image.new("La", (4, 4)), "unsupported_mode"),
    ]
    for image, reason in refused:
        with pytest.raises(ImageError) as error:
            preprocessor.prepare(image)
        assert error.value.reason == reason


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("part", ["whole", "tower"])
def test_a_file_of_weights_is_loaded_as_it_is(tmp_path, suffix, part):
    theirs = seeded()
    state = {key: torch.randn_like(value) for key, value in theirs.state_dict().items()}
    tower = {key.removeprefix("visual."): value for key, value in state.items() if key.startswith("visual.")}
    path, content = tmp_path / f"mine.{suffix}", state if part == "whole" else tower
    wrapped = {"state_dict": {f"module.{key}": value for key, value in content.items()}, "epoch": 3}
    save_file(content, path) if suffix == "safetensors" else torch.save(wrapped, path)
    loaded = load("ViT-B-32", weights=str(path), args=VIT)
    assert same(loaded.module, tower)
    assert (loaded.about["weights_file"], len(loaded.about["weights_sha256"])) == (path.name, 64)


def test_positions_are_resized_as_the_library_does_it(tmp_path):
    torch.save(seeded().state_dict(), tmp_path / "mine.pth")
    larger = seeded(args={**VIT, "image_size": 96})
    open_clip.load_checkpoint(larger, str(tmp_path / "mine.pth"))
    loaded = load("ViT-B-32", weights=str(tmp_path / "mine.pth"), args={**VIT, "image_size": 96})
    assert same(loaded.module, larger.visual.state_dict())
    assert loaded.preprocessor.params.size == (96, 96)


def test_weights_that_do_not_fit_are_listed(tmp_path):
    state = seeded().state_dict()
    state["visual.extra"] = state.pop("visual.ln_pre.weight")
    torch.save(state, tmp_path / "mine.pth")
    with pytest.raises(WeightsError, match=r"1 missing: 'ln_pre\.weight'; 1 unexpected: 'extra'") as error:
        load("ViT-B-32", weights=str(tmp_path / "mine.pth"), args=VIT)
    assert one_line(error)


def test_a_hostile_file_is_refused_and_runs_nothing(tmp_path):
    class Gadget:
        def __reduce__(self):
            return (tmp_path / "canary").touch, ()

    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Gadget(), 2))
    with pytest.raises(UnsafeError):
        load("ViT-B-32", weights=str(tmp_path / "evil.pt"), args=VIT)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("tag", ["laion2b_s34b_b79k", "LAION2B-s34b-b79k"])
def test_weights_in_the_cache_are_used_without_a_network(cache, tag):
    state = seeded().state_dict()
    save_file(state, publish(cache, REPOSITORY) / "open_clip_model.safetensors")
    loaded = load("ViT-B-32", weights=tag, args=VIT)
    assert same(loaded.module, seeded().visual.state_dict())
    assert loaded.about["weights_name"] == f"{REPOSITORY}/open_clip_model.safetensors"
    assert (loaded.about["revision"], loaded.about["untrained"]) == (COMMIT, False)


@pytest.mark.parametrize("where", ["hub", "file"])
def test_a_pinned_file_is_loaded_and_another_refused(cache, tmp_path, where):
    folder = publish(cache, REPOSITORY) if where == "hub" else tmp_path
    path = folder / "open_clip_model.safetensors"
    save_file(seeded().state_dict(), path)
    params = {"weights": "laion2b_s34b_b79k" if where == "hub" else str(path), "args": VIT}
    digest = load("ViT-B-32", **params).about["weights_sha256"]
    assert same(load("ViT-B-32", **params, weights_sha256=digest.upper()).module, seeded().visual.state_dict())
    with pytest.raises(UnsafeError, match=f"expected {'0' * 64}, found {digest}"):
        load("ViT-B-32", **params, weights_sha256="0" * 64)


@pytest.mark.parametrize("place", ["hub", "folder"])
def test_a_model_that_somebody_saved_is_built_as_its_config_says(cache, tmp_path, place):
    folder = publish(cache, "someone/clip") if place == "hub" else tmp_path
    args = {**VIT}
    model = {"embed_dim": args.pop("embed_dim"), "vision_cfg": {**args, "patch_size": 32}, "text_cfg": TEXT}
    config = {
        "model_cfg": model,
        "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1], "resize_mode": "squash"},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(seeded().state_dict(), folder / "open_clip_model.safetensors")
    loaded = load("hf-hub:someone/clip" if place == "hub" else f"local-dir:{folder}")
    assert same(loaded.module, seeded().visual.state_dict())
    assert (loaded.preprocessor.params.mean, loaded.preprocessor.params.resize_mode) == ((0.1, 0.2, 0.3), "squash")


def test_weights_of_another_activation_say_how_to_get_theirs():
    with pytest.raises(WeightsError, match=r"trained with QuickGELU; set model\.args=\{quick_gelu: true\}"):
        load("ViT-B-32", weights="openai")
    with pytest.raises(WeightsError, match=r"trained without QuickGELU; set model\.args=\{quick_gelu: false\}"):
        load("ViT-B-32", weights="laion2b_s34b_b79k", args={"quick_gelu": True})
    for params in ({"name": "ViT-B-32-quickgelu"}, {"name": "ViT-B-32", "args": {"quick_gelu": True}}):
        with pytest.raises(WeightsError, match="cannot be fetched"):
            load(**params, weights="openai")


@pytest.mark.parametrize("params", [{"name": "ViT-B-32", "weights": "laion2b_s34b_b79k"}, {"name": "hf-hub:timm/none"}])
def test_weights_that_cannot_be_fetched_end_at_once_with_the_ways_out(cache, params):
    started = time.monotonic()
    with pytest.raises(WeightsError, match="cannot be fetched") as error:
        load(**params)
    assert time.monotonic() - started < 15  # the libraries would retry for longer
    assert str(cache) in str(error.value)
    assert one_line(error)


@pytest.mark.parametrize(
    ("params", "error", "part"),
    [
        ({"name": "vit-b32"}, ConfigError, "did you mean 'ViT-B-32'"),
        ({"name": "ViT-B-32"}, WeightsError, "no weights are named 'DEFAULT' (the model has openai, "),
        ({"name": "ViT-B-32", "weights": "laion2b"}, WeightsError, "did you mean 'laion2b_e16'"),
        ({"name": "ViT-B-32", "weights": "random", "args": {"layer": 3}}, ConfigError, "did you mean 'layers'"),
        (
            {"name": "ViT-B-32", "weights": "random", "args": {"width": "a"}},
            ConfigError,
            "{'width': 'a'} does not",
        ),
        ({"name": "ViT-B-32", "weights": "random", "args": {"timm_model_pretrained": True}}, ConfigError, "weights"),
        ({"name": "local-dir:nowhere"}, WeightsError, "is not a folder"),
    ],
)
def test_what_is_wrong_in_the_configuration_is_named(params, error, part):
    with pytest.raises(error) as caught:
        load(**params)
    assert part in str(caught.value)
    assert one_line(caught)


@pytest.mark.parametrize("config", [{}, {"model_cfg": {"embed_dim": 3}}, {"model_cfg": 3}])
def test_an_invalid_config_is_reported(tmp_path, config):
    with pytest.raises(WeightsError, match=r"has no open_clip_config\.json"):
        load(f"local-dir:{tmp_path}")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="is not a config of open_clip"):
        load(f"local-dir:{tmp_path}")


def test_a_run_gives_what_a_plain_loop_gives(photos):
    report = layertap.run(
        {
            "model": {"type": "open_clip", "name": "ViT-B-32", "weights": "random", "args": VIT},
            "taps": ["transformer.resblocks.1", "."],
            "source": {"type": "folder", "path": str(photos)},
            "sink": "memory",
            "device": "cpu",
            "batch_size": 4,
            "limit": 6,
            "observers": [],
        }
    )
    module = seeded().visual
    transform = open_clip.image_transform(64, is_train=False)
    pixels = torch.stack([transform(Image.open(photos / name)) for name in report.ids])
    with torch.no_grad():
        expected = torch.cat([module(pixels[:4]), module(pixels[4:])])
    assert report.kept == 6
    assert np.array_equal(report.values["."], expected.numpy())
