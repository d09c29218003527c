"""Nothing in a checkpoint runs; weights are found in wrappers and under prefixes; those that do not fit are listed."""

from __future__ import annotations

import argparse
import os
import pickle
import tarfile
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from layertap import UnsafeError, WeightsError
from layertap_plugins.models import checkpoints, entries, weights


class Gadget:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch '{self.canary}'",)


def tiny():
    return nn.Sequential(OrderedDict(body=nn.Linear(3, 4), norm=nn.BatchNorm1d(4), head=nn.Linear(4, 5)))


def one_line(error):
    return "\n" not in str(error.value)


def only(path):
    """The one state dict in a file."""
    ((_, state),) = checkpoints.read(path).states
    return state


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict", "encoder", "whatever"])
def test_a_state_dict_is_read_out_of_its_wrapper(tmp_path, wrapper):
    state = tiny().state_dict()
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "tiny.pth")
    ((entry, found),) = checkpoints.read(tmp_path / "tiny.pth").states
    assert (entry, found.keys()) == (wrapper, state.keys())


def test_the_command_line_that_training_scripts_save_too_is_not_an_obstacle(tmp_path):
    state = tiny().state_dict()
    torch.save({"model": state, "args": argparse.Namespace(lr=0.1, path="x")}, tmp_path / "tiny.pth")
    assert only(tmp_path / "tiny.pth").keys() == state.keys()


def test_safetensors_and_the_format_of_old_are_read(tmp_path):
    state = {"weight": torch.arange(3.0)}
    save_file(state, tmp_path / "tiny.safetensors")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("tiny.safetensors", "old.pth"):
        assert torch.equal(only(tmp_path / name)["weight"], state["weight"])


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("truncated", [False, True])
def test_a_hostile_pickle_is_refused_and_runs_nothing(tmp_path, protocol, truncated):
    path, canary = tmp_path / "evil.pth", tmp_path / "canary"
    content = pickle.dumps(Gadget(canary), protocol)
    path.write_bytes(content[:-1] if truncated else content)
    with pytest.raises(UnsafeError, match="could run code") as error:
        checkpoints.read(path)
    assert not canary.exists()
    assert one_line(error)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt"])
