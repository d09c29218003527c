"""A value is what the layer returned, before anyone changed it, in memory of its own."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import layertap
from layertap import TapError
from tests.models import DEVICES, Returning, chain, noise, out_of_place, seeded


def plain_values(model, x, layers):
    """What layers return in a model that changes nothing in place, by torch's own hooks."""
    kept = {}
    handles = [
        model.get_submodule(layer).register_forward_hook(lambda m, a, output, layer=layer: kept.update({layer: output}))
        for layer in layers
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return kept


def assert_true_alone_and_together(model, x, layers):
    """Each layer tapped alone and all of them together, against the twin without in-place operations."""
    expected = plain_values(out_of_place(model), x, layers)
    with torch.no_grad():
        for taps in (*([layer] for layer in layers), layers):
            with layertap.tap(model, taps) as tapped:
                model(x)
                read, first, later = dict(tapped), tapped.run(x), tapped.run(x)
            for values in (read, first, later):
                assert list(values) == taps
                assert all(torch.equal(values[layer], expected[layer]) for layer in taps)


@pytest.mark.parametrize("device", DEVICES)
def test_layer_before_an_in_place_relu_keeps_its_negative_values(device):
    model, x = chain().to(device), noise(2, 3, 8, 7).to(device)
    assert_true_alone_and_together(model, x, ["0", "1", "2", "3"])
    with layertap.tap(model, "0") as taps:
        model(x)
    assert (taps["0"] < 0).any()


@pytest.mark.parametrize("device", DEVICES)
def test_alexnet_features_are_those_of_its_out_of_place_twin(device):
    from torchvision.models import alexnet

    model = seeded(lambda: alexnet(num_classes=3)).to(device)
    x = noise(2, 3, 63, 70).to(device)
    assert_true_alone_and_together(model, x, ["features.0", "features.3", "classifier.4", "classifier.5"])
    with torch.no_grad(), layertap.tap(model, ["features.0"]) as taps:
        assert (taps.run(x)["features.0"] < 0).any()


@pytest.mark.parametrize("device", DEVICES)
def test_resnet_norm_is_not_the_sum_nor_the_relu_that_overwrite_it(device):
    from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

    for block, norm, before in ((BasicBlock, "bn2", "conv2"), (Bottleneck, "bn3", "conv3")):
        model = seeded(lambda block=block: ResNet(block, [1, 1, 1, 1], num_classes=3)).to(device)
        x = noise(2, 3, 33, 40).to(device)
        with torch.no_grad(), layertap.tap(model, [f"layer1.0.{before}", f"layer1.0.{norm}", "layer1.0"]) as taps:
            model(x)
            # Nothing overwrites the convolution, so that the norm of it is known without hooks.
            expected = model.layer1[0].get_submodule(norm)(taps[f"layer1.0.{before}"])
        assert torch.equal(taps[f"layer1.0.{norm}"], expected)
        assert not torch.equal(taps["layer1.0"], expected)


@pytest.mark.parametrize("device", DEVICES)
def test_densenet_last_norm_is_not_the_functional_relu_after_it(device):
    from torchvision.models import DenseNet

    model = seeded(lambda: DenseNet(growth_rate=4, block_config=(1, 2), num_init_features=8, num_classes=3)).to(device)
    x = noise(2, 3, 32, 40).to(device)
    with torch.no_grad(), layertap.tap(model, ["features.denseblock2", "features.norm5"]) as taps:
        model(x)
        expected = model.features.norm5(taps["features.denseblock2"])
        assert torch.equal(taps["features.norm5"], expected)
        assert (taps["features.norm5"] < 0).any()


def test_value_stays_when_the_model_changes_it_after_the_forward():
    held = torch.ones(3)
    model = Returning(lambda x: held)
    with layertap.tap(model, ".") as taps:
        model(noise(3))
    held.zero_()
    assert torch.equal(taps["."], torch.ones(3))


def test_value_stays_when_the_next_forward_writes_into_the_same_buffer():
    class Reusing(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("out", torch.zeros(2, 3))

        def forward(self, x):
            return self.out.copy_(x)

    model = Reusing()
    with layertap.tap(model, ".") as taps:
        model(torch.ones(2, 3))
        first = taps["."]
        model(torch.zeros(2, 3))
    assert torch.equal(first, torch.ones(2, 3))


def test_changing_a_value_does_not_change_the_model():
    model, x = chain(), noise(2, 3, 8, 7)
    expected = model(x)
    seen = []
    with layertap.tap(model, "0:0") as taps:
        model[1].register_forward_pre_hook(lambda module, args: seen.append(taps["0:0"].detach().zero_()))
        assert torch.equal(model(x), expected)
    assert seen


def test_hook_of_the_user_that_replaces_the_output_comes_after_ours():
    model, x = chain(), noise(2, 3, 8, 7)
    expected = model[0](x)
    model[0].register_forward_hook(lambda module, args, output: output * 0 + 1)
    with layertap.tap(model, ["0", "2"]) as taps:
        model(x)
        assert torch.equal(taps["0"], expected)
        assert torch.equal(taps["2"], model[2](torch.ones_like(expected)))


def test_input_is_what_the_layer_was_called_with_before_it_changes_it():
    model, x = chain(), noise(2, 3, 8, 7)
    with layertap.tap(model, ["0", "<1", "1"]) as taps:
        model(x)
        assert torch.equal(taps["<1"], taps["0"])
        assert torch.equal(taps["1"], F.relu(taps["0"]))


def test_hook_of_the_user_that_replaces_the_input_comes_after_ours():
    model, x = chain(), noise(2, 3, 8, 7)
    model[0].register_forward_pre_hook(lambda module, args: (args[0] * 0,))
    with layertap.tap(model, ["<0", "0"]) as taps:
        model(x)
        assert torch.equal(taps["<0"], x)
        assert torch.equal(taps["0"], model[0](x))


def test_detach_changes_where_gradients_go_and_no_value():
    model, x = chain(), noise(2, 3, 8, 7)
    with layertap.tap(model, ["0", "2"]) as cut, layertap.tap(model, ["0", "2"], detach=False) as held:
        model(x)
        for name in cut:
            assert torch.equal(cut[name], held[name])
            assert not cut[name].requires_grad
            assert held[name].requires_grad


def test_gradients_flow_through_a_value_that_is_not_detached():
    model, x = chain(), noise(2, 3, 8, 7)
    with layertap.tap(model, {"out": {"layer": "2", "reduce": "mean_pool"}}, detach=False) as taps:
        model(x)
        taps["out"].sum().backward()
    got = [model[layer].weight.grad for layer in (0, 2)]
    twin = out_of_place(chain())
    twin[2](twin[1](twin[0](x))).mean((2, 3)).sum().backward()
    assert all(torch.equal(grad, twin[layer].weight.grad) for grad, layer in zip(got, (0, 2), strict=True))


def test_training_step_is_the_same_with_taps_as_without():
    def steps(model, taps):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        losses = []
        for number in range(4):
            optimizer.zero_grad()
            loss = model(noise(4, 3, 8, 7, seed=number)).square().mean()
            loss.backward()
            optimizer.step()
            losses.append((loss.item(), *(taps[name].sum().item() for name in taps or ())))
        return losses

    plain, tapped = chain().train(), chain().train()
    expected = steps(plain, None)
    with layertap.tap(tapped, ["0", "3"]) as taps:
        found = steps(tapped, taps)
    assert [loss for loss, *_ in found] == [loss for (loss,) in expected]
    assert len({values for _, *values in map(tuple, found) for values in values}) == 8
    assert all(map(torch.equal, plain.parameters(), tapped.parameters()))


def test_checkpointing_does_not_count_its_second_run():
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self, reentrant):
            super().__init__()
            self.inner = chain()
            self.reentrant = reentrant

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=self.reentrant)

    x = noise(2, 3, 8, 7).requires_grad_()
    for reentrant in (True, False):
        model = Checkpointed(reentrant)
        with layertap.tap(model, ["inner.0", "inner.2"]) as taps:
            model(x).sum().backward()
            assert torch.equal(taps["inner.0"], model.inner[0](x))
            assert list(taps.run(x)) == list(taps.run(x)) == ["inner.0", "inner.2"]
        with layertap.tap(model.inner, ["0", "."]) as taps:
            model(x).sum().backward()
            assert torch.equal(taps["0"], model.inner[0](x))
            assert torch.equal(taps["."], model(x))


