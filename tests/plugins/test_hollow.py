"""A model built for a file equals one built in the ordinary way, bit for bit, or else is built in the ordinary way."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models

from layertap_plugins.models import building, checkpoints, hollow

IMAGE = {"image_size": 32, "patch_size": 16, "num_layers": 1, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 8}
SWIN = {"patch_size": [4, 4], "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 1], "window_size": [7, 7]}
MAXVIT = {"input_size": (64, 64), "stem_channels": 8, "partition_size": 2, "block_channels": [8], "block_layers": [1]}
CONVNEXT = [models.convnext.CNBlockConfig(8, 16, 1), models.convnext.CNBlockConfig(16, None, 1)]
FAMILIES = {
    "vit": lambda: models.VisionTransformer(**IMAGE),
    "swin": lambda: models.SwinTransformer(**SWIN),
    "swin_v2": lambda: models.SwinTransformer(**SWIN, block=models.swin_transformer.SwinTransformerBlockV2),
    "maxvit": lambda: models.MaxVit(**MAXVIT, head_dim=8, stochastic_depth_prob=0.1),
    "convnext": lambda: models.ConvNeXt(CONVNEXT),
    "googlenet": lambda: models.GoogLeNet(init_weights=False),
}
NAMES = ("squeezenet1_1", "mnasnet0_5", "shufflenet_v2_x0_5", "mobilenet_v2", "mobilenet_v3_small", "resnet18")
FAMILIES |= {name: lambda name=name: models.get_model(name, weights=None) for name in (*NAMES, "regnet_y_400mf")}
FAMILIES["quantizable"] = lambda: models.quantization.mobilenet_v2(weights=None)
for timm_name in ("test_vit", "test_resnet", "test_efficientnet", "test_vit3", "test_convnext"):
    FAMILIES[f"timm {timm_name}"] = lambda name=timm_name: importlib.import_module("timm").create_model(name)


def whole(module):
    """All tensors that a module holds, saved or not, and which of them are shared."""
    tensors, ids = {}, {}
    for path, layer in module.named_modules(remove_duplicate=False):
        plain = {key: value for key, value in vars(layer).items() if isinstance(value, torch.Tensor)}
        for key, value in {**layer._parameters, **layer._buffers, **plain}.items():
            if value is not None:
                tensors[f"{path}.{key}"] = value
                ids.setdefault(id(value), []).append(f"{path}.{key}")
    return tensors, sorted(ids.values())


def assert_same(module, other):
    (mine, ties), (theirs, their_ties) = whole(module), whole(other)
    assert (list(mine), ties) == (list(theirs), their_ties)
    for key, value in mine.items():
        for fact in ("dtype", "device", "requires_grad", "__class__"):
            assert getattr(value, fact) == getattr(theirs[key], fact), key
        assert (value.stride(), vars(value)) == (theirs[key].stride(), vars(theirs[key])), key
        assert torch.equal(value, theirs[key]), key


def trained(module, seed=5):
    """A state that fits, without any of a module's initial values."""
    draw = torch.Generator().manual_seed(seed)
    state = module.state_dict()
    for key, value in state.items():
        if value.is_floating_point():
            state[key] = torch.rand(value.shape, generator=draw, dtype=value.dtype) + 0.25
    return state


def ordinary(build):
    with building.seeded():
        return build()


def counted(build):
    """`build`, and how often it was called: once if the model is built without values, otherwise twice."""
    calls = []

    def counting():
        calls.append(1)
        return build()

    return counting, calls


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_that_is_filled_from_a_file_is_the_ordinary_one_to_the_bit(name):
    if name.startswith("timm"):
        pytest.importorskip("timm")
    expected = ordinary(FAMILIES[name])
    state = trained(expected)
    build, calls = counted(FAMILIES[name])
    module = hollow.built(build, lambda module: module, loads=False)
    for each in (module, expected):
        checkpoints.fit(each, state, Path("tiny.pth"))
    assert_same(module, expected)
    assert len(calls) == 1


