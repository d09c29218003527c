"""Every way to write a tap is read as meant, and every wrong one is refused in one line that says where."""

from __future__ import annotations

import pickle
import re

import pydantic
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import nn

import layertap
from layertap import Tap, TapError
from layertap.taps.grammar import Spec, parse_taps
from layertap.taps.patterns import matching


def read(text):
    return Tap.model_validate(text)


def fault_of(taps):
    with pytest.raises(TapError) as caught:
        parse_taps(taps)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.code == 2
    return message


@pytest.mark.parametrize(
    ("text", "long"),
    [
        ("classifier.5", {"layer": "classifier.5"}),
        (".", {"layer": "."}),
        ("<.", {"layer": ".", "side": "input"}),
        (".:0[1]", {"layer": ".", "call": 0, "select": [1]}),
        ("<classifier.1", {"layer": "classifier.1", "side": "input"}),
        ("<classifier.1[0]", {"layer": "classifier.1", "side": "input", "select": [0]}),
        ("<attn[query]", {"layer": "attn", "side": "input", "select": ["query"]}),
        ("features.*", {"layer": "features.*"}),
        ("**.relu", {"layer": "**.relu"}),
        ("**", {"layer": "**"}),
        (r"re:layer[12]\..*", {"layer": r"re:layer[12]\..*"}),
        (r"<re:a:1[0]", {"layer": r"re:a:1[0]", "side": "input"}),
        ("layer1.0.relu:1", {"layer": "layer1.0.relu", "call": 1}),
        ("layer1.0.relu:last", {"layer": "layer1.0.relu", "call": "last"}),
        ("**.relu:all", {"layer": "**.relu", "call": "all"}),
        ("encoder.ln[0]", {"layer": "encoder.ln", "select": [0]}),
        ("encoder[last_hidden_state]", {"layer": "encoder", "select": ["last_hidden_state"]}),
        ("encoder:2[a][0][b]", {"layer": "encoder", "call": 2, "select": ["a", 0, "b"]}),
        ("layer1.0@add", {"layer": "layer1.0", "op": "add"}),
        (
            "<a.*:last@unbind:0[0]",
            {"layer": "a.*", "side": "input", "call": "last", "op": "unbind", "index": 0, "select": 0},
        ),
        ("a@mT", {"layer": "a", "op": "mT"}),
        ("encoder[01]", {"layer": "encoder", "select": ["01"]}),
    ],
)
def test_string_says_the_same_as_the_long_form(text, long):
    assert read(text) == Tap(**long)
    assert str(read(text)) == text
    assert read(text).label == text


@pytest.mark.parametrize("pattern", ["features.*", "**", "re:.", "a*.b"])
def test_patterns_are_known_as_such(pattern):
    assert read(pattern).is_pattern


def test_long_form_holds_everything():
    tap = Tap(
        layer="features.12",
        side="input",
        call="last",
        select=[0, "x"],
        name="conv5",
        reduce=["mean_pool", {"type": "project", "to": 64}],
        dtype="float16",
    )
    assert (tap.layer, tap.side, tap.call, tap.select, tap.dtype) == (
        "features.12",
        "input",
        "last",
        (0, "x"),
        "float16",
    )
    assert tap.reduce == (Spec(type="mean_pool"), Spec(type="project", params={"to": 64}))
    assert tap.label == "conv5"


@pytest.mark.parametrize("one", ["mean_pool", {"type": "mean_pool"}, Spec(type="mean_pool"), ["mean_pool"]])
def test_a_single_reducer_needs_no_list(one):
    assert Tap(layer="x", reduce=one).reduce == (Spec(type="mean_pool"),)


@pytest.mark.parametrize("key", [0, "hidden"])
def test_a_single_key_needs_no_list(key):
    assert Tap(layer="x", select=key).select == (key,)