def test_a_hostile_checkpoint_is_refused_and_runs_nothing(tmp_path, zipped, suffix):
    path, canary = tmp_path / f"evil{suffix}", tmp_path / "canary"
    torch.save({"weight": torch.ones(1), "x": Gadget(canary)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UnsafeError, match=r"save its state dict as \.safetensors"):
        checkpoints.read(path)
    assert not canary.exists()


def test_a_hostile_pickle_in_other_clothes_runs_nothing(tmp_path):
    canary = tmp_path / "canary"
    for name in ("evil.safetensors", "evil.SAFETENSORS"):
        (tmp_path / name).write_bytes(pickle.dumps(Gadget(canary)))
        with pytest.raises(WeightsError):
            checkpoints.read(tmp_path / name)
    assert not canary.exists()


def test_a_whole_module_is_refused(tmp_path):
    torch.save(tiny(), tmp_path / "module.pth")
    with pytest.raises(UnsafeError):
        checkpoints.read(tmp_path / "module.pth")


def test_an_archive_of_code_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("script/constants.pkl", b"")
    with tarfile.open(tmp_path / "ancient.pth", "w") as tar:
        tar.add(tmp_path / "script.pt")
    for name in ("script.pt", "ancient.pth"):
        with pytest.raises(UnsafeError, match="could run code"):
            checkpoints.read(tmp_path / name)


def damage(path):
    torch.save({"weight": torch.zeros(1000)}, path)
    whole = path.read_bytes()
    torch.save({"weight": torch.zeros(1000)}, path, _use_new_zipfile_serialization=False)
    old = path.read_bytes()
    yield from (whole[: len(whole) // 2], whole[:10], old[: len(old) // 2], old[:60])
    yield from (
        b"",
        b"hello world",
        b"<!DOCTYPE html><html></html>",
        b"version 1\noid sha256:0\n",
        bytes(range(256)) * 9,
    )
    yield b"\x8e" + b"\xff" * 8  # a pickled string of 2**64 bytes


def test_a_damaged_file_is_said_to_be_one(tmp_path):
    path = tmp_path / "damaged.pth"
    for content in damage(path):
        for name in ("damaged.pth", "damaged.safetensors"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(WeightsError, match="damaged") as error:
                checkpoints.read(tmp_path / name)
            assert one_line(error)
            assert "weights_only" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ([1, 2], "a list"),
        (torch.ones(2), "a Tensor"),
        ({"epoch": 3}, "'epoch' is a int"),
        ({1: torch.ones(1)}, "entry 1"),
    ],
)
def test_a_file_without_a_state_dict_says_what_it_holds(tmp_path, content, what):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=what):
        checkpoints.read(tmp_path / "other.pth")


@dataclass(frozen=True)
class Wanted:
    weights_entry: str | None = None
    weights_prefix: str | None = None


def filling(module, classes=5):
    def fill(candidate):
        checkpoints.fit(module, candidate.state, Path("tiny.pth"), classes)
        return module

    return fill


def fitted(state, classes=5):
    """The tiny model with a state dict, whatever prefix that has."""
    module = tiny()
    checkpoint = checkpoints.Checkpoint(Path("tiny.pth"), "0" * 64, [(None, state)])
    checkpoint.loaded(filling(module, classes), Wanted(), module)
    return module


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod.", "module._orig_mod.", "model.module."])
def test_a_state_that_fits_is_loaded_whole_under_any_prefix(prefix):
    origin = tiny().state_dict()
    loaded = fitted({prefix + key: value for key, value in origin.items()}).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in origin.items())


def test_what_data_parallel_saves_is_understood():
    origin = tiny()
    loaded = fitted(nn.DataParallel(origin).state_dict()).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in origin.state_dict().items())


def test_a_prefix_that_the_model_has_itself_is_kept():
    module = nn.Sequential(OrderedDict(model=nn.Linear(2, 3)))
    state = {key: torch.ones_like(value) for key, value in module.state_dict().items()}
    checkpoints.fit(module, state, Path("tiny.pth"))
    assert (module.model.weight == 1).all()


def test_without_a_model_only_the_prefixes_of_wrappers_are_stripped():
    states = [(None, {"module.model.weight": torch.ones(1)})]
    (candidate,) = entries.candidates(states, {}, Wanted(), Path("tiny.pth"))
    assert (candidate.prefix, list(candidate.state)) == ("module.", ["model.weight"])


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_a_checkpoint_from_before_batches_were_counted_still_loads(prefix):
    state = {prefix + key: value for key, value in tiny().state_dict().items() if "num_batches" not in key}
    assert fitted(state).norm.num_batches_tracked == 0


def test_what_does_not_fit_is_listed_with_counts():
    state = tiny().state_dict()
    del state["body.weight"], state["body.bias"]
    state |= {f"extra.{number}": torch.ones(1) for number in range(5)}
    state["norm.weight"] = torch.ones(7)
    with pytest.raises(WeightsError) as error:
        fitted(state)
    for part in (
        "2 missing: 'body.weight', 'body.bias'",
        "5 unexpected: 'extra.0'",
        ", ...",
        "'norm.weight' ((7,) for (4,))",
    ):
        assert part in str(error.value)
    assert "num_classes" not in str(error.value)
    assert one_line(error)


def test_a_head_of_other_classes_suggests_their_number():
    state = tiny().state_dict()
    state["head.weight"], state["head.bias"] = torch.ones(9, 4), torch.ones(9)
    with pytest.raises(WeightsError, match=r"set model\.args=\{num_classes: 9\}"):
        fitted(state)


