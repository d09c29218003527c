"""run() gives every tap's value of one forward, stops after the last tap, and holds each forward to the first."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import layertap
from layertap import TapError
from tests.models import Entries, Recorder, Recursive, Repeated, Sometimes, Varying, chain, noise, seeded


def fault_of(read, *args, **kwargs):
    with pytest.raises(TapError) as caught:
        read(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return caught.value.message


def test_values_are_those_of_a_plain_forward_in_the_order_asked_for():
    model = chain()
    with layertap.tap(model, {"late": "2", "early": "0", "whole": "<."}) as taps:
        for number in range(3):
            x = noise(2 + number, 3, 8, 7, seed=number)
            values = taps.run(x)
            assert list(values) == ["late", "early", "whole"]
            assert torch.equal(values["whole"], x)
            assert torch.equal(values["early"], model[0](x))
            assert torch.equal(values["late"], model[2](model[1](model[0](x))))
            assert all(torch.equal(taps[name], values[name]) for name in taps)


def test_arguments_are_passed_on():
    class Scaled(nn.Module):
        def forward(self, x, *, by):
            return x * by

    with layertap.tap(Scaled(), ".") as taps:
        assert torch.equal(taps.run(torch.ones(2), by=3)["."], torch.full((2,), 3.0))


def test_run_needs_an_open_block():
    taps = layertap.tap(chain(), "0")
    assert "the taps are closed" in fault_of(taps.run, noise(2, 3, 8, 7))
    with taps:
        pass
    assert "the taps are closed" in fault_of(taps.run, noise(2, 3, 8, 7))


# Stopping early


@pytest.fixture
def long():
    """A model whose later layers remember that they ran."""
    return seeded(lambda: nn.Sequential(nn.Linear(3, 3), nn.Tanh(), Recorder(), nn.Linear(3, 2), Recorder()))


def test_layers_after_the_last_tap_run_in_the_first_forward_only(long):
    with layertap.tap(long, ["1", "0"]) as taps:
        for _ in range(3):
            values = taps.run(noise(2, 3))
            assert torch.equal(values["1"], long[1](long[0](noise(2, 3))))
            assert long[2].calls == long[4].calls == 1


def test_stop_waits_for_the_tap_that_comes_last(long):
    with layertap.tap(long, ["3", "0"]) as taps:
        for forwards in range(1, 4):
            taps.run(noise(2, 3))
            assert (long[2].calls, long[4].calls) == (forwards, 1)


def test_input_tap_stops_before_its_layer_runs(long):
    with layertap.tap(long, "<2") as taps:
        for _ in range(3):
            assert torch.equal(taps.run(noise(2, 3))["<2"], long[1](long[0](noise(2, 3))))
            assert long[2].calls == 1


@pytest.mark.parametrize(("call", "ran"), [("0", [0, 0]), ("1", [1, 0]), ("last", [1, 1]), ("all", [1, 1])])
def test_stop_waits_for_the_call_that_is_asked_for(call, ran):
    model = seeded(Repeated)
    with layertap.tap(model, f"relu:{call}") as taps:
        first = taps.run(noise(2, 3, 9, 7))
        seen = []
        model.narrow.register_forward_hook(lambda *_: seen.append("narrow"))
        model.wide.register_forward_hook(lambda *_: seen.append("wide"))
        later = taps.run(noise(2, 3, 9, 7))
    assert [seen.count("narrow"), seen.count("wide")] == ran
    assert list(first) == list(later)
    assert all(torch.equal(first[name], later[name]) for name in first)


def test_early_stop_can_be_left_out(long):
    with layertap.TappedModel(long, "0", early_stop=False) as taps:
        for forwards in range(1, 4):
            taps.run(noise(2, 3))
            assert long[4].calls == forwards


def test_plain_forward_in_the_block_is_never_stopped(long):
    with layertap.tap(long, "0") as taps:
        taps.run(noise(2, 3))
        taps.run(noise(2, 3))
        assert long(noise(2, 3)).shape == (2, 2)
        assert long[4].calls == 2


class Catching(nn.Module):
    """Catches every error of its first layer and tries the second."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.after = nn.Linear(3, 3), nn.Linear(3, 3), Recorder()

    def forward(self, x):
        try:
            y = self.first(x)
        except Exception:
            y = self.second(x)
        return self.after(y)