# A path's part is anything but what the grammar or a pattern uses; blanks may stand inside it.
parts = st.text(
    st.characters(exclude_characters=".:@[]<* \t\n", exclude_categories=["Zs", "Cs", "Cc", "Zl", "Zp"]), min_size=1
)
globs = st.sampled_from(["*", "**", "layer*", "*_norm", "a*b*"])
layers = st.lists(parts | globs, min_size=1, max_size=4).map(".".join).filter(lambda path: not path.startswith("re:"))
calls = st.sampled_from(["", ":last", ":all"]) | st.integers(0, 999_999_999).map(":{}".format)
keys = st.text(st.characters(exclude_characters="[]", exclude_categories=["Cs"]), min_size=1) | st.integers(0, 99).map(
    str
)
selections = st.lists(keys.map("[{}]".format), max_size=3).map("".join)


operations = st.just("") | st.from_regex(r"@[A-Za-z]([A-Za-z0-9_]*[A-Za-z0-9])?(:(0|[1-9][0-9]{0,8}))?", fullmatch=True)


@given(st.sampled_from(["", "<"]), layers | st.just("."), calls, operations, selections)
@example("", "9", ":0", "", "[00]")
@example("<", "9", ":last", "@add:1", "[0][a]")
def test_a_tap_string_is_given_back_as_it_was_written(side, layer, call, operation, selection):
    assume(not operation.startswith("@attention") or (not side and not selection))
    text = side + layer + call + operation + selection
    assert str(read(text)) == text
    assert read(str(read(text))) == read(text)


@given(st.text("ab.*<>:[]01 ") | st.text("a:[]0123456789٣²") | st.text() | st.text("()*+?{}9").map("re:{}".format))
@example("re:a{99999999999999999999}")
@example("re:" + "(" * 5000)
@example("x:" + "9" * 5000)
@example("x:01")
@example("x:٣")
@pytest.mark.filterwarnings("ignore:Possible (nested set|set)")
def test_any_text_is_read_back_the_same_or_refused(text):
    try:
        tap = read(text)
    except pydantic.ValidationError:
        assert "\n" not in fault_of([text])
    else:
        assert str(tap) == text


@pytest.mark.parametrize(
    ("text", "character", "why"),
    [
        ("", 1, "expected a layer's path"),
        ("<", 2, "expected a layer's path"),
        (" conv", 1, "expected a layer's path"),
        ("conv ", 1, "expected a layer's path"),
        ("a]", 1, "expected a layer's path"),
        ("a..b", 1, "empty part"),
        (".a", 1, "empty part"),
        ("<a.", 2, "empty part"),
        ("..", 1, "empty part"),
        ("a::b", 2, "`::` is reserved"),
        ("a::", 2, "`::` is reserved"),
        ("a:", 3, "expected a call number, `last` or `all`"),
        ("a:b", 3, "expected a call number, `last` or `all`"),
        ("a:-1", 3, "expected a call number, `last` or `all`"),
        ("<a.b:first", 6, "expected a call number, `last` or `all`"),
        ("a:01", 4, "expected the end"),
        ("a:1:2", 4, "expected the end"),
        ("a:lastly", 7, "expected the end"),
        ("a[", 2, "quote a tap that holds `[`"),
        ("@add", 1, "expected a layer's path"),
        ("a@", 3, "expected the name of a function"),
        ("a@1", 3, "expected the name of a function"),
        ("a@_add", 3, "expected the name of a function"),
        ("a@add_", 6, "expected the end"),
        ("a@add:", 7, "expected a number (from 0)"),
        ("a@add:last", 7, "expected a number (from 0)"),
        ("a:0@add:00", 10, "expected the end"),
        ("a[0]@add", 5, "expected the end"),
        ("a[]", 2, "expected `[key]`"),
        ("a[[0]]", 2, "expected `[key]`"),
        ("a[0][", 5, "expected `[key]`"),
        ("a[0]b", 5, "expected the end"),
        ("a[0]:1", 5, "expected the end"),
        ("a:1[0]]", 7, "expected the end"),
        ("re:", 4, "expected a regular expression"),
        ("<re:", 5, "expected a regular expression"),
    ],
)
def test_malformed_string_is_refused_with_its_character(text, character, why):
    message = fault_of(["fine", text])
    assert message.startswith(f"taps[1]: the tap {text!r}, at character {character}: ")
    assert why in message
    assert "{layer: NAME, ...}" in message


@pytest.mark.parametrize("pattern", ["re:(", "re:*", "re:a{99999999999999999999}", "re:" + "(" * 5000])
def test_broken_regular_expression_is_refused(pattern):
    assert "is not a regular expression" in fault_of(pattern)