def test_a_model_without_a_head_suggests_no_number():
    state = tiny().state_dict()
    state["head.weight"], state["head.bias"] = torch.ones(9, 4), torch.ones(9)
    with pytest.raises(WeightsError, match=r"2 of another shape: 'head\.weight'") as error:
        fitted(state, None)
    assert "num_classes" not in str(error.value)


def test_values_that_cannot_be_taken_over_are_an_error_about_weights():
    state = tiny().state_dict()
    state["body.weight"] = torch.empty(4, 3, device="meta")
    with pytest.raises(WeightsError, match="does not fit") as error:
        fitted(state)
    assert one_line(error)


def test_a_checkpoint_says_what_file_it_is_from(tmp_path):
    torch.save({"weight": torch.ones(1)}, tmp_path / "tiny.pth")
    digest = weights.sha256(tmp_path / "tiny.pth")
    module = nn.Linear(1, 1, bias=False)
    found = checkpoints.read(tmp_path / "tiny.pth", digest)
    with pytest.raises(WeightsError, match="of another shape"):
        found.loaded(filling(module), Wanted(), module)
    module = nn.ParameterDict({"weight": nn.Parameter(torch.zeros(1))})
    _, facts = found.loaded(filling(module), Wanted(), module)
    assert facts == {
        "weights_file": "tiny.pth",
        "weights_sha256": digest,
        "weights_entry": None,
        "weights_prefix": None,
    }


@pytest.mark.parametrize("zipped", [True, False])
def test_other_things_saved_with_the_weights_are_not_an_obstacle(tmp_path, zipped):
    weight = nn.Parameter(torch.randn(3, 4).half())
    optimizer = torch.optim.AdamW([nn.Parameter(torch.randn(3))])
    optimizer.param_groups[0]["params"][0].grad = torch.ones(3)
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 7])
    content = {
        "state_dict": OrderedDict(weight=weight, view=torch.arange(12.0).view(3, 4).T[1:], bits=torch.ones(2).bool()),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "args": {"dtype": torch.bfloat16, "device": torch.device("cuda:1"), "size": torch.Size([2]), "tags": {"a"}},
        "history": [0.25] * 250_000,
    }
    torch.save(content, tmp_path / "mine..of 3.pth", _use_new_zipfile_serialization=zipped)
    state = dict(checkpoints.read(tmp_path / "mine..of 3.pth").states)["state_dict"]
    assert all(torch.equal(state[key], value) for key, value in content["state_dict"].items())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "uint16", "int64", "complex64", "float8_e4m3fn"])
def test_every_type_of_number_is_read_from_either_kind_of_file(tmp_path, dtype):
    value = torch.ones(3).to(getattr(torch, dtype))
    torch.save({"weight": value}, tmp_path / "tiny.pth")
    save_file({"weight": value}, tmp_path / "tiny.safetensors")
    for name in ("tiny.pth", "tiny.safetensors"):
        found = only(tmp_path / name)["weight"]
        assert (found.dtype, found.view(torch.uint8).tolist()) == (value.dtype, value.view(torch.uint8).tolist())


def test_tensors_may_share_their_storage(tmp_path):
    weight = torch.randn(4, 3)
    torch.save({"weight": weight, "tied": weight, "row": weight[1], "one": weight[:1].expand(1, 3)}, tmp_path / "t.pth")
    assert torch.equal(only(tmp_path / "t.pth")["tied"], weight)


def test_a_mask_may_be_infinite_and_a_parameter_may_not(tmp_path):
    module = tiny()
    module.register_buffer("mask", torch.full((2, 2), float("-inf")))
    checkpoints.check_finite(module, Path("tiny.pth"))
    module.half().body.bias.data[1] = 70_000
    with pytest.raises(WeightsError, match=r"NaN or infinity in 'body\.bias'") as error:
        checkpoints.check_finite(module, Path("tiny.pth"))
    assert one_line(error)
