"""Of every kind of checkpoint the model gets the weights that it names, or the error lists those that may be meant."""

from __future__ import annotations

import json
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision import models

import layertap
from layertap import ConfigError, StoreError, WeightsError
from layertap.cli.format import report_data, report_text
from layertap.cli.info import summary_text
from layertap.store.manifest import read_output
from layertap_plugins.models.torchvision import TorchvisionModel
from tests.published import one_line, same

NAME = "squeezenet1_1"
ARGS = {"num_classes": 3}


def module(seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return models.get_model(NAME, weights=None, **ARGS)


RAW, EMA, THIRD = module(1).state_dict(), module(2).state_dict(), module(3).state_dict()
HEAD = {"mlp.0.weight": torch.ones(4, 3), "mlp.0.bias": torch.zeros(4)}


def before(prefix, state):
    return OrderedDict((prefix + key, value) for key, value in state.items())


def averaged():
    ema = AveragedModel(module(1), multi_avg_fn=get_ema_multi_avg_fn(0.5))
    ema.update_parameters(module(1))
    ema.update_parameters(module(2))
    return ema.state_dict()


def optimizer():
    trained = module(1)
    found = torch.optim.AdamW(trained.parameters())
    for parameter in trained.parameters():
        parameter.grad = torch.ones_like(parameter)
    found.step()
    return found.state_dict()


AVERAGED = averaged()
# By name: what the file holds, and what the model gets of it: state, entry, prefix.
RIGHT = {
    "plain": (RAW, RAW, None, None),
    "timm without an average": ({"state_dict": RAW, "arch": NAME, "epoch": 3}, RAW, "state_dict", None),
    "DataParallel": ({"state_dict": before("module.", RAW), "epoch": 3}, RAW, "state_dict", "module."),
    "torch.compile in DDP": (before("module._orig_mod.", RAW), RAW, None, "module._orig_mod."),
    "Lightning": (
        {"state_dict": before("model.", RAW), "hyper_parameters": {"lr": 0.1}, "callbacks": {}, "loops": {"a": {}}},
        RAW,
        "state_dict",
        "model.",
    ),
    "Lightning with a metric and a loss": (
        {"state_dict": {**before("net.", RAW), "criterion.weight": torch.ones(3)}},
        RAW,
        "state_dict",
        "net.",
    ),
    "with an optimizer": ({"model": RAW, "optimizer": optimizer(), "epoch": 3}, RAW, "model", None),
    "nested twice": ({"checkpoint": {"state": RAW, "step": 3}, "version": 1}, RAW, "checkpoint.state", None),
    "nested twice with a prefix": (
        {"a": {"b": before("encoder.", RAW) | before("decoder.", HEAD)}},
        RAW,
        "a.b",
        "encoder.",
    ),
    "MoCo after removing the key encoder": (
        {"state_dict": {**before("module.encoder_q.", RAW), "module.queue": torch.ones(4, 8)}},
        RAW,
        "state_dict",
        "module.encoder_q.",
    ),
    "AveragedModel": (
        AVERAGED,
        {k.removeprefix("module."): v for k, v in AVERAGED.items() if k != "n_averaged"},
        None,
        "module.",
    ),
    "mmpretrain": (
        {"meta": {"epoch": 3}, "state_dict": before("backbone.", RAW) | before("head.", HEAD)},
        RAW,
        "state_dict",
        "backbone.",
    ),
    "detectron2": (
        {"model": before("backbone.bottom_up.", RAW) | before("proposal_generator.", HEAD), "__author__": "somebody"},
        RAW,
        "model",
        "backbone.bottom_up.",
    ),
    "SimCLR": (before("encoder.", RAW) | before("projector.", HEAD), RAW, None, "encoder."),
    "two entries that are one": ({"state_dict": RAW, "state_dict_ema": dict(RAW)}, RAW, "state_dict", None),
    "a student of another architecture": (
        {"student": {"weight": torch.ones(2, 2)}, "teacher": RAW},
        RAW,
        "teacher",
        None,
    ),
}
# By name: what the file holds, and by what parameters each of its sets of weights is had; the error lists them all.
AMBIGUOUS = {
    "timm EMA": (
        {"state_dict": RAW, "state_dict_ema": EMA, "arch": NAME},
        {"weights_entry=state_dict": RAW, "weights_entry=state_dict_ema": EMA},
    ),
    "torchvision's references": (
        {"model": RAW, "model_ema": {"n_averaged": torch.tensor(3), **before("module.", EMA)}, "args": {"lr": 0.1}},
        {"weights_entry=model": RAW, "weights_entry=model_ema": EMA},
    ),
    "DINO": (
        {
            "student": before("module.backbone.", RAW) | before("module.head.", HEAD),
            "teacher": before("backbone.", EMA) | before("head.", HEAD),
            "epoch": 3,
        },
        {"weights_entry=student": RAW, "weights_entry=teacher": EMA},
    ),
    "MoCo": (
        {"state_dict": before("module.encoder_q.", RAW) | before("module.encoder_k.", EMA)},
        {"weights_prefix=module.encoder_q.": RAW, "weights_prefix=module.encoder_k.": EMA},
    ),
    "BYOL": (
        before("online_network.encoder.", RAW)
        | before("online_network.projector.", HEAD)
        | before("target_network.encoder.", EMA)
        | before("target_network.projector.", HEAD),
        {"weights_prefix=online_network.encoder.": RAW, "weights_prefix=target_network.encoder.": EMA},
    ),
    "Lightning's WeightAveraging": (
        {"state_dict": before("model.", EMA), "current_model_state": before("model.", RAW)},
        {"weights_entry=state_dict": EMA, "weights_entry=current_model_state": RAW},
    ),
    "mmengine's EMAHook": (
        {
            "state_dict": before("backbone.", RAW),
            "ema_state_dict": {"steps": torch.ones(1), **before("module.backbone.", EMA)},
        },
        {"weights_entry=state_dict": RAW, "weights_entry=ema_state_dict": EMA},
    ),
    "two of two": (
        {"g": before("net.", RAW) | before("ema.", EMA), "d": before("net.", THIRD)},
        {
            "weights_entry=g model.weights_prefix=net.": RAW,
            "weights_entry=g model.weights_prefix=ema.": EMA,
            "weights_entry=d": THIRD,
        },
    ),
    "iBOT, nested": (
        {"models": {"student": RAW, "teacher": EMA}},
        {"weights_entry=models.student": RAW, "weights_entry=models.teacher": EMA},
    ),
}


def load(path, **params):
    return TorchvisionModel.of(name=NAME, weights=str(path), args=ARGS, **params).load()


@pytest.fixture
def saved(tmp_path):
    def save(content):
        torch.save(content, tmp_path / "zoo.pth")
        return tmp_path / "zoo.pth"

    return save


def test_the_sets_of_weights_differ():
    assert not same(module(1), EMA)


@pytest.mark.parametrize("kind", RIGHT)
def test_where_one_set_of_weights_fits_it_is_taken_and_named(saved, kind):
    content, state, entry, prefix = RIGHT[kind]
    loaded = load(saved(content))
    assert same(loaded.module, state)
    assert (loaded.about["weights_entry"], loaded.about["weights_prefix"]) == (entry, prefix)


@pytest.mark.parametrize("kind", AMBIGUOUS)
def test_where_several_fit_they_are_listed_and_each_choice_works(saved, kind):
    content, choices = AMBIGUOUS[kind]
    with pytest.raises(WeightsError, match=f"holds {len(choices)} different sets of weights that fit") as error:
        load(saved(content))
    assert one_line(error)
    listed = str(error.value).partition("choose one: ")[2].split(", or ")
    assert listed == sorted(f"model.{choice}" for choice in choices)
    for choice, state in choices.items():
        params = dict(word.removeprefix("model.").split("=") for word in choice.split())
        assert same(load(saved(content), **params).module, state), choice


def test_the_keys_that_are_left_out_are_counted(saved):
    assert load(saved(before("encoder.", RAW) | before("projector.", HEAD))).about["unused_keys"] == len(HEAD)
    assert "unused_keys" not in load(saved(RAW)).about


def test_an_entry_is_not_taken_silently_where_another_only_has_keys_to_spare(saved):
    with pytest.raises(WeightsError, match=r"weights_entry=state_dict, or model\.weights_entry=teacher"):
        load(saved({"state_dict": RAW, "teacher": {**EMA, "center": torch.ones(1)}}))
    with pytest.raises(WeightsError, match=r"choose one: model\.weights_prefix=ema\., or its keys without a prefix"):
        load(saved({**RAW, **before("ema.", EMA)}))


@pytest.mark.parametrize(
    ("params", "part"),
    [
        (
            {"weights_entry": "teachers"},
            "weights_entry: '{path}' has no state dict 'teachers'; did you mean 'teacher'?",
        ),
        ({"weights_entry": "epoch"}, "has no state dict 'epoch' (it has student, teacher)"),
        (
            {"weights_prefix": "backbone"},
            "no keys in '{path}' begin with 'backbone'; did you mean 'backbone.'?",
        ),
        ({"weights_prefix": "encoder."}, "begin with 'encoder.' (they begin with backbone., head."),
        ({"weights_entry": "teacher", "weights_prefix": "head."}, "does not fit the model: keys"),
    ],
)
def test_a_choice_that_the_file_does_not_have_is_an_error_with_its_choices(saved, params, part):
    both = {name: before("backbone.", RAW) | before("head.", HEAD) for name in ("student", "teacher")}
    path = saved({**both, "epoch": 3})
    with pytest.raises(WeightsError) as error:
        load(path, **params)
    assert part.format(path=path) in str(error.value)
    assert one_line(error)


def test_a_plain_file_has_no_entry_to_choose(saved):
    with pytest.raises(WeightsError, match="it is one state dict; leave weights_entry out"):
        load(saved(RAW), weights_entry="teacher")


def test_where_none_fits_the_nearest_is_shown_and_the_others_are_named(saved):
    almost = {key: value for key, value in RAW.items() if key != "classifier.1.bias"}
    with pytest.raises(WeightsError, match=r"1 missing: 'classifier\.1\.bias'.*'b', and no other fits \(a\)") as error:
        load(saved({"a": {"weight": torch.ones(1)}, "b": almost}))
    assert one_line(error)


def test_a_prefix_that_leads_to_another_head_is_named_with_what_differs(saved):
    other = models.get_model(NAME, weights=None, num_classes=5).state_dict()
    with pytest.raises(WeightsError, match=r"set model\.args=\{num_classes: 5\}; this is without the prefix 'net\.'"):
        load(saved({"state_dict": before("net.", other) | {"criterion.weight": torch.ones(5)}}))


def test_a_prefix_in_several_entries_that_fits_in_none_is_an_error_with_what_differs(saved):
    both = {name: before("backbone.", RAW) | before("head.", HEAD) for name in ("student", "teacher")}
    with pytest.raises(WeightsError, match="does not fit the model: keys 52 missing"):
        load(saved(both), weights_prefix="head.")


def test_a_safetensors_file_has_prefixes_too(tmp_path):
    save_file(before("student.", RAW) | before("teacher.", EMA), tmp_path / "both.safetensors")
    with pytest.raises(WeightsError, match=r"weights_prefix=student\., or model\.weights_prefix=teacher\."):
        load(tmp_path / "both.safetensors")
    assert same(load(tmp_path / "both.safetensors", weights_prefix="teacher.").module, EMA)


@pytest.mark.parametrize("key", ["weights_entry", "weights_prefix"])
@pytest.mark.parametrize("kind", ["torchvision", "timm", "transformers", "open_clip"])
def test_random_weights_leave_nothing_to_choose(photos, kind, key):
    model = {"type": kind, "name": "x", "weights": "random", key: "a."}
    with pytest.raises(ConfigError, match=rf"{key}: there is no file to choose from"):
        layertap.run({"model": model, "source": str(photos), "sink": "memory"})


@pytest.mark.parametrize("content", [{"a." * 500_000 + "weight": torch.ones(1)}, {"a": {"b": {"c": {}}}, "d": 1}])
def test_odd_files_are_refused_at_once(saved, content):
    with pytest.raises(WeightsError):
        load(saved(content))


def test_names_from_a_file_do_not_steer_the_terminal_or_fill_it(saved):
    odd = {"a\x1b[2J\n": RAW, "b" * 100_000: EMA, "c": THIRD}
    for params in ({}, {"weights_entry": "d"}):
        with pytest.raises(WeightsError, match=r"'a\\x1b\[2J\\n'") as error:
            load(saved(odd), **params)
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 2_000


def test_a_file_of_many_sets_of_weights_is_not_tried_to_the_end(saved):
    key = "classifier.1.bias"
    with pytest.raises(WeightsError, match="holds at least 8 different sets of weights") as error:
        load(saved({f"step{number}": {**RAW, key: torch.full((3,), float(number))} for number in range(60)}))
    assert len(str(error.value)) < 2_000


def test_a_file_of_endless_dictionaries_is_refused(saved):
    content = {}
    for name in "abcdefgh":
        content[name] = content
    with pytest.raises(WeightsError, match="holds more than 10,000 dictionaries"):
        load(saved(content))


def test_timm_takes_what_fits_also_under_the_authors_names(saved):
    timm = pytest.importorskip("timm", reason="needs `pip install 'layertap[timm]'`")
    from layertap_plugins.models.timm import TimmModel

    def loaded(content, **params):
        return TimmModel.of(name="test_vit", weights=str(saved(content)), args={"num_classes": 0}, **params).load()

    raw, ema = (timm.create_model("test_vit", num_classes=0).state_dict() for _ in range(2))
    assert same(loaded({"state_dict": before("backbone.", raw) | before("head.", HEAD)}).module, raw)
    with pytest.raises(WeightsError, match=r"weights_entry=state_dict, or model\.weights_entry=state_dict_ema"):
        loaded({"state_dict": raw, "state_dict_ema": ema})
    found = loaded({"state_dict": raw, "state_dict_ema": ema}, weights_entry="state_dict_ema")
    assert same(found.module, ema)
    # MAE: the decoder is no part of the model, and there is no prefix that tells.
    with pytest.raises(WeightsError, match=r"unexpected: 'decoder_pred\.weight'"):
        loaded({"model": {**raw, "decoder_pred.weight": torch.ones(1)}})


def test_transformers_takes_what_fits_with_or_without_its_own_prefix(saved):
    transformers = pytest.importorskip("transformers", reason="needs `pip install 'layertap[transformers]'`")
    from layertap_plugins.models.transformers import TransformersModel

    args = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    args |= {"image_size": 32, "patch_size": 8}

    def loaded(content, **params):
        return TransformersModel.of(name="vit", weights=str(saved(content)), args=args, **params).load()

    raw, ema = (transformers.ViTModel(transformers.ViTConfig(**args)).state_dict() for _ in range(2))
    plain = loaded(before("vit.", raw) | before("classifier.", HEAD))
    assert same(plain.module, raw)
    assert (plain.about["weights_prefix"], plain.about["unused_keys"]) == (None, len(HEAD))
    lightning = loaded({"state_dict": before("net.", raw) | before("metric.", HEAD)})
    assert same(lightning.module, raw)
    assert (lightning.about["weights_entry"], lightning.about["weights_prefix"]) == ("state_dict", "net.")
    assert lightning.about["unused_keys"] == len(HEAD)
    both = before("student.", raw) | before("teacher.", ema)
    with pytest.raises(WeightsError, match=r"weights_prefix=student\., or model\.weights_prefix=teacher\."):
        loaded(both)
    assert same(loaded(both, weights_prefix="teacher.").module, ema)
    with pytest.raises(WeightsError, match=r"weights_entry=ema, or model\.weights_entry=model"):
        loaded({"model": raw, "ema": ema})


def test_open_clip_takes_the_tower_that_fits(saved):
    open_clip = pytest.importorskip("open_clip", reason="needs `pip install 'layertap[open_clip]'`")
    from layertap_plugins.models.open_clip import OpenClipModel

    args = {"layers": 1, "width": 32, "head_width": 16, "image_size": 64}
    text = {"context_length": 4, "vocab_size": 9, "width": 16, "heads": 2, "layers": 1}

    def loaded(content, **params):
        args_ = {**args, "embed_dim": 12}
        return OpenClipModel.of(name="ViT-B-32", weights=str(saved(content)), args=args_, **params).load()

    raw, ema = (open_clip.CLIP(12, {**args, "patch_size": 32}, text).state_dict() for _ in range(2))
    tower = {key.removeprefix("visual."): value for key, value in raw.items() if key.startswith("visual.")}
    plain = loaded({"state_dict": before("module.", raw), "epoch": 3})
    assert same(plain.module, tower)
    assert (plain.about["weights_entry"], plain.about["weights_prefix"]) == ("state_dict", "module.")
    with pytest.raises(WeightsError, match=r"weights_entry=model, or model\.weights_entry=model_ema"):
        loaded({"model": raw, "model_ema": ema})
    assert same(loaded({"model": raw, "model_ema": ema}, weights_entry="model").module, tower)
    assert same(loaded(before("clip.", raw) | before("head.", HEAD), weights_prefix="clip.").module, tower)


def config(photos, path, out, **model):
    return {
        "model": {"type": "torchvision", "name": NAME, "weights": str(path), "args": ARGS, **model},
        "taps": ["features.0"],
        "source": {"type": "folder", "path": str(photos)},
        "preprocess": {"type": "imagenet", "resize": 64, "crop": 64},
        "sink": {"type": "npy", "path": str(out)},
        "device": "cpu",
        "limit": 2,
        "observers": [],
    }


def test_the_report_the_manifest_and_info_say_what_was_taken(saved, photos, tmp_path):
    path = saved({"teacher": before("backbone.", RAW) | before("head.", HEAD)})
    report = layertap.run(config(photos, path, tmp_path / "out"))
    said = "zoo.pth, entry teacher, prefix backbone. stripped, 2 other keys left out"
    assert f"  weights: {said}" in report_text(report)
    assert report_data(report)["weights_entry"] == "teacher"
    assert report_data(report)["weights_prefix"] == "backbone."
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["model"]["weights_entry"], manifest["model"]["weights_prefix"]) == ("teacher", "backbone.")
    assert f"  weights     {said}" in summary_text(tmp_path / "out", read_output(tmp_path / "out"))
    plain = layertap.run(config(photos, saved(RAW), tmp_path / "plain"))
    assert "zoo.pth" not in report_text(plain)
    assert report_data(plain)["weights_entry"] is None


