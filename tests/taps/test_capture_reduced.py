"""What a tap makes of a value: reducers and dtypes, on the values of each call, and what it says about them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import layertap
from layertap import ConfigError, PluginError, TapError
from layertap.plugins import Plugins
from tests.models import Holding, Repeated, Returning, chain, noise, seeded

OWN = '''
import torch
import layertap
from torch import nn

class Doubled(layertap.Reducer):
    def __call__(self, activation):
        return activation * 2

class Buffered(layertap.Reducer):
    """Writes every result into the same memory."""
    def bind(self, tap):
        self.memory = torch.zeros(2)
    def __call__(self, activation):
        return self.memory.copy_(activation.flatten(1).sum(1))

class Projected(layertap.Reducer):
    """Has weights that require a gradient."""
    def bind(self, tap):
        self.weights = nn.Parameter(torch.full((tap.shape[-1], 2), 1 / 3))
    def __call__(self, activation):
        return activation @ self.weights

class First(layertap.Reducer):
    def __call__(self, activation):
        return activation[:, :1]

class Counting(layertap.Reducer):
    """Fails if it is not bound once, before its first value."""
    bound = None
    def bind(self, tap):
        assert self.bound is None
        self.bound = tap
    def __call__(self, activation):
        assert activation.shape[1:] == self.bound.shape
        return activation

class Broken(layertap.Reducer):
    def __call__(self, activation):
        raise ZeroDivisionError("no rows\\nat all")

class Lost(layertap.Reducer):
    def __call__(self, activation):
        return activation.tolist()

class Changing(layertap.Reducer):
    def __call__(self, activation):
        return activation.clamp_(min=0)

class Picky(First):
    def bind(self, tap):
        raise layertap.TapError(f"picky: not the layer {tap.layer!r}")

@layertap.hookimpl
def register_reducers(register):
    for cls in (Picky, Changing, Doubled, Buffered, Projected, First, Counting, Broken, Lost):
        register(cls.__name__.lower(), cls)
'''


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """The installed plugins and a few reducers of our own."""
    file = tmp_path_factory.mktemp("own") / "reducers.py"
    file.write_text(OWN)
    return Plugins.load([str(file)])


def reduced(own, model, x, *reduce, **long):
    tap = {"layer": "0", "reduce": list(reduce), "name": "value", **long}
    with layertap.TappedModel(model, [tap], plugins=own) as taps:
        first, later = taps.run(x)["value"], taps.run(x)["value"]
        assert torch.equal(first, later)
        return later


def test_installed_reducers_shrink_the_value():
    model, x = chain(), noise(2, 3, 8, 7)
    whole = model[0](x)
    with layertap.tap(
        model, {"flat": {"layer": "0", "reduce": "flatten"}, "mean": {"layer": "0", "reduce": ["mean_pool"]}}
    ) as taps:
        model(x)
        assert torch.equal(taps["flat"], whole.flatten(1))
        assert torch.equal(taps["mean"], whole.mean((2, 3)))


def test_reducers_apply_in_order(own):
    model, x = chain(), noise(2, 3, 8, 7)
    value = reduced(own, model, x, "mean_pool", "doubled", "first")
    assert torch.equal(value, model[0](x).mean((2, 3))[:, :1] * 2)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtype_is_what_the_value_is_cast_to_after_the_reducers(dtype):
    model, x = chain(), noise(2, 3, 8, 7)
    with layertap.tap(model, [{"layer": "0", "reduce": "mean_pool", "dtype": dtype}]) as taps:
        model(x)
        assert torch.equal(taps["0"], model[0](x).mean((2, 3)).to(getattr(torch, dtype)))
        assert taps.infos["0"].dtype == "float32"


def test_complex_value_keeps_both_its_parts_or_is_refused():
    model = Holding(Returning(torch.fft.fft))
    taps = {"whole": "layer", "half": {"layer": "layer", "dtype": "float32"}}
    with layertap.tap(model, taps) as taps:
        model(noise(2, 3))
        assert taps["whole"].is_complex()
        with pytest.raises(TapError, match="'half': its value is complex, and float32 would drop its imaginary part"):
            taps["half"]


def test_what_a_reducer_keeps_for_itself_is_not_handed_out(own):
    model = chain()
    with layertap.TappedModel(model, [{"layer": "0", "reduce": "buffered"}], plugins=own) as taps:
        first = taps.run(noise(2, 3, 8, 7))["0"]
        kept = first.clone()
        taps.run(noise(2, 3, 8, 7, seed=5))
    assert torch.equal(first, kept)


def test_what_a_reducer_cuts_off_is_let_go(own):
    value = reduced(own, chain(), noise(2, 3, 8, 7), "first")
    assert value.untyped_storage().nbytes() == value.numel() * value.element_size()


def test_weights_of_a_reducer_put_no_gradient_into_a_detached_value(own):
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            value = reduced(own, nn.Sequential(nn.Linear(3, 3)), noise(2, 3), "projected")
        assert not value.requires_grad
        assert not value.is_inference()


def test_weights_of_a_reducer_can_be_trained_through_a_value_that_is_not_detached(own):
    model = nn.Sequential(nn.Linear(3, 3))
    with layertap.TappedModel(model, [{"layer": "0", "reduce": "projected"}], plugins=own, detach=False) as taps:
        model(noise(2, 3))
        taps["0"].sum().backward()
    assert model[0].weight.grad is not None


def test_reducers_compute_in_the_dtype_they_are_given_even_under_autocast(own):
    model, x = nn.Sequential(nn.Identity()), noise(2, 3)
    plain = reduced(own, model, x, "projected")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(reduced(own, model, x, "projected"), plain)


def test_each_call_has_a_reducer_of_its_own_bound_once(own):
    model, x = seeded(Repeated), noise(2, 3, 9, 7)
    for call in ("all", "last", 1):
        with layertap.TappedModel(model, [{"layer": "relu", "call": call, "reduce": "counting"}], plugins=own) as taps:
            for _ in range(3):
                model(x)
                assert all(torch.equal(a, b) for a, b in zip(taps.values(), taps.run(x).values(), strict=True))


def test_reducer_sees_what_the_tap_listens_to():
    about = {"layout": "NHWC", "num_prefix_tokens": 1}
    model = Holding(Returning(lambda x: {"map": x, "row": x[0, 0, 0, 0]}))
    with layertap.TappedModel(model, ["layer[map]", "layer[row]", "<layer:0"], about=about) as tapped:
        tapped.run(noise(2, 4, 5, 3))
        info = tapped.infos["layer[map]"]
        assert (info.name, info.layer, info.side, info.call) == ("layer[map]", "layer", "output", None)
        assert (info.select, info.shape, info.dtype, info.axes) == (("map",), (4, 5, 3), "float32", "NHWC")
        assert info.about == about
        assert (tapped.infos["<layer:0"].side, tapped.infos["<layer:0"].call) == ("input", 0)
        assert tapped.infos["layer[row]"].shape == ()
        assert tapped.shapes == {"layer[map]": (2, 4, 5, 3), "layer[row]": (), "<layer:0": (2, 4, 5, 3)}


def test_reducer_that_raises_is_named_when_the_value_is_read_and_does_not_stop_the_model(own):
    model, x = chain(), noise(2, 3, 8, 7)
    with layertap.TappedModel(model, [{"layer": "0", "reduce": "broken"}, "2"], plugins=own) as taps:
        model(x)
        assert torch.equal(taps["2"], model[2](model[1](model[0](x))))
        with pytest.raises(
            PluginError, match=r"the reducer Broken raised ZeroDivisionError: no rows \(at .*reducers\.py:\d+\)"
        ):
            taps["0"]


def test_reducer_that_returns_no_tensor_is_named(own):
    with pytest.raises(PluginError, match="the reducer Lost raised TypeError: it returned list, not a tensor"):
        reduced(own, chain(), noise(2, 3, 8, 7), "lost")


def test_reducer_that_changes_the_activation_in_place_is_named(own):
    message = "the reducer Changing raised ValueError: it changed the activation in place, which the model still uses"
    with pytest.raises(PluginError, match=message):
        reduced(own, chain(), noise(2, 3, 8, 7), "changing")


def test_reducer_that_cannot_serve_the_layer_says_so_every_time(own):
    model = chain()
    with layertap.TappedModel(model, [{"layer": "0", "reduce": "picky"}], plugins=own) as taps:
        for _ in range(2):
            model(noise(2, 3, 8, 7))
            with pytest.raises(TapError, match=r"^taps\[0\]\.reduce\[0\]: picky: not the layer '0'$"):
                taps["0"]


def test_unknown_reducer_is_refused_before_any_forward():
    with pytest.raises(ConfigError, match="no reducer has the type 'meanpool'; did you mean 'mean_pool'"):
        layertap.tap(chain(), [{"layer": "0", "reduce": "meanpool"}])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"type": "mean_pool", "no such": 1}, "taps[0].reduce[0].no such: unknown key"),
        ({"type": "mean_pool", "params": 1}, "taps[0].reduce[0].params: unknown key"),
    ],
)
def test_wrong_parameter_of_a_reducer_is_refused_before_any_forward(spec, message):
    with pytest.raises(ConfigError) as caught:
        layertap.tap(chain(), [{"layer": "0", "reduce": spec}])
    assert str(caught.value) == message