def test_values_of_inference_mode_train_a_probe():
    model = chain()
    probe = nn.Linear(5, 2)
    for detach in (True, False):
        with (
            torch.inference_mode(),
            layertap.tap(model, ["0", {"layer": "2", "reduce": "mean_pool"}], detach=detach) as taps,
        ):
            model(noise(2, 3, 8, 7))
            values = dict(taps)
        assert not any(value.is_inference() for value in values.values())
        assert torch.equal(values["0"], model[0](noise(2, 3, 8, 7)))
        probe(values["2"]).sum().backward()
    assert probe.weight.grad is not None


@pytest.mark.parametrize("detach", [True, False])
def test_no_gradient_is_kept_where_the_model_runs_without(detach):
    model, x = chain(), noise(2, 3, 8, 7).requires_grad_()
    with torch.no_grad(), layertap.tap(model, ["<.", "0"], detach=detach) as taps:
        model(x)
        assert not any(value.requires_grad for value in taps.values())


def test_value_of_channels_last_is_equal_and_stays_channels_last():
    model, x = chain(), noise(2, 3, 8, 7)
    with layertap.tap(model, ["0", {"layer": "2", "reduce": "flatten", "name": "flat"}]) as taps:
        model(x)
        plain = dict(taps)
        model.to(memory_format=torch.channels_last)
        model(x.contiguous(memory_format=torch.channels_last))
        assert taps["0"].is_contiguous(memory_format=torch.channels_last)
        for name in taps:
            torch.testing.assert_close(taps[name], plain[name])