def test_double_star_stands_alone_between_dots():
    assert "`**` is only allowed alone between dots" in fault_of("features.a**")


@pytest.mark.parametrize("number", [0, 5, 1.1, True])
@pytest.mark.parametrize("wrap", [lambda n: n, lambda n: [n], lambda n: {"first": n}, lambda n: [{"layer": n}]])
def test_number_is_refused_with_the_advice_to_quote_it(number, wrap):
    assert f"quote it, as in '{number}'" in fault_of(wrap(number))


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        (None, "taps: must be a tap, a list of taps, or a mapping of name to tap, not None"),
        (b"conv", "taps: must be a tap, a list of taps, or a mapping of name to tap, not b'conv'"),
        ([], "taps: names no tap"),
        ({}, "taps: names no tap"),
        ([None], "taps[0]: a tap must be a string or a mapping with `layer`, not None"),
        ([["conv"]], "taps[0]: a tap must be a string or a mapping with `layer`, not ['conv']"),
        ([{}], "taps[0].layer: is required"),
        ([{"layer": ""}], "taps[0].layer: "),
        ([{"layer": "x", "reducer": "flatten"}], "taps[0].reducer: unknown key"),
        ([{"layer": "x", "side": "in"}], "taps[0].side: should be 'output' or 'input', not 'in'"),
        ([{"layer": "x", "call": -1}], "taps[0].call: must be a call number (from 0), `last` or `all`, not -1"),
        ([{"layer": "x", "call": True}], "taps[0].call: must be a call number (from 0), `last` or `all`, not True"),
        ([{"layer": "x", "call": 1.5}], "taps[0].call: must be a call number (from 0), `last` or `all`, not 1.5"),
        ([{"layer": "x", "call": "first"}], "taps[0].call: must be a call number (from 0), `last` or `all`"),
        ([{"layer": "x", "select": [-1]}], "taps[0].select[0]: must be a name or a position (from 0), not -1"),
        ([{"layer": "x", "select": [True]}], "taps[0].select[0]: must be a name or a position (from 0), not True"),
        ([{"layer": "x", "name": ""}], "taps[0].name: "),
        ([{"layer": "x", "name": 7}], "taps[0].name: is a string, but this was read as 7: quote it"),
        ([{"layer": "x", "dtype": "int8"}], "taps[0].dtype: should be 'float16', 'bfloat16', 'float32' or"),
        ([{"layer": "x", "reduce": [{"to": 3}]}], "taps[0].reduce[0]: has no `type`"),
        ([{"layer": "x", "reduce": [3]}], "taps[0].reduce[0]: must be a type name or `{type: NAME, ...}`, not 3"),
        ({"conv": ["a", "b"]}, "taps.conv: a tap must be a string or a mapping with `layer`, not ['a', 'b']"),
        ({"conv": "a:b"}, "taps.conv: the tap 'a:b', at character 3"),
        ({"conv": {"layer": "x", "call": "b"}}, "taps.conv.call: must be a call number"),
        ({"conv": {"layer": "x", "name": "other"}}, "taps.conv: has another name inside, 'other'"),
        ({"": "conv"}, "taps.: "),
    ],
)
def test_what_is_no_tap_is_refused_where_it_stands(taps, message):
    assert fault_of(taps).startswith(message)


def test_long_form_without_its_list_is_refused_with_the_hint():
    assert "belongs in a list: `taps: [{layer: ..., ...}]`" in fault_of({"layer": "conv1", "name": "first"})


def test_taps_are_a_string_a_tap_a_list_or_any_iterable():
    one, two = Tap(layer="a"), Tap(layer="b", call=1)
    assert parse_taps("a") == parse_taps(one) == parse_taps(["a"]) == (one,)
    assert parse_taps(["a", two]) == parse_taps(tap for tap in ("a", "b:1")) == (one, two)
    assert parse_taps({"layer": "a"} for _ in "x") == (one,)


