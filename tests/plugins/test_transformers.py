"""The provider gives the library's own models, with every value from the file, and runs no code from a hub."""

from __future__ import annotations

import json
import pickle
import random
import re
import sys
import time

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

import layertap
from layertap import ConfigError, TapError, UnsafeError, WeightsError
from tests.published import COMMIT, as_we_do, empty_hub, layers, one_line, picture, pictures, processed, publish, same

transformers = pytest.importorskip("transformers", reason="needs `pip install 'layertap[transformers]'`")

from layertap_plugins.models.transformers import TransformersModel  # noqa: E402  (after the reason to skip)

WIDTH = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
VIT = {**WIDTH, "intermediate_size": 32, "image_size": 32, "patch_size": 8}
DINO = {**WIDTH, "image_size": 28, "patch_size": 14}
TINY = {
    "vit": VIT,
    "deit": VIT,
    "beit": VIT,
    "dinov2": DINO,
    "dinov2_with_registers": DINO,
    "dinov3_vit": {**VIT, "num_register_tokens": 3},
    "dpt": VIT,
    "ijepa": VIT,
    "vit_msn": VIT,
    "data2vec-vision": VIT,
    "pixio": {**WIDTH, "image_size": 32, "patch_size": 8},
    "internvl_vision": VIT,
    "mlcd_vision_model": VIT,
    "chinese_clip_vision_model": VIT,
    "clip_vision_model": VIT,
    "siglip_vision_model": VIT,
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "image_size": 32},
    "swin": {"image_size": 32, "embed_dim": 12, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
}
PREFIX = {
    "vit": 1,
    "deit": 2,
    "beit": 1,
    "dinov2": 1,
    "dinov2_with_registers": 5,
    "dinov3_vit": 4,
    "dpt": 1,
    "ijepa": 0,
    "vit_msn": 1,
    "data2vec-vision": 1,
    "pixio": 8,
    "internvl_vision": 1,
    "mlcd_vision_model": 1,
    "chinese_clip_vision_model": 1,
    "clip_vision_model": 1,
    "siglip_vision_model": 0,
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    with empty_hub(tmp_path / "hub", monkeypatch) as folder:
        yield folder


def load(name, **params):
    return TransformersModel.of(name=str(name), **params).load()


def tiny(kind):
    return load(kind, weights="random", args=TINY[kind])


def seeded(kind, **fields):
    """The module that transformers builds from seed 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.AutoModel.from_config(transformers.AutoConfig.for_model(kind, **fields)).eval()


def saved(model, folder, processor=None):
    """The folder, with the model as the library saves it."""
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    transformers.utils.logging.enable_progress_bar()
    return folder


def classifier():
    with torch.random.fork_rng(devices=[]):
        return transformers.ViTForImageClassification(transformers.ViTConfig(**VIT)).eval()


@pytest.mark.parametrize("kind", TINY)
def test_random_weights_are_the_librarys_own_from_seed_0(kind):
    loaded, theirs = tiny(kind), seeded(kind, **TINY[kind])
    assert same(loaded.module, theirs.state_dict())
    assert layers(loaded.module) == layers(theirs)
    assert (loaded.about["weights"], loaded.about["untrained"], loaded.about["weights_file"]) == ("random", True, None)
    assert json.loads(json.dumps(loaded.about)) == loaded.about


@pytest.mark.parametrize("kind", TINY)
def test_the_model_runs_on_a_batch_alone_and_its_prefix_tokens_are_counted(kind):
    loaded = tiny(kind)
    module, side = loaded.module.eval(), TINY[kind].get("image_size", 32)
    batch = torch.randn(2, 3, side, side)
    with torch.no_grad():
        output, expected = module(batch).last_hidden_state, module(pixel_values=batch).last_hidden_state
    assert torch.equal(output, expected)
    assert loaded.about.get("num_prefix_tokens") == PREFIX.get(kind)
    if kind in PREFIX:
        patches = (side // TINY[kind]["patch_size"]) ** 2
        assert expected.shape[1] == PREFIX[kind] + patches


def test_the_layout_is_reported_only_if_it_holds_everywhere():
    assert [tiny(kind).about["layout"] for kind in ("resnet", "vit", "swin", "convnext")] == ["NCHW", None, None, None]


def test_the_attention_is_recorded_and_can_be_chosen():
    assert tiny("vit").about["attention"] == "sdpa"
    eager = load("vit", weights="random", args={**VIT, "attn_implementation": "eager"})
    assert (eager.about["attention"], eager.module.config._attn_implementation) == ("eager", "eager")
    assert "attention" not in tiny("resnet").about


@pytest.mark.parametrize("weights", ["random", "file"])
def test_loading_draws_from_no_random_state(tmp_path, weights):
    save_file(seeded("vit", **VIT).state_dict(), tmp_path / "mine.safetensors")
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    level = transformers.utils.logging.get_verbosity()
    load("vit", weights="random" if weights == "random" else str(tmp_path / "mine.safetensors"), args=VIT)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]
    assert transformers.utils.logging.get_verbosity() == level


@pytest.mark.parametrize("kind", ["vit", "clip_vision_model", "dinov2_with_registers", "siglip_vision_model", "swin"])
def test_a_type_is_preprocessed_at_the_size_of_its_config(kind):
    loaded = tiny(kind)
    side = TINY[kind]["image_size"]
    batch = as_we_do(loaded.preprocessor, [picture(97, 61)])
    assert tuple(batch.shape) == (1, 3, side, side)
    loaded.module(batch)


def test_a_saved_folder_gives_its_base_model_and_its_own_processor(tmp_path):
    theirs = classifier()
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3])
    loaded = load(saved(theirs, tmp_path / "vit", processor))
    assert same(loaded.module, theirs.vit.state_dict())
    # There is no pooler, because without values in the file it would be random.
    assert layers(loaded.module) == layers(theirs.vit)
    assert not any(name.startswith("pooler") for name in layers(loaded.module))
    images = pictures()
    assert torch.equal(as_we_do(loaded.preprocessor, images), processed(processor, images))
    assert loaded.about["unused_keys"] == 2
    assert (loaded.about["weights_file"], loaded.about["untrained"]) == ("model.safetensors", False)


@pytest.mark.parametrize("kind", ["vit", "dinov2", "clip_vision_model", "resnet", "swin"])
def test_what_the_library_saves_it_loads_again(tmp_path, kind):
    theirs = seeded(kind, **TINY[kind])
    assert same(load(saved(theirs, tmp_path / "saved")).module, theirs.state_dict())


def test_shards_are_read_together_and_halves_are_widened(tmp_path):
    theirs = seeded("vit", **VIT)
    transformers.utils.logging.disable_progress_bar()
    theirs.half().save_pretrained(tmp_path, max_shard_size="10KB")
    transformers.utils.logging.enable_progress_bar()
    loaded = load(tmp_path)
    assert same(loaded.module, {key: value.float() for key, value in theirs.state_dict().items()})
    assert "more" in loaded.about["weights_file"]


@pytest.mark.parametrize("size", ["1GB", "10KB"])
def test_a_pin_holds_for_one_file_and_for_all_shards_together(tmp_path, size):
    theirs = seeded("vit", **VIT)
    transformers.utils.logging.disable_progress_bar()
    theirs.save_pretrained(tmp_path, max_shard_size=size)
    transformers.utils.logging.enable_progress_bar()
    digest = load(tmp_path).about["weights_sha256"]
    assert same(load(tmp_path, weights_sha256=digest.upper()).module, theirs.state_dict())
    last = sorted(tmp_path.glob("*.safetensors"))[-1]
    state = load_file(last)
    save_file({key: value + 1 for key, value in state.items()}, last)
    with pytest.raises(UnsafeError, match=f"expected {digest}, found ") as error:
        load(tmp_path, weights_sha256=digest)
    assert one_line(error)


def test_a_pin_holds_for_a_repository_in_the_cache(cache):
    theirs = seeded("vit", **VIT)
    saved(theirs, publish(cache, "someone/vit"))
    digest = load("someone/vit").about["weights_sha256"]
    assert same(load("someone/vit", weights_sha256=digest).module, theirs.state_dict())
    with pytest.raises(UnsafeError, match=f"found {digest}"):
        load("someone/vit", weights_sha256="0" * 64)


def test_an_index_cannot_lead_out_of_its_folder(tmp_path):
    folder = saved(seeded("vit", **VIT), tmp_path / "model")
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    index = {"weight_map": {"a": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match="lists weights that"):
        load(folder)


def test_weights_that_are_only_pickled_are_read_without_running_them(tmp_path):
    theirs = seeded("vit", **VIT)
    folder = saved(theirs, tmp_path / "vit")
    (folder / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), folder / "pytorch_model.bin")
    assert same(load(folder).module, theirs.state_dict())

    class Gadget:
        def __reduce__(self):
            return (tmp_path / "canary").touch, ()

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Gadget(), 2))
    with pytest.raises(UnsafeError):
        load(folder)
    assert not (tmp_path / "canary").exists()


def test_of_a_model_of_two_towers_the_vision_tower_is_loaded(tmp_path):
    text = {"vocab_size": 9, "max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 2, **WIDTH}
    config = transformers.CLIPConfig(vision_config=VIT, text_config={**text, "intermediate_size": 32})
    theirs = transformers.CLIPModel(config).eval()
    folder = saved(theirs, tmp_path / "clip", transformers.CLIPImageProcessor(size=32, crop_size=32))
    loaded = load(folder)
    assert same(loaded.module, theirs.vision_model.state_dict())
    assert layers(loaded.module) == layers(theirs.vision_model)
    assert loaded.about["num_prefix_tokens"] == 1
    assert layers(load("clip", weights="random", args=VIT).module) == layers(loaded.module)


def test_a_repository_in_the_cache_is_used_without_a_network(cache):
    theirs = seeded("vit", **VIT)
    saved(theirs, publish(cache, "someone/vit"), transformers.ViTImageProcessor(size=32))
    loaded = load("someone/vit")
    assert same(loaded.module, theirs.state_dict())
    assert (loaded.about["revision"], loaded.preprocessor.params.processor) == (COMMIT, "ViTImageProcessor")


def test_a_repository_whose_processor_is_not_in_the_cache_has_no_preprocessor(cache):
    saved(seeded("vit", **VIT), publish(cache, "someone/vit"))
    assert load("someone/vit").preprocessor is None


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_file_of_weights_is_loaded_into_a_type(tmp_path, suffix):
    theirs = seeded("vit", **VIT)
    state = {key: torch.randn_like(value) for key, value in theirs.state_dict().items()}
    path = tmp_path / f"mine.{suffix}"
    wrapped = {"model": {f"module.{key}": value for key, value in state.items()}}
    save_file(state, path) if suffix == "safetensors" else torch.save(wrapped, path)
    loaded = load("vit", weights=str(path), args=VIT)
    assert same(loaded.module, state)
    assert (loaded.about["weights_file"], len(loaded.about["weights_sha256"])) == (path.name, 64)


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"num_hidden_layers": 3}, "16 missing: 'layers.2."),
        ({"num_hidden_layers": 1}, "16 unexpected: 'vit.layers.1."),
        ({"intermediate_size": 48}, "6 of another shape: 'layers.0.mlp.fc1.bias' ((32,) for (48,))"),
    ],
)
def test_weights_that_do_not_fit_are_listed(tmp_path, fields, part):
    folder = saved(classifier(), tmp_path / "vit")
    with pytest.raises(WeightsError) as error:
        load(folder, args=fields)
    assert part in str(error.value)
    assert one_line(error)


def test_a_checkpoint_without_its_embeddings_is_refused_and_nothing_is_random(tmp_path):
    folder = saved(seeded("vit", **VIT), tmp_path / "vit")
    state = load_file(folder / "model.safetensors")
    name = next(key for key in state if "cls_token" in key)
    save_file({key: value for key, value in state.items() if key != name}, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=r"1 missing: 'embeddings\.cls_token'"):
        load(folder)


def test_code_that_comes_with_a_model_is_never_run(tmp_path):
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "configuration_evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    auto = {"AutoConfig": "configuration_evil.Config", "AutoModel": "configuration_evil.Model"}
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": auto}))
    with pytest.raises(UnsafeError, match="code of its own") as error:
        load(folder)
    assert one_line(error)
    # A type that the library knows is built by the library, whatever else the folder contains.
    saved(seeded("vit", **VIT), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": auto}))
    processor = {"image_processor_type": "Evil", "auto_map": {"AutoImageProcessor": "configuration_evil.Processor"}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    loaded = load(folder)
    assert (type(loaded.module), loaded.preprocessor) == (transformers.ViTModel, None)
    assert not (tmp_path / "canary").exists()
    assert not any(name.endswith("configuration_evil") for name in sys.modules)


@pytest.mark.parametrize("where", ["args", "_attn_implementation"])
def test_attention_that_is_code_from_the_hub_is_refused(tmp_path, where):
    folder = saved(seeded("vit", **VIT), tmp_path / "vit")
    config = json.loads((folder / "config.json").read_text())
    args = {"attn_implementation": "someone/kernel"} if where == "args" else {}
    if not args:
        (folder / "config.json").write_text(json.dumps({**config, where: "someone/kernel"}))
    with pytest.raises(UnsafeError, match="'someone/kernel' is code from the hub"):
        load(folder, args=args)


@pytest.mark.parametrize(
    ("params", "error", "part"),
    [
        ({"name": "vit"}, WeightsError, "'vit' is a type of model, which has no weights of its own"),
        ({"name": "dinov22"}, ConfigError, "did you mean 'dinov2'"),
        ({"name": "bert", "weights": "random"}, ConfigError, "'bert' is not a vision model"),
        ({"name": "siglip2_vision_model", "weights": "random"}, ConfigError, "pixel_attention_mask, spatial_shapes"),
        ({"name": "./nowhere"}, ConfigError, "'./nowhere' is not a folder"),
        ({"name": "vit", "weights": "mine"}, WeightsError, "no weights are named 'mine'"),
        ({"name": "vit", "weights": "random", "args": {"hiden_size": 8}}, ConfigError, "did you mean 'hidden_size'"),
        ({"name": "vit", "weights": "random", "args": {"hidden_size": "a"}}, ConfigError, "{'hidden_size': 'a'} does"),
        ({"name": "vit", "weights": "random", "args": {"attn_implementation": "no"}}, ConfigError, "does not suit vit"),
    ],
)
def test_what_is_wrong_in_the_configuration_is_named(params, error, part):
    with pytest.raises(error) as caught:
        load(**params)
    assert part in str(caught.value)
    assert one_line(caught)


@pytest.mark.parametrize("weights", ["DEFAULT", "random"])
def test_a_repository_that_cannot_be_reached_ends_at_once_with_the_ways_out(cache, weights):
    started = time.monotonic()
    with pytest.raises(WeightsError, match=r"config\.json of someone/vit is not in the cache") as error:
        load("someone/vit", weights=weights)
    assert time.monotonic() - started < 15  # the libraries would retry for longer
    assert str(cache) in str(error.value)
    assert one_line(error)


def test_a_folder_without_a_model_says_what_it_lacks(tmp_path):
    with pytest.raises(WeightsError, match=r"has no config\.json"):
        load(tmp_path)
    transformers.ViTConfig(**VIT).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="has no weights"):
        load(tmp_path)
    assert load(tmp_path, weights="random").about["untrained"]


def test_a_run_gives_what_a_plain_loop_gives(photos):
    report = layertap.run(
        {
            "model": {"type": "transformers", "name": "vit", "weights": "random", "args": VIT},
            "taps": ["layers.1.mlp", "layernorm"],
            "source": {"type": "folder", "path": str(photos)},
            "sink": "memory",
            "device": "cpu",
            "batch_size": 4,
            "limit": 6,
            "observers": [],
        }
    )
    module, processor = seeded("vit", **VIT), transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    pixels = processed(processor, [Image.open(photos / name) for name in report.ids])
    with torch.no_grad():
        expected = torch.cat([module(pixels[:4]).last_hidden_state, module(pixels[4:]).last_hidden_state])
    assert report.kept == 6
    assert np.array_equal(report.values["layernorm"], expected.numpy())


ATTENTION = {
    "vit": "layers.0.attention[1]",
    "beit": "layers.0.attention[1]",
    "clip_vision_model": "encoder.layers.0.self_attn[1]",
    "siglip_vision_model": "encoder.layers.0.self_attn[1]",
    "swin": "encoder.layers.0.blocks.0.attention[1]",
}


@pytest.mark.parametrize("tap", [*ATTENTION.items(), ("vit", ".[attentions][0]")])
def test_attention_weights_that_are_not_computed_name_a_cure_that_works(tap):
    kind, tap = tap

    def weights(args):
        module = load(kind, weights="random", args={**TINY[kind], **args}).module.eval()
        with layertap.tap(module, [tap]) as taps:
            return taps.run(torch.zeros(2, 3, 32, 32))[tap]

    with pytest.raises(TapError, match=r"attention weights need model\.args=\{attn_implementation: eager") as error:
        weights({})
    assert one_line(error)
    (said,) = re.findall(r"model\.args=(\{.*?\})", str(error.value))
    rows = weights(yaml.safe_load(said)).sum(-1)
    assert torch.allclose(rows, torch.ones_like(rows), atol=1e-5)


def test_a_value_that_is_none_for_another_reason_names_no_attention():
    module = load("vit", weights="random", args={**TINY["vit"], "attn_implementation": "eager"}).module
    with layertap.tap(module, [".[hidden_states]"]) as taps, pytest.raises(TapError) as error:
        taps.run(torch.zeros(2, 3, 32, 32))
    assert "attn_implementation" not in str(error.value)


def test_a_model_without_a_processor_advises_its_size(tmp_path, photos):
    folder = saved(seeded("vit", **VIT), tmp_path / "vit")
    with pytest.raises(ConfigError, match=r"has no image processor that.*preprocessor_config\.json") as error:
        list(layertap.extract({"type": "transformers", "name": str(folder)}, photos, ["layernorm"]))
    (said,) = re.findall(r"`preprocess: (.*?)`", str(error.value))
    model = {"type": "transformers", "name": str(folder)}
    (batch,) = layertap.extract(model, [picture(50, 60)], ["layernorm"], preprocess=yaml.safe_load(said))
    assert batch.values["layernorm"].shape == (1, 17, 16)