@pytest.mark.parametrize(
    "part",
    [
        lambda x: x[:, :1],
        lambda x: x[:, 0],
        lambda x: x[:1],
        lambda x: x[..., ::2],
        lambda x: x[:1].expand(5, -1, -1),
        lambda x: x.transpose(0, 1),
        lambda x: x[:0],
        lambda x: x.sum(),
        lambda x: x,
    ],
)
def test_value_owns_no_more_memory_than_it_needs(part):
    whole = noise(4, 50, 60)
    model = Returning(part)
    with layertap.tap(model, ".") as taps:
        model(whole)
        value = taps["."]
    assert torch.equal(value, part(whole))
    assert value.untyped_storage().nbytes() == value.numel() * value.element_size()
    assert value.numel() == 0 or value.untyped_storage().data_ptr() != whole.untyped_storage().data_ptr()


def test_memory_does_not_grow_with_forwards_and_goes_with_the_taps():
    model, x = chain(), noise(2, 3, 8, 7)
    gc.collect()
    gc.disable()
    try:
        with layertap.tap(model, ["0", "2:last"], detach=False) as taps:
            earlier = []
            for _ in range(3):
                model(x)
                earlier.append(weakref.ref(taps["0"]))
                taps.run(x)
                earlier.append(weakref.ref(taps["0"]))
            assert [ref() is not None for ref in earlier] == [False] * 5 + [True]
        gone = weakref.ref(taps)
        del taps
        assert gone() is None
        assert earlier[-1]() is None
    finally:
        gc.enable()


def test_model_s_modes_flags_and_buffers_stay_as_they_are():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.ReLU(inplace=True)).train()
    model[1].eval()
    model[0].bias.requires_grad_(False)
    twin, x = copy.deepcopy(model), noise(2, 3, 8, 7)
    with layertap.tap(model, ["0", "1", "2", "<2"]) as taps:
        torch.manual_seed(1)
        found = model(x)
        values = dict(taps)
    torch.manual_seed(1)
    assert torch.equal(found, twin(x))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))
    assert [layer.training for layer in model.modules()] == [layer.training for layer in twin.modules()]
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in twin.parameters()]
    assert (values["2"] == 0).any()


def test_value_under_autocast_has_the_dtype_that_the_layer_computed_in():
    model, x = chain(), noise(2, 3, 8, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16), layertap.tap(model, ["<0", "0"]) as taps:
        model(x)
        assert taps["<0"].dtype == torch.float32
        assert taps["0"].dtype == torch.bfloat16
        assert torch.equal(taps["0"], model[0](x))


def test_sparse_value_is_copied():
    sparse = torch.eye(3).to_sparse()
    model = Returning(lambda x: sparse)
    with layertap.tap(model, ".") as taps:
        model(noise(3))
    assert torch.equal(taps["."].to_dense(), torch.eye(3))


def test_nested_value_is_refused():
    model = Returning(lambda x: torch.nested.nested_tensor([x[0], x[1, :2]], layout=torch.jagged))
    with layertap.tap(model, ".") as taps:
        model(noise(2, 3))
        with pytest.raises(TapError, match="nested tensor, whose rows differ in shape"):
            taps["."]