def test_an_output_knows_its_weights_whether_they_were_asked_for_or_not(saved, photos, tmp_path):
    path = saved({"state_dict": before("model.", RAW), "other": {"weight": torch.ones(1)}})
    layertap.run(config(photos, path, tmp_path / "out"))
    assert layertap.run(config(photos, path, tmp_path / "out", weights_entry="state_dict")).already
    both = saved({"state_dict": RAW, "state_dict_ema": EMA})
    layertap.run(config(photos, both, tmp_path / "both", weights_entry="state_dict"))
    with pytest.raises(StoreError, match="state_dict_ema"):
        layertap.run(config(photos, both, tmp_path / "both", weights_entry="state_dict_ema"))


@pytest.mark.parametrize("earlier", [None, "IMAGENET1K_V1"])
def test_an_output_from_before_this_was_recorded_is_resumed(saved, photos, tmp_path, earlier):
    path = saved({"state_dict": before("module.", RAW), "epoch": 3})
    layertap.run(config(photos, path, tmp_path / "out"))
    file = tmp_path / "out" / "manifest.json"
    manifest = json.loads(file.read_text())
    for facts in (manifest["model"], manifest["fingerprint"]["about"]):
        del facts["weights_entry"], facts["weights_prefix"]
        if earlier:
            facts["weights_entry"] = earlier  # what torchvision calls its own weights had this key
    file.write_text(json.dumps(manifest))
    assert layertap.run(config(photos, path, tmp_path / "out")).already
    # Which of several it took cannot be known: a choice is refused.
    with pytest.raises(StoreError, match="weights_entry"):
        layertap.run(config(photos, path, tmp_path / "out", weights_entry="state_dict"))
