"""layers() shows what one forward did in every layer, and leaves the model as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import layertap
from layertap import TapError
from tests.models import Holding, Pair, Repeated, Returning, Sometimes, chain, noise, seeded


def by_name(model, *args, **kwargs):
    found = layertap.layers(model, *args, **kwargs)
    names = [layer.name for layer in found]
    assert len(set(names)) == len(names)
    return {layer.name: layer for layer in found}


def test_every_layer_is_shown_the_model_itself_first():
    model = nn.Sequential(chain(), nn.Flatten(), nn.Linear(5 * 6 * 5, 2))
    found = by_name(model, noise(2, 3, 8, 7))
    assert list(found) == [".", "0", "0.0", "0.1", "0.2", "0.3", "1", "2"]
    assert [layer.type for layer in found.values()][:4] == ["Sequential", "Sequential", "Conv2d", "ReLU"]
    assert found["0.0"].shapes == {"": (2, 4, 6, 5)}
    assert found["0.0"].dtypes == {"": "float32"}
    assert found["0.0"].parameters == 3 * 4 * 9 + 4
    assert found["."].parameters == sum(parameter.numel() for parameter in model.parameters())
    assert {layer.calls for layer in found.values()} == {1}


def test_names_are_those_that_taps_take():
    model = seeded(Repeated)
    found = layertap.layers(model, noise(2, 3, 9, 7))
    with layertap.tap(model, [f"{layer.name}:0" for layer in found]) as taps:
        values = taps.run(noise(2, 3, 9, 7))
    assert [tuple(value.shape) for value in values.values()] == [layer.shapes[""] for layer in found]


def test_calls_are_counted_and_shapes_are_those_of_the_first():
    found = by_name(seeded(Repeated), noise(2, 3, 9, 7))
    assert found["relu"].calls == 3
    assert found["relu"].shapes == {"": (2, 3, 9, 7)}


def test_layer_that_does_not_run_has_no_calls_and_no_shapes():
    found = by_name(seeded(Sometimes), -torch.ones(2, 3))
    assert (found["extra"].calls, found["extra"].shapes) == (0, {})
    assert by_name(seeded(Sometimes), torch.ones(2, 3))["extra"].calls == 1
    attention = by_name(seeded(lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)), noise(2, 5, 8))
    assert (attention["self_attn"].calls, attention["self_attn.out_proj"].calls) == (1, 0)


def test_shapes_of_a_structure_stand_under_their_selectors():
    found = by_name(Holding(Returning(lambda x: {"a": Pair(x, x.long()), "b": [x[0]]})), noise(2, 3))
    assert found["layer"].shapes == {"[a][0]": (2, 3), "[a][1]": (2, 3), "[b][0]": (3,)}
    assert found["layer"].dtypes == {"[a][0]": "float32", "[a][1]": "int64", "[b][0]": "float32"}
    assert by_name(Holding(Returning(lambda x: (x, None))), noise(2, 3))["layer"].shapes == {"": (2, 3)}
    assert by_name(Holding(Returning(lambda x: None)), noise(2, 3))["layer"].shapes == {}


def test_shared_layer_is_shown_once_with_its_other_paths():
    linear = nn.Linear(3, 3)
    found = by_name(nn.Sequential(linear, nn.Sequential(linear), linear), noise(2, 3))
    assert list(found) == [".", "0", "1"]
    assert (found["0"].calls, found["0"].aliases) == (3, ("1.0", "2"))
    assert found["."].aliases == ()


def test_keyword_arguments_are_passed_on():
    class Scaled(nn.Module):
        def forward(self, x, by=1):
            return x.repeat(1, by)

    assert by_name(Scaled(), x=noise(2, 3), by=2)["."].shapes == {"": (2, 6)}


def test_model_is_run_in_eval_mode_without_gradients_and_left_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Dropout(), nn.Dropout())).train()
    model[2][0].eval()
    heard = []
    model[1].register_forward_hook(lambda m, args, output: heard.append((m.training, output.requires_grad)))
    before = copy.deepcopy(model.state_dict()), [layer.training for layer in model.modules()]
    hooks = [dict(layer._forward_hooks) for layer in model.modules()]
    layertap.layers(model, noise(2, 3, 8, 7))
    assert heard == [(False, False)]
    assert [layer.training for layer in model.modules()] == before[1]
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before[0].values(), strict=True))
    assert [dict(layer._forward_hooks) for layer in model.modules()] == hooks
    assert torch.is_grad_enabled()


def test_model_that_raises_is_left_as_it_was():
    model = chain().train()
    model[1].eval()
    with pytest.raises(RuntimeError):
        layertap.layers(model, noise(2, 99, 8, 7))
    assert [layer.training for layer in model] == [True, False, True, True]
    assert not any(layer._forward_hooks for layer in model.modules())


def test_layer_that_takes_no_hook_leaves_none_on_the_others():
    class Refusing(nn.ReLU):
        def register_forward_hook(self, *args, **kwargs):
            raise RuntimeError("no hooks here")

    model = nn.Sequential(chain(), Refusing()).train()
    with pytest.raises(RuntimeError, match="no hooks here"):
        layertap.layers(model, noise(2, 3, 8, 7))
    assert not any(layer._forward_hooks for layer in model.modules())
    assert model.training


def test_layers_needs_an_input():
    with pytest.raises(TapError, match="give it an input, such as layers"):
        layertap.layers(chain())


def test_what_is_no_module_is_refused():
    with pytest.raises(TapError, match=r"taps listen to an nn\.Module, not to str"):
        layertap.layers("alexnet", noise(2, 3))


def test_lazy_layers_are_shown_as_the_forward_made_them():
    found = by_name(nn.Sequential(nn.LazyLinear(4)), noise(2, 3))
    assert (found["0"].type, found["0"].parameters) == ("Linear", 16)


@pytest.mark.parametrize(
    "view",
    [
        lambda query, x: query.expand(len(x), -1),
        lambda query, x: query[:1],
        lambda query, x: query.view(1, 3),
        lambda query, x: query.t().t(),
        lambda query, x: query.chunk(1)[0],
        lambda query, x: query.unsqueeze(0),
    ],
)
def test_layer_that_receives_a_view_of_a_parameter_is_counted(view):
    class Queried(nn.Module):
        def __init__(self):
            super().__init__()
            self.query = nn.Parameter(torch.ones(1, 3))
            self.layer = nn.Sequential(nn.Linear(3, 3))

        def forward(self, x):
            return x * self.layer(view(self.query, x))

    found = by_name(seeded(Queried), noise(2, 3))
    assert (found["layer"].calls, found["layer.0"].calls) == (1, 1)
    assert found["layer.0"].compute == ((0, 1),)


def test_compute_is_what_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode
    from torchvision.models import resnet18, vit_b_16

    from layertap.taps.compute import Compute

    for build in (resnet18, lambda: vit_b_16(image_size=32), chain):
        model, x = build().eval(), noise(2, 3, 32, 32)
        with torch.no_grad(), FlopCounterMode(display=False) as torchs:
            model(x)
        with torch.no_grad(), Compute() as ours:
            model(x)
        assert ours.total == torchs.get_total_flops() > 0
