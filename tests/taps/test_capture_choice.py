"""Which value: the call, the part of a structure and the input that a tap asks for, and never another."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn

import layertap
from layertap import TapError
from tests.models import EncoderOutput, Holding, Outcome, Pair, Repeated, Returning, noise, seeded


def fault_of(taps, name):
    with pytest.raises(TapError) as caught:
        taps[name]
    assert "\n" not in str(caught.value)
    return caught.value.message


def values_of(model, taps, x):
    """The values, which reading in the block and both kinds of run() agree on."""
    with layertap.tap(model, taps) as tapped:
        model(x)
        read, first, later = dict(tapped), tapped.run(x), tapped.run(x)
    assert list(read) == list(first) == list(later)
    for name, value in read.items():
        assert torch.equal(value, first[name])
        assert torch.equal(value, later[name])
    return read


# Repeated calls


@pytest.fixture
def repeated():
    return seeded(Repeated)


@pytest.mark.parametrize(("call", "stage"), [("0", 0), ("1", 1), ("2", 2), ("last", 2)])
def test_call_is_chosen_by_its_number_or_as_the_last(repeated, call, stage):
    x = noise(2, 3, 9, 7)
    values = values_of(repeated, f"relu:{call}", x)
    assert list(values) == [f"relu:{call}"]
    assert torch.equal(values[f"relu:{call}"], repeated.stages(x)[stage])


def test_all_calls_have_a_name_each(repeated):
    x = noise(2, 3, 9, 7)
    values = values_of(repeated, ["narrow", "relu:all", {"layer": "relu", "call": "all", "name": "r"}, "wide"], x)
    assert list(values) == ["narrow", "relu:0", "relu:1", "relu:2", "r:0", "r:1", "r:2", "wide"]
    for call, stage in enumerate(repeated.stages(x)):
        assert torch.equal(values[f"relu:{call}"], stage)
        assert torch.equal(values[f"r:{call}"], stage)


def test_several_calls_of_one_layer_may_be_tapped_apart(repeated):
    x = noise(2, 3, 9, 7)
    values = values_of(repeated, ["relu:2", "relu:0", "<relu:1"], x)
    stages = repeated.stages(x)
    assert torch.equal(values["relu:2"], stages[2])
    assert torch.equal(values["relu:0"], stages[0])
    assert torch.equal(values["<relu:1"], repeated.narrow(stages[0]))


@pytest.mark.parametrize(
    ("tap", "choices"),
    [
        ("relu", "choose relu:0, relu:1, relu:2, relu:last or relu:all"),
        ("<relu[0]", "choose <relu:0[0], <relu:1[0], <relu:2[0], <relu:last[0] or <relu:all[0]"),
    ],
)
def test_layer_that_runs_several_times_is_refused_with_the_choices(repeated, tap, choices):
    with layertap.tap(repeated, tap) as taps:
        repeated(noise(2, 3, 9, 7))
        message = fault_of(taps, tap)
        assert message == f"layer 'relu' runs 3 times in one forward; {choices}"
        with pytest.raises(TapError, match="runs 3 times"):
            taps.run(noise(2, 3, 9, 7))


def test_call_that_never_comes_is_refused_with_how_many_there_are(repeated):
    with layertap.tap(repeated, "relu:3") as taps:
        repeated(noise(2, 3, 9, 7))
        assert fault_of(taps, "relu:3") == "'relu:3': layer 'relu' runs 3 times: its calls are 0 to 2"
        with pytest.raises(TapError, match="its calls are 0 to 2"):
            taps.run(noise(2, 3, 9, 7))


def test_number_of_calls_may_be_chosen_of_a_layer_that_runs_once(repeated):
    values = values_of(repeated, ["wide:0", "wide:last"], noise(2, 3, 9, 7))
    assert torch.equal(values["wide:0"], values["wide:last"])


def test_last_call_is_not_held_to_what_an_earlier_one_gave():
    class Growing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = Returning(lambda x: (x, x) if x.dim() == 2 else x)

        def forward(self, x):
            self.layer(x)
            return self.layer(x[..., None, None].expand(-1, -1, 2, 3))

    model, x = Growing(), noise(4, 3)
    taps = [{"layer": "layer", "call": "last", "reduce": "mean_pool"}]
    with layertap.tap(model, taps) as tapped:
        for _ in range(2):
            (value,) = tapped.run(x).values()
            torch.testing.assert_close(value, x)
            assert tapped.infos["layer:last"].shape == (3, 2, 3)
            assert tapped.infos["layer:last"].axes == "NCHW"


def test_info_and_rows_of_all_calls_are_their_own(repeated):
    with layertap.tap(repeated, {"r": {"layer": "relu", "call": "all", "reduce": "mean_pool"}}) as taps:
        values = taps.run(noise(2, 3, 9, 7))
        assert {name: value.shape for name, value in values.items()} == {"r:0": (2, 3), "r:1": (2, 4), "r:2": (2, 6)}
        infos = taps.infos
        assert {name: info.shape for name, info in infos.items()} == {
            "r:0": (3, 9, 7),
            "r:1": (4, 7, 5),
            "r:2": (6, 5, 5),
        }
        assert [(info.name, info.call) for info in infos.values()] == [("r:0", 0), ("r:1", 1), ("r:2", 2)]
        assert taps.shapes == {name: (2, *info.shape) for name, info in infos.items()}


# Structures


ONE = {
    "tuple": lambda x: (x, None),
    "list": lambda x: [[x]],
    "dict": lambda x: {"out": x, "size": 3},
    "namedtuple": lambda x: Pair(None, x),
    "dataclass": lambda x: Outcome(x),
    "ModelOutput": lambda x: EncoderOutput(last_hidden_state=x),
    "nest": lambda x: {"a": [{"b": (None, Outcome(x))}], "c": "text"},
}


@pytest.mark.parametrize("make", ONE.values(), ids=ONE.keys())
def test_one_tensor_in_a_structure_needs_no_selector(make):
    x = noise(2, 3)
    model = Holding(Returning(make))
    assert torch.equal(values_of(model, "layer", x)["layer"], x)


SEVERAL = {
    "tuple": (lambda a, b: (a, b), {"[0]": 0, "[1]": 1}),
    "list": (lambda a, b: [a, [None, b]], {"[0]": 0, "[1][1]": 1}),
    "dict": (lambda a, b: {"a": a, "b": {"c": b}}, {"[a]": 0, "[b][c]": 1}),
    "integer keys": (lambda a, b: {1: a, 0: b}, {"[1]": 0, "[0]": 1}),
    "digits as keys": (lambda a, b: OrderedDict([("1", a), ("0", b)]), {"[1]": 0, "[0]": 1}),
    "namedtuple": (Pair, {"[0]": 0, "[1]": 1}),
    "dataclass": (lambda a, b: Outcome(a, b), {"[hidden]": 0, "[cache]": 1}),
    "ModelOutput": (
        lambda a, b: EncoderOutput(last_hidden_state=a, hidden_states=(b, None)),
        {"[last_hidden_state]": 0, "[hidden_states][0]": 1},
    ),
}


@pytest.mark.parametrize(("make", "keys"), SEVERAL.values(), ids=SEVERAL.keys())
def test_several_tensors_are_refused_with_the_choices_and_each_choice_works(make, keys):
    x = noise(2, 3)
    model = Holding(Returning(lambda x: make(x, -x)))
    with layertap.tap(model, "layer") as taps:
        model(x)
        listed = ", ".join(f"layer{key}" for key in keys)
        assert fault_of(taps, "layer") == f"tap 'layer' holds 2 tensors; choose {listed}"
    values = values_of(model, [f"layer{key}" for key in keys], x)
    for key, place in keys.items():
        assert torch.equal(values[f"layer{key}"], (x, -x)[place])


@pytest.mark.parametrize(("key", "place"), [("mean", 0), ("spread", 1)])
def test_field_of_a_namedtuple_is_chosen_by_name(key, place):
    x = noise(2, 3)
    model = Holding(Returning(lambda x: Pair(x, -x)))
    assert torch.equal(values_of(model, f"layer[{key}]", x)[f"layer[{key}]"], (x, -x)[place])


def test_item_of_a_model_output_is_chosen_by_position_too():
    x = noise(2, 3)
    model = Holding(Returning(lambda x: EncoderOutput(last_hidden_state=x, hidden_states=(-x,))))
    values = values_of(model, ["layer[0]", "layer[1]"], x)
    assert torch.equal(values["layer[0]"], x)
    assert torch.equal(values["layer[1]"], -x)


def test_two_keys_that_look_the_same_are_two_tensors():
    model = Holding(Returning(lambda x: {0: x, "0": -x}))
    with layertap.tap(model, ["layer", {"layer": "layer", "select": ["0"], "name": "text"}, "layer[0]"]) as taps:
        model(noise(2, 3))
        assert "holds 2 tensors" in fault_of(taps, "layer")
        assert torch.equal(taps["layer[0]"], -taps["text"])


@pytest.mark.parametrize(
    ("tap", "message"),
    [
        ("layer[2]", "tap 'layer' has no [2]; choose layer[0], layer[1][a], layer[1][b]"),
        ("layer[x]", "tap 'layer' has no [x]; choose layer[0], layer[1][a], layer[1][b]"),
        ("layer[1]", "tap 'layer[1]' holds 2 tensors; choose layer[1][a], layer[1][b]"),
        ("layer[1][c]", "tap 'layer[1]' has no [c]; choose layer[1][a], layer[1][b]"),
        ("layer[0][0]", "tap 'layer[0]' has no [0]; choose layer[0]"),
        ("layer[2][0]", "tap 'layer' has no [2]; choose layer[0], layer[1][a], layer[1][b]"),
        ("layer[1][n]", "tap 'layer[1][n]' holds no tensor but int"),
    ],
)
def test_wrong_selector_is_refused_with_the_right_ones(tap, message):
    model = Holding(Returning(lambda x: (x, {"a": x, "b": -x, "n": 3})))
    with layertap.tap(model, tap) as taps:
        model(noise(2, 3))
        assert fault_of(taps, tap) == message


def test_layer_that_returns_no_tensor_is_refused():
    model = Holding(Returning(lambda x: None))
    with layertap.tap(model, "layer") as taps:
        model(noise(2, 3))
        assert fault_of(taps, "layer") == "tap 'layer' holds no tensor but NoneType"


def test_many_choices_are_cut_short():
    model = Holding(Returning(lambda x: [x] * 20))
    with layertap.tap(model, "layer") as taps:
        model(noise(2, 3))
        assert fault_of(taps, "layer").endswith("layer[6], layer[7] ...")


# Inputs


class Mixed(nn.Module):
    def forward(self, query, others, *, key, scale=1.0):
        return query + key * scale


class Attending(nn.Module):
    """Calls its layer with a tensor by position, tensors in a list, and a tensor and a number by keyword."""

    def __init__(self):
        super().__init__()
        self.layer = Mixed()

    def forward(self, x):
        return self.layer(x, [x + 1, x + 2], key=x + 3, scale=2.0)


@pytest.mark.parametrize(
    ("tap", "plus"), [("<layer", 0), ("<layer[0]", 0), ("<layer[1][1]", 2), ("<layer[key]", 3), ("<.", 0)]
)
def test_input_is_chosen_by_position_or_keyword(tap, plus):
    x = noise(2, 3)
    assert torch.equal(values_of(Attending(), tap, x)[tap], x + plus)


@pytest.mark.parametrize(
    ("tap", "message"),
    [
        ("<layer[1]", "tap '<layer[1]' holds 2 tensors; choose <layer[1][0], <layer[1][1]"),
        ("<layer[2]", "tap '<layer' has no [2]; choose <layer[0], <layer[1][0], <layer[1][1], <layer[key]"),
        ("<layer[query]", "tap '<layer' has no [query]; choose <layer[0], <layer[1][0], <layer[1][1], <layer[key]"),
        ("<layer[scale]", "tap '<layer[scale]' holds no tensor but float"),
    ],
)
def test_wrong_input_is_refused_with_the_right_ones(tap, message):
    with layertap.tap(Attending(), tap) as taps:
        taps.module(noise(2, 3))
        assert fault_of(taps, tap) == message


def test_layer_called_with_keywords_alone_has_a_first_tensor_and_no_position():
    class ByKeyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return self.layer(input=x)

    model, x = ByKeyword(), noise(2, 3)
    assert torch.equal(values_of(model, "<layer", x)["<layer"], x)
    with layertap.tap(model, "<layer[0]") as taps:
        model(x)
        assert fault_of(taps, "<layer[0]") == "tap '<layer' has no [0]; choose <layer[input]"


def test_layer_that_receives_no_tensor_is_refused():
    class Blind(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = Returning(lambda size: torch.zeros(size))

        def forward(self, x):
            return x + self.layer(3)

    model = Blind()
    with layertap.tap(model, ["<layer", "layer"]) as taps:
        model(noise(2, 3))
        assert fault_of(taps, "<layer") == "layer 'layer' receives no tensor"
        assert torch.equal(taps["layer"], torch.zeros(3))
