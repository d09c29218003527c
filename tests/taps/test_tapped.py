"""Taps find their layers, can be read in the block, and leave nothing behind."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle

import pytest
import torch
from torch import nn

import layertap
from layertap import TapError
from tests.models import Entries, Recursive, Sometimes, Varying, chain, noise, out_of_place, seeded


def hooks(module):
    """Every hook on every layer, in the order in which they run."""
    return [
        (path, kind, list(getattr(layer, kind).values()))
        for path, layer in module.named_modules()
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        if getattr(layer, kind)
    ]


def fault_of(read, *args):
    with pytest.raises(TapError) as caught:
        read(*args)
    assert "\n" not in str(caught.value)
    return caught.value.message


# Finding layers


@pytest.mark.parametrize(
    ("tap", "message"),
    [
        ("features.12", "the model has no layer 'features.12'; did you mean 'features.2' or 'features.1'"),
        ("features.0.weight", "the model has no layer 'features.0.weight'; did you mean 'features.0'"),
        ("features.3.inner", "the model has no layer 'features.3.inner'; did you mean 'features.3'"),
        (
            "features.conv_of_the_stem",
            "the model has no layer 'features.conv_of_the_stem'; features has features.0, feat",
        ),
        ("x.y", "the model has no layer 'x.y'; the model has features"),
        ("head.*", "no layer matches 'head.*'; the model has features"),
        (r"re:feature\..*", r"no layer matches 're:feature\\..*'; the model has features"),
    ],
)
def test_unknown_layer_is_refused_with_the_nearest_or_what_there_is(tap, message):
    model = nn.Module()
    model.features = chain()
    assert fault_of(layertap.tap, model, tap).startswith(message)


def test_pattern_of_many_layers_cannot_have_one_name():
    message = fault_of(layertap.tap, chain(), {"conv": "*"})
    assert message == "'*' matches 4 layers, which cannot all be named 'conv'"
    assert list(layertap.tap(chain(), {"conv": "re:0"})) == ["conv"]


@pytest.mark.parametrize("taps", [["0", "0"], ["0", "*"], ["*", "<*", "re:."], [{"layer": "1", "name": "0"}, "0"]])
def test_two_taps_of_one_name_are_refused(taps):
    assert fault_of(layertap.tap, chain(), taps) == "two taps are named '0': give one of them another `name`"


@pytest.mark.parametrize(
    "taps", [["0:all", "0:0"], ["0:0", "0:all"], [{"layer": "1", "call": "all", "name": "0"}, "0:0"]]
)
def test_name_of_one_of_all_calls_is_taken_too(taps):
    with layertap.tap(chain(), taps) as tapped, pytest.raises(TapError, match="two taps are named '0:0'"):
        tapped.run(noise(2, 3, 8, 7))


def test_several_taps_share_a_layer():
    model, x = chain(), noise(2, 3, 8, 7)
    taps = {"a": "0", "b": {"layer": "0", "dtype": "float64"}, "c": "<0", "d": {"layer": "0", "reduce": "flatten"}}
    with layertap.tap(model, taps) as tapped:
        model(x)
        assert len(model[0]._forward_hooks) == 1
        assert torch.equal(tapped["a"].double(), tapped["b"])
        assert torch.equal(tapped["a"].flatten(1), tapped["d"])
        assert torch.equal(tapped["c"], x)


class Shared(nn.Module):
    """One layer under two parents, and once more by itself."""

    def __init__(self):
        super().__init__()
        self.left = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
        self.right = nn.Sequential(self.left[0], nn.ReLU())
        self.alias = self.left[0]

    def forward(self, x):
        return self.right(self.left(x))


@pytest.mark.parametrize("path", ["left.0", "right.0", "alias"])
def test_every_path_of_a_shared_layer_is_valid_and_all_its_calls_count(path):
    model, x = seeded(Shared), noise(2, 3)
    with layertap.tap(model, [f"{path}:0", f"{path}:1"]) as taps:
        model(x)
        assert torch.equal(taps[f"{path}:0"], model.alias(x))
        assert torch.equal(taps[f"{path}:1"], model.alias(model.left(x)))
    with layertap.tap(model, path) as taps:
        model(x)
        assert f"choose {path}:0, {path}:1, {path}:last or {path}:all" in fault_of(taps.__getitem__, path)


def test_shared_layer_is_hooked_once_however_many_of_its_paths_are_tapped():
    model = seeded(Shared)
    with layertap.tap(model, ["left.0:0", "alias:1", "right.0:last"]) as taps:
        assert len(model.alias._forward_hooks) == 1
        model(noise(2, 3))
        assert torch.equal(taps["alias:1"], taps["right.0:last"])
        assert not torch.equal(taps["alias:1"], taps["left.0:0"])


@pytest.mark.parametrize(
    ("pattern", "path"),
    [("**.0", "left.0"), ("right.*", "right.0"), ("re:.*[s0]", "left.0"), ("re:alias", "alias"), ("al*", "alias")],
)
def test_pattern_finds_a_shared_layer_once_under_the_first_path_that_matches(pattern, path):
    found = list(layertap.tap(seeded(Shared), pattern))
    assert [name for name in found if name in ("left.0", "right.0", "alias")] == [path]


# Models that hooks cannot hear


def test_compiled_model_is_refused():
    message = "is compiled and would ignore new hooks: tap its `._orig_mod` instead"
    compiled = torch.compile(chain(), backend="eager")
    assert fault_of(layertap.tap, compiled, "0") == f"the model {message}"
    assert fault_of(layertap.tap, nn.Sequential(nn.ReLU(), compiled), "0") == f"layer '1' {message}"
    assert list(layertap.tap(compiled._orig_mod, "0")) == ["0"]
    in_place = nn.Sequential(chain())
    in_place[0].compile(backend="eager")
    assert fault_of(layertap.tap, in_place, "0").startswith("layer '0' was compiled in place")
    assert fault_of(layertap.layers, in_place, noise(2, 3, 8, 7)).startswith("layer '0' was compiled in place")


@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore:.*torch.jit:FutureWarning")
def test_script_module_is_refused():
    message = "is a ScriptModule, which does not run hooks: tap the eager model instead"
    scripted, traced = torch.jit.script(nn.ReLU()), torch.jit.trace(nn.ReLU(), noise(3))
    assert fault_of(layertap.tap, scripted, ".") == fault_of(layertap.tap, traced, ".") == f"the model {message}"
    assert fault_of(layertap.tap, nn.Sequential(nn.ReLU(), scripted), "0") == f"layer '1' {message}"


def test_data_parallel_is_refused():
    model = nn.DataParallel(chain())
    assert fault_of(layertap.tap, model, "module.0").startswith("the model is wrapped in DataParallel")
    assert list(layertap.tap(model.module, "0")) == ["0"]


@pytest.mark.parametrize("model", ["alexnet", None, torch.relu, nn.ReLU])
def test_what_is_no_module_is_refused(model):
    assert fault_of(layertap.tap, model, "0").startswith("taps listen to an nn.Module, not to ")


# Reading in the block


def test_block_gives_the_values_of_the_latest_forward_in_the_order_asked_for():
    model = chain()
    with layertap.tap(model, ["2", "0", "<."]) as taps:
        for number in range(3):
            x = noise(2 + number, 3, 8, 7, seed=number)
            model(x)
            assert list(taps) == list(taps.keys()) == ["2", "0", "<."]
            assert len(taps) == 3
            assert torch.equal(taps["<."], x)
            assert torch.equal(taps["0"], model[0](x))
            assert len(taps["2"]) == 2 + number
    assert torch.equal(taps["<."], x), "values stay readable after the block"


def test_names_are_known_and_values_refused_before_the_first_forward():
    with layertap.tap(chain(), {"conv": "0", "glob": "1*", "whole": "."}) as taps:
        assert list(taps) == ["conv", "glob", "whole"]
        assert "conv" in taps
        for name in taps:
            assert "the model itself has not been called since the block was entered" in fault_of(
                taps.__getitem__, name
            )
        with pytest.raises(TapError):
            dict(taps)


def test_unknown_name_is_refused_with_the_nearest():
    with layertap.tap(chain(), {"conv": "0", "relu": "1"}) as taps:
        taps.run(noise(2, 3, 8, 7))
        assert "conf" not in taps
        assert fault_of(taps.__getitem__, "conf") == "no tap is named 'conf'; did you mean 'conv'? (taps: conv, relu)"
        assert fault_of(taps.__getitem__, 0) == "no tap is named 0 (taps: conv, relu)"


def test_the_model_itself_is_a_layer():
    model, x = chain(), noise(2, 3, 8, 7)
    with layertap.tap(model, [".", "<.", {"layer": ".", "name": "whole"}]) as taps:
        expected = model(x)
        assert torch.equal(taps["."], expected)
        assert torch.equal(taps["whole"], expected)
        assert torch.equal(taps["<."], x)


def test_layer_that_did_not_run_in_the_latest_forward_is_refused():
    model = seeded(Sometimes)
    bright, dark = torch.ones(2, 3), -torch.ones(2, 3)
    with layertap.tap(model, ["always", "extra"]) as taps:
        model(bright)
        assert taps["extra"].shape == (2, 3)
        model(dark)
        assert (
            fault_of(taps.__getitem__, "extra")
            == "layer 'extra' did not run in the latest forward; taps that did: always"
        )
        assert torch.equal(taps["always"], model.always(dark))


def test_call_that_did_not_come_in_the_latest_forward_is_refused():
    model, x = seeded(lambda: Varying(2)), noise(2, 3)
    with layertap.tap(model, "layer:1") as taps:
        model(x)
        assert torch.equal(taps["layer:1"], model.layer(model.layer(x)))
        model.times = 1
        model(x)
        assert "runs 1 times: its calls are 0 to 0" in fault_of(taps.__getitem__, "layer:1")


def test_layer_that_a_pattern_brought_and_that_did_not_run_is_passed_over():
    model = seeded(Sometimes)
    with layertap.tap(model, "*") as taps:
        model(-torch.ones(2, 3))
        assert list(taps) == list(dict(taps)) == ["always"]
        assert "extra" not in taps
        assert "'extra' did not run in the latest forward" in fault_of(taps.__getitem__, "extra")
        model(torch.ones(2, 3))
        assert list(taps) == ["always", "extra"]


def test_call_of_another_method_is_no_forward():
    model, x = seeded(Entries), noise(2, 3)
    with layertap.tap(model, ["image", "text"]) as taps:
        model.encode_image(x)
        assert "use `taps.run(..., call=model.METHOD)`" in fault_of(taps.__getitem__, "image")
        assert "the model itself has not been called" in fault_of(taps.__getitem__, "text")
        model(x)
        assert torch.equal(taps["image"], model.image(x))
        model.encode_image(x + 1)
        assert "ran in another method than the model's forward" in fault_of(taps.__getitem__, "image")
        assert torch.equal(taps["text"], model.encode_text(x))


def test_layer_called_by_itself_is_not_heard():
    model, x = chain(), noise(2, 3, 8, 7)
    with layertap.tap(model, ["0", "2:last", "2:all"]) as taps:
        model(x)
        model[2](model[0](x + 1))
        assert torch.equal(taps["0"], model[0](x))
        assert list(taps) == ["0", "2:last", "2:0"]


def test_model_that_calls_itself_has_one_forward():
    model, x = seeded(Recursive), noise(4, 3)
    with layertap.tap(model, ["layer:all", "layer:last", "<.:0"]) as taps:
        for number in range(2):
            model(x + number)
            assert list(taps) == ["layer:0", "layer:1", "layer:2", "layer:3", "layer:last", "<.:0"]
            for call in range(4):
                assert torch.equal(taps[f"layer:{call}"], model.layer(x[call : call + 1] + number))
            assert torch.equal(taps["<.:0"], x + number)
        read = dict(taps)
        for found in (taps.run(x + 1), taps.run(x + 1)):
            assert list(found) == list(read)
            assert all(torch.equal(found[name], read[name]) for name in read)


def test_model_that_survives_a_failure_of_a_call_of_itself_has_one_forward():
    class Trying(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x, *, fails=False):
            if fails:
                raise ValueError
            y = self.layer(x)
            with contextlib.suppress(ValueError):
                self(x, fails=True)
            return y

    model, x = Trying(), noise(2, 3)
    with layertap.tap(model, ["layer", "."]) as taps:
        for number in range(2):
            expected = model(x + number)
            assert torch.equal(taps["layer"], expected)
            assert torch.equal(taps["."], expected)


def test_model_that_calls_itself_deeply():
    model = seeded(Recursive)
    with layertap.tap(model, "layer") as taps:
        model(noise(100, 3))
        assert "runs 100 times in one forward" in fault_of(taps.__getitem__, "layer")
        model(noise(1, 3))
        assert taps["layer"].shape == (1, 3)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_forward_that_fails_leaves_numbered_calls_and_no_guess(error):
    class Failing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.after = nn.Tanh(), nn.Tanh()
            self.fails = True

        def forward(self, x):
            x = self.layer(x)
            if self.fails:
                raise error("in the model")
            return self.after(self.layer(x))

    model, x = Failing(), noise(2, 3)
    with layertap.tap(model, ["layer:0", "layer:last", "layer", "aft*"]) as taps:
        for number in range(2):
            with pytest.raises(error, match="in the model"):
                model(x + number)
            assert torch.equal(taps["layer:0"], (x + number).tanh())
        for name in ("layer:last", "layer"):
            assert "the latest forward did not finish" in fault_of(taps.__getitem__, name)
        assert "did not run in the latest forward" in fault_of(taps.__getitem__, "after")
        model.fails = False
        model(x)
        assert torch.equal(taps["layer:last"], x.tanh().tanh())
        assert torch.equal(taps["after"], x.tanh().tanh().tanh())
        assert "runs 2 times" in fault_of(taps.__getitem__, "layer")


def test_block_entered_again_starts_anew():
    model, x = chain(), noise(2, 3, 8, 7)
    taps = layertap.tap(model, "0")
    with taps:
        taps.run(x)
    with taps:
        assert "has not been called since the block was entered" in fault_of(taps.__getitem__, "0")
        model(x)
        assert torch.equal(taps["0"], model[0](x))


def test_open_block_is_not_entered_twice():
    model = chain()
    with layertap.tap(model, "0") as taps:
        assert "already open" in fault_of(taps.__enter__)
        model(noise(2, 3, 8, 7))
        assert taps["0"].shape == (2, 4, 6, 5)


def test_blocks_of_one_model_nest():
    model, x = chain(), noise(2, 3, 8, 7)
    with layertap.tap(model, ["0", "."]) as outer:
        model(x)
        with layertap.tap(model, ["0", "3"]) as inner:
            model(x + 1)
            assert torch.equal(inner["0"], outer["0"])
            assert torch.equal(inner["3"], outer["."])
        model(x + 2)
        assert torch.equal(outer["0"], model[0](x + 2))
        assert torch.equal(inner["0"], model[0](x + 1))
    assert hooks(model) == []


def test_replaced_layer_is_not_taken_for_the_tapped_one():
    model, x = chain(), noise(2, 3, 8, 7)
    with layertap.tap(model, ["0", "2"]) as taps:
        model[0] = nn.Conv2d(3, 4, 3)
        model(x)
        assert "layer '0' did not run" in fault_of(taps.__getitem__, "0")


@pytest.mark.filterwarnings("ignore")  # torch has much to say about compiling through hooks
@pytest.mark.parametrize("detach", [True, False])
def test_model_compiled_inside_the_block_is_heard(detach):
    model, x = chain(), noise(2, 3, 8, 7)
    with layertap.tap(model, ["0", "2"], detach=detach) as taps:
        compiled = torch.compile(model, backend="eager")
        for number in range(2):
            expected = compiled(x + number)
            assert torch.equal(taps["0"], model[0](x + number))
            assert torch.equal(taps["2"].relu(), expected)
        kept = dict(taps)
    compiled(x + 5)
    assert all(torch.equal(taps[name], kept[name]) for name in kept)
    torch.compiler.reset()


def test_repr_says_what_is_tapped_and_whether_it_is_open():
    taps = layertap.tap(chain(), {"conv": "0", "<1": "<1"})
    assert repr(taps) == "<TappedModel of Sequential, closed: conv, <1>"
    with taps:
        assert "open" in repr(taps)


# Leaving nothing behind


@pytest.fixture
def watched():
    """A model with hooks of its user's on the first layer and on itself, and the list that they write to."""
    model, heard = chain(), []
    model[0].register_forward_hook(lambda m, args, output: heard.append("after 0"))
    model[0].register_forward_pre_hook(lambda m, args: heard.append("before 0"))
    model.register_forward_hook(lambda m, args, output: heard.append("after all"))
    return model, heard