def test_taps_are_a_mapping_of_name_to_tap():
    taps = {"first": "features.0", "second": {"layer": "a:b", "call": 1}, "third": Tap(layer="x", dtype="float16")}
    assert parse_taps(taps) == (
        Tap(layer="features.0", name="first"),
        Tap(layer="a:b", call=1, name="second"),
        Tap(layer="x", dtype="float16", name="third"),
    )


def test_a_mapping_may_name_a_tap_like_a_key_of_the_long_form():
    assert parse_taps({"layer": "conv1", "other": "conv2"})[0] == Tap(layer="conv1", name="layer")


def test_tap_is_frozen_and_survives_pickling():
    tap = Tap(layer="a", reduce=[{"type": "project", "to": 3}])
    assert pickle.loads(pickle.dumps(tap)) == tap
    with pytest.raises(pydantic.ValidationError):
        tap.layer = "b"


def tree(paths):
    """A model whose layers are exactly these paths and what lies above them."""
    root = nn.Module()
    for path in paths:
        at = root
        for part in path.split("."):
            if part not in at._modules:
                at.add_module(part, nn.Identity())
            at = at._modules[part]
    return root


MODEL = tree(["relu", "features.0", "features.10", "features.conv.relu", "layer1.0.relu", "layer1.0.bn.relu"])


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*", ["relu", "features", "layer1"]),
        ("features.*", ["features.0", "features.10", "features.conv"]),
        ("features.1*", ["features.10"]),
        ("*.0", ["features.0", "layer1.0"]),
        ("**.relu", ["relu", "features.conv.relu", "layer1.0.relu", "layer1.0.bn.relu"]),
        ("layer1.**", ["layer1", "layer1.0", "layer1.0.relu", "layer1.0.bn", "layer1.0.bn.relu"]),
        ("layer1.**.relu", ["layer1.0.relu", "layer1.0.bn.relu"]),
        ("**.0.**.relu", ["layer1.0.relu", "layer1.0.bn.relu"]),
        ("*.*.relu", ["features.conv.relu", "layer1.0.relu"]),
        ("f*.c*v.r*u", ["features.conv.relu"]),
        (r"re:layer\d\.0\..*u", ["layer1.0.relu", "layer1.0.bn.relu"]),
        ("re:relu", ["relu"]),
        ("re:.*elu", ["relu", "features.conv.relu", "layer1.0.relu", "layer1.0.bn.relu"]),
    ],
)
def test_pattern_finds_layers_in_the_model_s_order(pattern, found):
    assert list(layertap.TappedModel(MODEL, pattern)) == found


def test_double_star_alone_finds_every_layer_but_not_the_model_itself():
    paths = [path for path, _ in MODEL.named_modules() if path]
    assert list(layertap.TappedModel(MODEL, "**")) == paths


@pytest.mark.parametrize("pattern", ["features*", "*relu", "*.rel", "0.*", "re:rel", "re:features"])
def test_pattern_matches_whole_paths_only(pattern):
    assert not matching(pattern, ["features.0.relu", "features.relu"])


def reference(pattern, path):
    """Part by part, by trying everything."""
    if not pattern:
        return not path
    head, *rest = pattern
    if head == "**":
        return reference(rest, path) or (bool(path) and reference(pattern, path[1:]))
    return bool(path) and bool(re.fullmatch(head.replace("*", ".*"), path[0])) and reference(rest, path[1:])


words = st.sampled_from(["a", "b", "ab", "ba"])


@given(
    st.lists(words | st.sampled_from(["*", "**", "a*", "*b"]), min_size=1, max_size=5),
    st.lists(words, min_size=1, max_size=5),
)
def test_globs_match_as_their_rule_says(pattern, path):
    layer = ".".join(pattern)
    if "*" in layer:
        assert bool(matching(layer, [".".join(path)])) == reference(pattern, path)


@pytest.mark.parametrize("name", ["a:1", "a[0]", "<a", "a*", "a::b", "re:x", " a", "a]b", "*", "last", "0"])
def test_odd_module_names_are_reached_by_the_long_form(name):
    model = nn.Sequential()
    model.add_module(name, nn.Tanh())
    model.add_module("plain", nn.ReLU())
    with layertap.tap(model, [{"layer": name, "name": "odd"}]) as taps:
        model(torch.ones(2))
        assert torch.equal(taps["odd"], torch.ones(2).tanh())