@pytest.mark.parametrize("name", ["vit", "swin", "squeezenet1_1", "resnet18"])
def test_a_builder_that_loads_by_itself_gives_the_ordinary_model_to_the_bit(name):
    state = trained(ordinary(FAMILIES[name]))

    def load():
        module = FAMILIES[name]()
        module.load_state_dict(state)
        return module

    build, calls = counted(load)
    module = hollow.built(build, lambda module: module, loads=True)
    assert_same(module, ordinary(load))
    assert len(calls) == 1
    places = {value.untyped_storage().data_ptr() for value in state.values()}
    assert not places & {value.untyped_storage().data_ptr() for value in module.state_dict().values()}


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.listed = [self.first.bias.requires_grad_(False)]
        self.first.bias.note = "kept"


def test_tied_frozen_and_listed_parameters_stay_one():
    module, expected = hollow.built(Tied, lambda module: module, loads=False), ordinary(Tied)
    state = trained(expected)
    for each in (module, expected):
        checkpoints.fit(each, state, Path("tiny.pth"))
    assert_same(module, expected)
    assert module.listed[0] is module.first.bias
    assert module.first.bias.note == "kept"


class Drawn(nn.Linear):
    """A buffer that is not in the file, drawn after the weights."""

    def __init__(self):
        super().__init__(3, 3)
        self.register_buffer("directions", torch.randn(3), persistent=False)


class DrawnAside(nn.Linear):
    def __init__(self):
        super().__init__(3, 3)
        self.directions = torch.randn(3)


class Shuffled(nn.Linear):
    def __init__(self):
        super().__init__(3, 3)
        self.register_buffer("order", torch.randperm(50), persistent=False)


class Derived(nn.Linear):
    """A constant that depends on a weight."""

    def __init__(self):
        super().__init__(3, 3)
        self.register_buffer("first", self.weight.detach().clone(), persistent=False)


class Mask(nn.Linear):
    def __init__(self):
        super().__init__(3, 3)
        self.mask = torch.empty(3, 3).fill_(float("-inf")).triu_(1)


class Recurrent(nn.Module):
    """A module with weights that it also refers to by other attributes."""

    def __init__(self):
        super().__init__()
        self.cell = nn.LSTM(3, 4)


class Looked(nn.Linear):
    """A constructor that reads its own values."""

    def __init__(self):
        super().__init__(3, 3)
        self.largest = self.weight.abs().max().item()


@pytest.mark.parametrize("build", [Drawn, DrawnAside, Shuffled, Derived, Mask, Looked, Recurrent])
def test_a_model_whose_other_values_depend_on_the_initial_ones_is_built_in_the_ordinary_way(build):
    assert_same(hollow.built(build, lambda module: module, loads=False), ordinary(build))


def part():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module.load_state_dict({"0.weight": torch.ones(2, 2), "0.bias": torch.ones(2)}, strict=False)
    return module


def changed():
    module = nn.Linear(2, 2)
    module.load_state_dict({"weight": torch.ones(2, 2), "bias": torch.ones(2)})
    with torch.no_grad():
        module.weight.mul_(3)
        module.bias[0] = 7
    return module


@pytest.mark.parametrize("build", [part, changed])
def test_what_a_builder_loads_in_part_or_changes_is_built_in_the_ordinary_way(build):
    assert_same(hollow.built(build, lambda module: module, loads=True), ordinary(build))


def test_a_builder_that_fails_says_why_itself():
    with pytest.raises(RuntimeError, match="size mismatch"):
        hollow.built(lambda: nn.Linear(2, 2).load_state_dict({"weight": torch.ones(3)}), lambda m: m, loads=True)


def test_no_random_state_is_drawn_from():
    before = torch.get_rng_state()
    for build in (FAMILIES["vit"], Drawn):
        hollow.built(build, lambda module: module, loads=False)
    assert torch.equal(torch.get_rng_state(), before)