EVERYTHING = ["0", "<0", ".", "<.", "2:last", "re:[13]"]


def test_hooks_of_the_user_stay_and_are_called_during_the_block_and_after_it(watched):
    model, heard = watched
    before = hooks(model)
    with layertap.tap(model, EVERYTHING):
        assert hooks(model) != before
        model(noise(2, 3, 8, 7))
    assert hooks(model) == before
    model(noise(2, 3, 8, 7))
    assert heard == ["before 0", "after 0", "after all"] * 2


def test_error_in_the_block_leaves_no_hook(watched):
    model, _ = watched
    before = hooks(model)
    with pytest.raises(ZeroDivisionError), layertap.tap(model, EVERYTHING):
        raise ZeroDivisionError
    assert hooks(model) == before


def test_error_in_the_forward_leaves_no_hook(watched):
    model, _ = watched
    before = hooks(model)
    for forward in ("run", "__call__"):
        with pytest.raises(RuntimeError), layertap.tap(model, EVERYTHING) as taps:
            getattr(taps if forward == "run" else model, forward)(noise(2, 99, 8, 7))
        assert hooks(model) == before


def test_error_while_attaching_leaves_no_hook(watched):
    class Refusing(nn.ReLU):
        def register_forward_hook(self, *args, **kwargs):
            raise RuntimeError("no hooks here")

    model, _ = watched
    model.append(Refusing())
    before = hooks(model)
    taps = layertap.tap(model, [*EVERYTHING, "4"])
    with pytest.raises(RuntimeError, match="no hooks here"):
        taps.__enter__()
    assert hooks(model) == before


