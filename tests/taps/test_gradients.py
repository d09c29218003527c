"""Gradients of taps: those of the layers' own values before in-place changes, of the latest backward, and freed."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import layertap
from tests.models import Repeated, chain, noise, out_of_place, seeded


def by_hand(model: nn.Sequential, x: Tensor, layers: list[int], loss) -> dict[str, Tensor]:
    """The gradients of a chain's values, computed in a twin that changes nothing in place."""
    values = {}
    for number, layer in enumerate(out_of_place(model)):
        x = layer(x)
        values[number] = x
    found = torch.autograd.grad(loss(x), [values[number] for number in layers])
    return {str(number): gradient for number, gradient in zip(layers, found, strict=True)}


def test_gradient_of_a_layer_that_is_overwritten_in_place():
    model, x = chain(), noise(2, 3, 8, 7)
    expected = by_hand(model, x, [0, 1, 2, 3], lambda y: (y**2).sum())
    with layertap.tap(model, ["0", "1", "2", "3"], grad=True) as taps:
        (model(x) ** 2).sum().backward()
        for name, gradient in expected.items():
            assert torch.equal(taps.gradient(name), gradient)
            assert not taps[name].requires_grad
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_model_trains_the_same_with_gradients_kept():
    def trained(grad: bool) -> list[Tensor]:
        model = chain()
        with layertap.tap(model, "**", grad=grad):
            model(noise(2, 3, 8, 7)).sum().backward()
        return [parameter.grad for parameter in model.parameters()]

    assert all(map(torch.equal, trained(True), trained(False)))


def test_gradient_is_of_the_latest_backward_of_the_latest_forward():
    model, x = chain(), noise(2, 3, 8, 7)
    with layertap.tap(model, "2", grad=True) as taps:
        y = model(x)
        y[:, 0].sum().backward(retain_graph=True)
        first = taps.gradient("2")
        (2 * y[:, 1]).sum().backward()
        assert torch.equal(first, by_hand(model, x, [2], lambda y: y[:, 0].sum())["2"])
        assert torch.equal(taps.gradient("2"), by_hand(model, x, [2], lambda y: 2 * y[:, 1].sum())["2"])
        old = model(x)
        model(x)
        old.sum().backward()
        with pytest.raises(layertap.TapError, match="no backward has reached tap '2' since the latest forward"):
            taps.gradient("2")


def test_gradients_of_inputs_calls_and_operations():
    class Summed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.inner(x)
            y += x
            return F.relu(y, inplace=True)

    model, x = seeded(Summed), noise(4, 3).requires_grad_()
    with layertap.tap(model, [".@add", "<.@relu", "<.", "inner"], grad=True) as taps:
        (model(x) ** 2).sum().backward()
        added = model.inner(x) + x
        expected = (2 * F.relu(added) * (added > 0)).detach()
        for name in (".@add", "<.@relu", "inner"):
            assert torch.equal(taps.gradient(name), expected), name
        assert torch.allclose(taps.gradient("<."), expected + expected @ model.inner.weight)
    repeated = seeded(Repeated)
    with layertap.tap(repeated, {"acts": "relu:all"}, grad=True) as taps:
        repeated(noise(2, 3, 8, 7).requires_grad_()).sum().backward()
        assert [tuple(taps.gradient(f"acts:{n}").shape[1:]) for n in range(3)] == [(3, 8, 7), (4, 6, 5), (6, 4, 5)]


def test_gradient_of_attention_weights_that_the_model_builds():
    class Attending(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x @ x.transpose(-2, -1)).softmax(-1) @ x

    x = noise(1, 2, 3, 4).requires_grad_()
    with layertap.tap(Attending(), ".@attention", grad=True) as taps:
        Attending.forward(taps.module, x)
        taps.module(x).sum().backward()
        assert torch.allclose(taps.gradient(".@attention"), x.sum(-1)[:, :, None].expand(1, 2, 3, 3), atol=1e-6)


def test_gradients_are_freed_with_the_block():
    model, x = chain(), noise(2, 3, 8, 7)
    with layertap.tap(model, "0", grad=True) as taps:
        y = model(x)
        y.sum().backward(retain_graph=True)
        kept = weakref.ref(taps.gradient("0"))
    gc.collect()
    assert kept() is None
    y.sum().backward()
    with pytest.raises(layertap.TapError, match="the block is closed"):
        taps.gradient("0")
    assert taps["0"].shape == (2, 4, 6, 5)


def test_gradients_that_do_not_exist_are_errors_of_one_line():
    model, x = chain(), noise(2, 3, 8, 7)
    with layertap.tap(model, "0", grad=True) as taps:
        with torch.no_grad():
            model(x)
        with pytest.raises(layertap.TapError, match="tap '0' has no gradient: its value does not require one"):
            taps.gradient("0")
        with pytest.raises(layertap.TapError, match="no tap is named 'x'"):
            taps.gradient("x")
    with layertap.tap(model, "0") as taps:
        model(x)
        with pytest.raises(layertap.TapError, match="grad=True"):
            taps.gradient("0")


def test_gradient_is_that_of_the_whole_value_before_reducers():
    model, x = chain(), noise(2, 3, 8, 7)
    with layertap.tap(model, [{"layer": "0", "reduce": "mean_pool"}], grad=True) as taps:
        model(x).sum().backward()
        assert taps["0"].shape == (2, 4)
        assert taps.gradient("0").shape == (2, 4, 6, 5)