def test_model_that_catches_every_exception_does_not_swallow_the_stop():
    model = seeded(Catching)
    with layertap.tap(model, "first") as taps:
        for _ in range(3):
            assert torch.equal(taps.run(noise(2, 3))["first"], model.first(noise(2, 3)))
            assert model.after.calls == 1


def test_model_that_catches_even_the_stop_goes_on_with_true_values():
    class CatchingAll(Catching):
        def forward(self, x):
            try:
                y = self.first(x)
            except BaseException:
                y = self.second(x)
            return self.after(y)

    model = seeded(CatchingAll)
    with layertap.tap(model, "first") as taps:
        for forwards in range(1, 4):
            assert torch.equal(taps.run(noise(2, 3))["first"], model.first(noise(2, 3)))
            assert model.after.calls == forwards
    with layertap.tap(model, "*") as taps:
        taps.run(noise(2, 3))
        assert taps.silent == ["second"]


@pytest.mark.parametrize("stage", ["except", "finally", "exit"])
def test_stop_that_the_model_turns_into_an_error_does_not_escape(stage):
    class Strict:
        def __enter__(self):
            return self

        def __exit__(self, kind, *rest):
            assert kind is None, "the block was left early"

    class Turning(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.after = nn.Linear(3, 3), Recorder()

        def forward(self, x):
            if stage == "exit":
                with Strict():
                    x = self.layer(x)
            elif stage == "except":
                try:
                    x = self.layer(x)
                except BaseException as error:
                    raise RuntimeError("the layer failed") from error
            else:
                try:
                    y = self.layer(x)
                finally:
                    x = y + 1
            return self.after(x)

    model = seeded(Turning)
    with layertap.tap(model, "layer") as taps:
        for _ in range(3):
            assert torch.equal(taps.run(noise(2, 3))["layer"], model.layer(noise(2, 3)))
            assert model.after.calls == 1
        with pytest.raises((RuntimeError, AssertionError, UnboundLocalError)):
            taps.run(noise(2, 99))


def test_stop_passes_contexts_and_checkpoints():
    from torch.utils.checkpoint import checkpoint

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.after = nn.Linear(3, 3), Recorder()

        def forward(self, x):
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
                y = checkpoint(self.inner, x.requires_grad_(), use_reentrant=True)
            return self.after(y)

    model = seeded(Wrapped)
    with layertap.tap(model, "inner") as taps:
        for _ in range(2):
            assert taps.run(noise(2, 3))["inner"].dtype == torch.bfloat16
            assert torch.is_grad_enabled()
            assert not torch.is_autocast_enabled("cpu")
    assert model.after.calls == 1


def test_stop_of_one_block_is_not_taken_by_another(long):
    x = noise(2, 3)
    with layertap.tap(long, "0") as outer, layertap.tap(long, "3") as inner:
        # From the second one on, the stop of the outer forward goes through the inner run().
        for whole in (True, False, False):
            assert torch.equal(outer.run(x, call=inner.run)["0"], long[0](x))
            assert long[4].calls == 1
            if not whole:
                assert "did not run in the latest forward" in fault_of(inner.__getitem__, "3")


def test_block_around_a_stopped_forward_does_not_take_it_for_a_whole_one():
    model = seeded(Repeated)
    with layertap.tap(model, ["relu:0", "relu:last"]) as outer:
        with layertap.tap(model, "narrow") as inner:
            inner.run(noise(2, 3, 9, 7))
            inner.run(noise(2, 3, 9, 7))
            assert inner["narrow"].shape == (2, 4, 7, 5)
        assert torch.equal(outer["relu:0"], noise(2, 3, 9, 7).relu())
        assert "did not finish" in fault_of(outer.__getitem__, "relu:last")
        model(noise(2, 3, 9, 7))
        assert outer["relu:last"].shape == (2, 6, 5, 5)


def test_error_of_the_model_passes_and_the_next_run_is_whole():
    model = chain()
    with layertap.tap(model, "0") as taps:
        with pytest.raises(RuntimeError):
            taps.run(noise(2, 99, 8, 7))
        for _ in range(2):
            assert taps.run(noise(2, 3, 8, 7))["0"].shape == (2, 4, 6, 5)


# Held to the first forward


def test_layer_that_does_not_run_at_first_is_refused():
    with layertap.tap(seeded(Sometimes), ["always", "extra"]) as taps:
        message = fault_of(taps.run, -torch.ones(2, 3))
        assert message == "layer 'extra' did not run in the latest forward; taps that did: always"
        assert list(taps.run(torch.ones(2, 3))) == ["always", "extra"]


def test_layer_that_stops_running_is_refused_and_never_stale():
    with layertap.tap(seeded(Sometimes), "extra") as taps:
        assert taps.run(torch.ones(2, 3))["extra"].shape == (2, 3)
        message = fault_of(taps.run, -torch.ones(2, 3))
        assert message.startswith("layer 'extra' ran 0 times in this forward and 1 times in the first one")
        assert "did not run in the latest forward" in fault_of(taps.__getitem__, "extra")
        assert torch.equal(taps.run(torch.ones(2, 3))["extra"], taps["extra"])


@pytest.mark.parametrize("tap", ["layer:0", "layer:1", "layer:last", "layer:all"])
@pytest.mark.parametrize("times", [0, 1, 3])
def test_layer_that_runs_another_number_of_times_is_refused(tap, times):
    model = seeded(lambda: Varying(2))
    with layertap.tap(model, [tap, "last"]) as taps:
        taps.run(noise(2, 3))
        model.times = times
        message = fault_of(taps.run, noise(2, 3))
        assert message.startswith(f"layer 'layer' ran {times} times in this forward and 2 times in the first one")


def test_last_call_of_a_plain_forward_is_its_own_whatever_run_has_counted():
    model, x = seeded(lambda: Varying(2)), noise(2, 3)
    with layertap.tap(model, "layer:last") as taps:
        taps.run(x)
        for model.times in (1, 3):
            model(x)
            expected = x
            for _ in range(model.times):
                expected = model.layer(expected)
            assert torch.equal(taps["layer:last"], expected)


def test_calls_after_the_stop_are_not_seen():
    model = seeded(lambda: Varying(2))
    with layertap.tap(model, "layer:0") as taps:
        taps.run(noise(2, 3))
        model.times = 5
        assert torch.equal(taps.run(noise(2, 3))["layer:0"], model.layer(noise(2, 3)))


def test_silent_layers_of_a_pattern_are_listed_and_refused_when_they_speak_up():
    model = seeded(Sometimes)
    with layertap.tap(model, ["*", "<*"]) as taps:
        assert list(taps.run(-torch.ones(2, 3))) == ["always", "<always"]
        assert taps.silent == ["extra", "<extra"]
        assert list(taps) == ["always", "<always"]
        # The stop comes after `always`: what runs later is not seen.
        assert list(taps.run(torch.ones(2, 3))) == ["always", "<always"]
    with layertap.TappedModel(model, "*", early_stop=False) as taps:
        taps.run(-torch.ones(2, 3))
        assert fault_of(taps.run, torch.ones(2, 3)).startswith("layer 'extra' ran 1 times in this forward and 0 times")


def test_pattern_none_of_whose_layers_runs_is_refused():
    model = seeded(Sometimes)
    with layertap.tap(model, ["always", "ext*", "<re:extra"]) as taps:
        assert fault_of(taps.run, -torch.ones(2, 3)).startswith("no layer of 'ext*' ran (extra); taps that did: always")


def test_pattern_with_several_unclear_layers_names_them_all():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.third = nn.Tanh(), nn.Tanh(), nn.Tanh()

        def forward(self, x):
            return self.third(self.second(self.second(self.first(self.first(x)))))

    with layertap.tap(Twice(), "*") as taps:
        message = fault_of(taps.run, noise(2, 3))
    assert message.startswith("layer 'first' runs 2 times in one forward; choose first:0, first:1, first:last or ")
    assert message.endswith("(these cannot be read either: second)")


# Other entries


def test_another_entry_is_counted_by_itself():
    model, x = seeded(Entries), noise(2, 3)
    with layertap.tap(model, "image") as taps:
        for entry in (model.encode_image, None, model.encode_image):
            for _ in range(2):
                assert torch.equal(taps.run(x, call=entry)["image"], model.image(x))
        assert "did not run in the latest forward" in fault_of(taps.run, x, call=model.encode_text)
        assert torch.equal(taps.run(x, call=model.encode_image)["image"], model.image(x))


def test_entry_may_call_the_model_more_than_once():
    model, x = chain(), noise(2, 3, 8, 7)

    def mirrored(x):
        return model(x) + model(x.flip(-1))

    with layertap.tap(model, ["0:1", "<.:0"]) as taps:
        for _ in range(2):
            values = taps.run(x, call=mirrored)
            assert torch.equal(values["0:1"], model[0](x.flip(-1)))
            assert torch.equal(values["<.:0"], x)
    with layertap.tap(model, "0") as taps:
        assert "runs 2 times in one forward" in fault_of(taps.run, x, call=mirrored)


def test_entry_that_does_not_reach_the_tap_is_refused_with_the_cure():
    model = seeded(Entries)
    with layertap.tap(model, "image") as taps:
        assert fault_of(taps.run, noise(2, 3), call=model.encode_text).endswith(
            "does the model call it, for this input?"
        )


def test_model_that_calls_itself_is_stopped_once():
    model, x = seeded(Recursive), noise(4, 3)
    with layertap.tap(model, "layer:1") as taps:
        for _ in range(3):
            assert torch.equal(taps.run(x)["layer:1"], model.layer(x[1:2]))


# Layers that exist and never run


def test_projection_inside_attention_is_refused_with_the_reason():
    model = seeded(lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    reason = "nn.MultiheadAttention uses its weights without calling it; tap 'self_attn' instead"
    with torch.no_grad(), layertap.tap(model, "self_attn.out_proj") as taps:
        model(noise(2, 5, 8))
        assert reason in fault_of(taps.__getitem__, "self_attn.out_proj")
        assert reason in fault_of(taps.run, noise(2, 5, 8))
    with torch.no_grad(), layertap.tap(model, "**.out_proj") as taps:
        assert reason in fault_of(taps.run, noise(2, 5, 8))
    with torch.no_grad(), layertap.tap(nn.MultiheadAttention(8, 2), "out_proj") as taps:
        assert "tap '.' instead" in fault_of(taps.run, *[noise(5, 2, 8)] * 3)


def test_layers_inside_a_transformer_run_where_they_are_tapped():
    model = seeded(lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    x = noise(2, 5, 8)
    with torch.no_grad():
        expected = model(x)
        with layertap.tap(model, ["self_attn", "linear1", "."]) as taps:
            values = taps.run(x)
    assert values["self_attn"].shape == (2, 5, 8)
    assert values["linear1"].shape == (2, 5, 16)
    torch.testing.assert_close(values["."], expected)


@pytest.mark.parametrize("kind", [nn.ModuleList, lambda layers: nn.ModuleDict({"first": layers[0]})])
def test_list_of_layers_is_refused_with_what_to_tap(kind):
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = kind([nn.Linear(3, 3)])

        def forward(self, x):
            return next(iter(self.blocks.children()))(x)

    with layertap.tap(Holder(), "blocks") as taps:
        assert "only holds layers and is never called; tap those in it: blocks.*" in fault_of(taps.run, noise(2, 3))
    with layertap.tap(Holder(), "**") as taps:
        assert len(taps.run(noise(2, 3))) == 1
        assert taps.silent == ["blocks"]


def test_lazy_layers_are_heard_from_their_first_forward_on():
    model, x = nn.Sequential(nn.LazyLinear(4), nn.ReLU(inplace=True)), noise(2, 3)
    with layertap.tap(model, ["0", "1"]) as taps:
        for _ in range(2):
            values = taps.run(x)
            assert torch.equal(values["0"], model[0](x))