def test_error_in_finding_attaches_nothing(watched):
    model, _ = watched
    before = hooks(model)
    with pytest.raises(TapError):
        layertap.tap(model, ["0", "nowhere"])
    layertap.tap(model, EVERYTHING)
    assert hooks(model) == before


def test_close_may_come_early_and_twice(watched):
    model, _ = watched
    before = hooks(model)
    with layertap.tap(model, "0") as taps:
        model(noise(2, 3, 8, 7))
        taps.close()
        assert hooks(model) == before
        taps.close()
        model(noise(3, 3, 8, 7))
    assert taps["0"].shape == (2, 4, 6, 5)


def test_hooks_that_the_user_adds_or_removes_in_the_block_are_left_alone(watched):
    model, heard = watched
    handle = model[2].register_forward_hook(lambda m, args, output: heard.append("removed"))
    with layertap.tap(model, EVERYTHING):
        model[1].register_forward_hook(lambda m, args, output: heard.append("after 1"))
        handle.remove()
    model(noise(2, 3, 8, 7))
    assert heard == ["before 0", "after 0", "after 1", "after all"]


def test_copies_of_the_model_made_in_the_block_are_not_heard_and_can_be_pickled():
    model, x = chain(), noise(2, 3, 8, 7)
    twin = out_of_place(model)
    with layertap.tap(model, ["0", "2:last", "."]) as taps:
        model(x)
        expected = dict(taps)
        shallow, deep, pickled = copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        saved = io.BytesIO()
        torch.save(model, saved)
        saved.seek(0)
        for other in (shallow, deep, pickled, torch.load(saved, weights_only=False)):
            assert torch.equal(other(x + 1), twin(x + 1))
            with layertap.tap(other, "0") as theirs:
                other(x + 1)
                assert torch.equal(theirs["0"], twin[0](x + 1))
        assert all(torch.equal(taps[name], expected[name]) for name in taps)
