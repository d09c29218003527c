"""What a user writes and what it means: defaults, short forms, overrides, and every mistake told where it stands."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import layertap
from layertap.config.loading import load_config, parse_overrides
from layertap.errors import ConfigError
from layertap.plugins import Plugins

BASE = "source: samples\nsink: {type: npy, path: f/}\n"
FOLDER = "source: {type: folder, path: images/}\nsink: {type: npy, path: f/}\n"

# Parameters of every sort that a stranger may have.
STRANGER = """
from pathlib import Path
from typing import Annotated, Literal, Optional
import layertap
from pydantic import Field

class Many(layertap.Source):
    class Params(layertap.Params):
        text: str = ""
        optional: str | None = None
        old_optional: Optional[str] = None
        long: Annotated[str, Field(min_length=2)] | None = None
        file: Path = Path(".")
        choice: Literal["1", "2"] = "1"
        texts: list[str] = []
        pair: tuple[int, int] = (1, 2)
        number: float = 1
        either: str | int = 0
        inner: dict[str, str] = {}
        numbers: list[int] | int = 1
    def records(self):
        yield layertap.ImageRecord("a", b"")

class Strict(layertap.Source):
    class Params(layertap.Params):
        class Inner(layertap.Params):
            depth: int
        inner: Inner
    def records(self):
        yield layertap.ImageRecord("a", b"")

@layertap.hookimpl
def register_sources(register):
    register("many", Many)
    register("strict", Strict)
"""


@pytest.fixture(scope="module")
def plugins(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "stranger.py"
    path.write_text(STRANGER)
    return Plugins.load([str(path)])


@pytest.fixture
def load(plugins, tmp_path, monkeypatch):
    """Loads YAML text, a mapping or a RunConfig, with overrides as typed or as Python values."""
    monkeypatch.chdir(tmp_path)

    def load(config, *typed, **python):
        if isinstance(config, str):
            Path("c.yaml").write_text(config)
            config = "c.yaml"
        return load_config(config, python.get("overrides", parse_overrides(typed)), plugins)

    return load


@pytest.fixture
def refused(load):
    """The message of the ConfigError that a configuration raises."""

    def refused(config, *typed, **python):
        with pytest.raises(ConfigError) as caught:
            load(config, *typed, **python)
        assert caught.value.code == 2
        assert all(str(fault).isprintable() for fault in caught.value.faults)
        assert str(caught.value) == "\n".join(map(str, caught.value.faults))
        return str(caught.value)

    return refused


# --- what is written and what it means


def test_defaults_are_those_of_the_manual(load):
    assert load(BASE).plain() == {
        "model": {"type": "torchvision", "name": "alexnet", "weights": "DEFAULT"},
        "taps": ["classifier.5"],
        "source": {"type": "samples"},
        "preprocess": {"type": "model"},
        "sink": {"type": "npy", "path": "f/"},
        "device": "auto",
        "batch_size": 64,
        "workers": None,
        "limit": None,
        "shard_rows": None,
        "mode": "resume",
        "on_error": "skip",
        "max_failures": 0.05,
        "nonfinite": "keep",
        "nondeterministic": "refuse",
        "threads": None,
        "engine": None,
        "processors": "same",
        "formats": [],
        "image_timeout": 10.0,
        "image_memory": 512,
        "max_pixels": 89_478_485,
        "isolation": "thread",
        "early_stop": True,
        "profile": "exact",
        "autocast": None,
        "observers": [{"type": "progress"}],
    }


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("model: torchvision/vgg11", "model: {type: torchvision, name: vgg11}"),
        ("model: torchvision", "model: {type: torchvision}"),
        ("taps: features.0", "taps: [features.0]"),
        ("taps: '**.0'", "taps: ['**.0']"),
        ("taps: {features.0: features.0}", "taps: [{layer: features.0, name: features.0}]"),
        ("taps: {a: {layer: b, reduce: flatten}}", "taps: [{layer: b, name: a, reduce: [{type: flatten}]}]"),
        ("preprocess: imagenet", "preprocess: {type: imagenet}"),
        ("observers: progress", "observers: [{type: progress}]"),
        ("observers: {type: progress}", "observers: [progress]"),
    ],
)
def test_short_form_means_the_long_one(load, short, long):
    assert load(f"{BASE}{short}\n").plain() == load(f"{BASE}{long}\n").plain()


def test_words_that_yaml_1_1_mistakes_stay_text(load):
    config = load("source: {type: folder, path: no, include: [on, 12:30:45, y]}\nsink: {type: npy, path: 1_000}\n")
    assert config.source.params == {"path": "no", "include": ["on", "12:30:45", "y"]}
    assert config.sink.params == {"path": "1_000"}


def test_relative_paths_are_left_as_written(load):
    config = load("source: {type: folder, path: ../a/./b/}\nsink: {type: npy, path: ~/x}\n", "sink.path=./c//")
    assert config.source.params == {"path": "../a/./b/"}
    assert config.sink.params == {"path": "./c//"}


def test_mapping_path_and_run_config_give_the_same(load, tmp_path):
    from_file = load(FOLDER, "batch_size=32")
    mapping = {"source": {"type": "folder", "path": "images/"}, "sink": {"type": "npy", "path": "f/"}, "batch_size": 32}
    for config in (
        load(mapping),
        load(layertap.RunConfig(**mapping)),
        load(from_file),
        load(from_file.plain()),
        load(Path("c.yaml"), overrides={"batch_size": 32}),
        load({**mapping, "source": {"type": "folder", "path": Path("images")}}, overrides={"source.path": "images/"}),
    ):
        assert config == from_file
        assert config.plain() == from_file.plain()
    assert load({**mapping, "batch_size": 31}) != from_file


def test_python_values_become_data_that_json_holds(load):
    taps = (layertap.Tap(layer="a"), layertap.Tap.model_validate("b[0]"), {"layer": "c", "reduce": ("flatten",)})
    config = load(
        {"source": {"type": "folder", "path": Path("x"), "include": ("a", "b")}, "sink": "memory", "taps": taps}
    )
    plain = config.plain()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["source"] == {"type": "folder", "path": "x", "include": ["a", "b"]}
    assert plain["taps"] == ["a", "b[0]", {"layer": "c", "reduce": [{"type": "flatten"}]}]


def test_config_survives_pickling(load):
    config = load(FOLDER, "batch_size=32")
    again = pickle.loads(pickle.dumps(config))
    assert again == config
    assert again.plain() == config.plain()


def test_what_the_caller_gave_is_not_changed(load):
    inner = {"num_classes": 5}
    mapping = {
        "model": {"type": "torchvision", "args": inner},
        "source": "samples",
        "sink": {"type": "npy", "path": "f"},
    }
    before = json.dumps(mapping)
    first = load(mapping)
    load(mapping, overrides={"model.args.num_classes": 7, "sink.path": "g", "batch_size": 2})
    load(first, overrides={"model.args.num_classes": 7, "sink.path": "g"})
    assert json.dumps(mapping) == before
    assert first.plain()["model"] == {"type": "torchvision", "args": {"num_classes": 5}}


KEYS = st.text("abcxyz_", min_size=1, max_size=8).filter(lambda key: key not in ("type", "params"))
# Every character that YAML can hold unescaped; what it cannot hold is not written into files by hand.
TEXT = st.text(st.characters(categories=["L", "M", "N", "P", "S", "Zs"], exclude_characters="\ufeff"), max_size=12)
NUMBERS = st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
NAMES = st.text("abz019_-", min_size=1, max_size=6)
TAPS = st.builds(
    layertap.Tap,
    layer=st.lists(NAMES, min_size=1, max_size=3).map(".".join) | st.sampled_from([".", "a.*", "**.b", "a b:0[x", "5"]),
    side=st.sampled_from(["input", "output"]),
    call=st.none() | st.integers(0, 9) | st.sampled_from(["last", "all"]),
    select=st.lists(st.integers(0, 9) | NAMES | st.sampled_from(["0", "01", "a]b", "null"]), max_size=2).map(tuple),
    name=st.none() | TEXT.filter(bool),
    reduce=st.lists(st.sampled_from(["flatten", {"type": "mean_pool"}]), max_size=2).map(tuple),
    dtype=st.sampled_from([None, "float16", "float64"]),
)


@settings(deadline=None)
@given(
    st.builds(
        lambda args, path, include, taps, size, **others: layertap.RunConfig(
            model={"type": "torchvision", "args": args},
            source={"type": "folder", "path": path, "include": include},
            sink={"type": "npy", "path": path},
            taps=taps,
            batch_size=size,
            shard_rows=3 * size,
            **others,
        ),
        args=st.dictionaries(KEYS, VALUES, max_size=3),
        path=TEXT.filter(bool),
        include=st.lists(TEXT, min_size=1, max_size=2),
        taps=st.lists(TAPS, min_size=1, max_size=3),
        size=st.integers(1, 10**6),
        limit=st.none() | st.integers(1, 10**12),
        device=st.sampled_from(["cpu", "auto", "cuda", "cuda:3", "mps"]),
        max_failures=st.integers(0, 10) | st.floats(0, 1),
        early_stop=st.booleans(),
        observers=st.sampled_from([(), ("progress",)]),
    )
)
def test_what_a_config_writes_reads_back_as_the_same(plugins, tmp_path_factory, config):
    plain = config.plain()
    again = load_config(plain, None, plugins)
    assert again == config
    assert again.plain() == plain
    assert again.taps == config.taps
    path = tmp_path_factory.mktemp("written") / "c.yaml"
    path.write_text(json.dumps(plain, ensure_ascii=False), "utf-8")
    assert load_config(path, None, plugins) == config


SPECS = st.sampled_from(
    ["folder", "samples", "npy", "memory", "torchvision", "imagenet", "model", "flatten", "x/y", ""]
)
WRITTEN = st.recursive(
    VALUES | SPECS | st.sampled_from([float("nan"), 10**200, "\ud800", "re:(", "a[", "<", b"x", Path("x")]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "params", "path", "layer", "name", "args", "reduce", "call"]), inner)
    ),
    max_leaves=6,
)


@settings(deadline=None, max_examples=300)
@given(
    st.fixed_dictionaries(
        {"source": st.just("samples") | WRITTEN, "sink": st.just("memory") | WRITTEN},
        optional={key: WRITTEN for key in (*layertap.RunConfig.model_fields, "other") if key not in ("source", "sink")},
    )
)
def test_any_mapping_is_a_config_or_a_config_error(plugins, config):
    try:
        loaded = load_config(config, None, plugins)
    except ConfigError as error:
        messages = [str(fault) for fault in error.faults]
    else:
        messages = []
        assert load_config(loaded.plain(), None, plugins) == loaded
    assert all(message.startswith("config: ") and message.isprintable() for message in messages)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(
        st.tuples(
            st.lists(
                st.sampled_from(["source", "model", "taps", "batch_size", "path", "args", "type", "x", ""]), max_size=3
            ),
            TEXT
            | st.sampled_from(["null", "{}", "[]", "{type: samples}", "{type: folder, path: x}", "5", "[a", "*", "!x"]),
        ),
        max_size=3,
    )
)
def test_any_command_line_is_a_config_or_a_config_error(plugins, typed):
    arguments = [f"{'.'.join(key)}={value}" for key, value in typed]
    try:
        load_config({"source": "samples", "sink": "memory"}, parse_overrides(arguments), plugins)
    except ConfigError as error:
        messages = [str(fault) for fault in error.faults]
    else:
        messages = []
    assert all(message.startswith(("command line: ", "config: ")) for message in messages)
    assert all(message.isprintable() for message in messages)


# --- overrides


@pytest.mark.parametrize(
    ("base", "typed", "key", "value"),
    [
        (FOLDER, "source.path=007", "source", {"type": "folder", "path": "007"}),
        (FOLDER, "source.path=a: b", "source", {"type": "folder", "path": "a: b"}),
        (FOLDER, "source.path=[x]", "source", {"type": "folder", "path": "[x]"}),
        (FOLDER, "source.path=a=b # c", "source", {"type": "folder", "path": "a=b # c"}),
        (FOLDER, "source.path= ~ ", "source", {"type": "folder", "path": " ~ "}),
        (FOLDER, "source.include=['*.tif', 007]", "", "source.include[1]: should be a valid string, not 7; quote"),
        (FOLDER, "source.include=[x]", "source", {"type": "folder", "path": "images/", "include": ["x"]}),
        (FOLDER, "source={type: folder, path: '8'}", "source", {"type": "folder", "path": "8"}),
        (FOLDER, "source=samples", "source", {"type": "samples"}),
        (FOLDER, "sink={type: memory}", "sink", {"type": "memory"}),
        (BASE, "model.name=null", "model", {"type": "torchvision", "name": "null", "weights": "DEFAULT"}),
        (BASE, "model.weights=random", "model", {"type": "torchvision", "name": "alexnet", "weights": "random"}),
        (BASE, "model=torchvision/vgg11", "model", {"type": "torchvision", "name": "vgg11"}),
        (
            BASE,
            "model.args.num_classes=10",
            "model",
            {"type": "torchvision", "name": "alexnet", "weights": "DEFAULT", "args": {"num_classes": 10}},
        ),
        (
            f"model: torchvision/vgg11\n{BASE}",
            "model.args.num_classes=10",
            "model",
            {"type": "torchvision", "name": "vgg11", "args": {"num_classes": 10}},
        ),
        (
            f"model: {{type: torchvision, args: {{num_classes: 5, dropout: 0.1}}}}\n{BASE}",
            "model.args.num_classes=10",
            "model",
            {"type": "torchvision", "args": {"num_classes": 10, "dropout": 0.1}},
        ),
        (
            f"model: {{type: torchvision, args: {{num_classes: 5, dropout: 0.1}}}}\n{BASE}",
            "model.args={num_classes: 10}",
            "model",
            {"type": "torchvision", "args": {"num_classes": 10}},
        ),
        (f"model: torchvision\n{BASE}", "model.name=vgg11", "model", {"type": "torchvision", "name": "vgg11"}),
        (BASE, "preprocess.type=imagenet", "preprocess", {"type": "imagenet"}),
        (f"preprocess: imagenet\n{BASE}", "preprocess.crop=99", "preprocess", {"type": "imagenet", "crop": 99}),
        (BASE, "taps=[features.0, classifier.5]", "taps", ["features.0", "classifier.5"]),
        (BASE, "taps=features.*", "taps", ["features.*"]),
        (BASE, "taps='**.relu'", "taps", ["**.relu"]),
        (BASE, "taps={a: b}", "taps", [{"layer": "b", "name": "a"}]),
        (BASE, "device=cpu", "device", "cpu"),
        (BASE, "batch_size=32", "batch_size", 32),
        (BASE, "batch_size=0x10", "batch_size", 16),
        (BASE, "limit=null", "limit", None),
        (f"{BASE}limit: 5\n", "limit=~", "limit", None),
        (BASE, "max_failures=0.5", "max_failures", 0.5),
        (BASE, "max_failures=5", "max_failures", 5),
        (BASE, "early_stop=false", "early_stop", False),
        (BASE, "observers=[]", "observers", []),
        (f"source: {{type: many}}\n{BASE[16:]}", "source.text=null", "source", {"type": "many", "text": "null"}),
        (f"source: many\n{BASE[16:]}", "source.optional=5", "source", {"type": "many", "optional": "5"}),
        (f"source: many\n{BASE[16:]}", "source.old_optional=5", "source", {"type": "many", "old_optional": "5"}),
        (f"source: many\n{BASE[16:]}", "source.long=05", "source", {"type": "many", "long": "05"}),
        (f"source: many\n{BASE[16:]}", "source.file=05", "source", {"type": "many", "file": "05"}),
        (f"source: many\n{BASE[16:]}", "source.choice=2", "source", {"type": "many", "choice": "2"}),
        (f"source: many\n{BASE[16:]}", "source.texts=[a, b]", "source", {"type": "many", "texts": ["a", "b"]}),
        (f"source: many\n{BASE[16:]}", "source.pair=[3, 4]", "source", {"type": "many", "pair": [3, 4]}),
        (f"source: many\n{BASE[16:]}", "source.number=3", "source", {"type": "many", "number": 3}),
        (f"source: many\n{BASE[16:]}", "source.either=3", "source", {"type": "many", "either": 3}),
        (f"source: many\n{BASE[16:]}", "source.inner.a=b", "source", {"type": "many", "inner": {"a": "b"}}),
    ],
)
def test_override_on_the_command_line(load, refused, base, typed, key, value):
    if key:
        assert load(base, typed).plain()[key] == value
    else:
        assert refused(base, typed).startswith(f"command line: {value}")


def test_later_override_wins_and_lies_over_an_earlier_one(load):
    typed = ["model=torchvision/vgg11", "model.weights=random", "batch_size=1", "batch_size=2"]
    plain = load(BASE, *typed).plain()
    assert plain["model"] == {"type": "torchvision", "name": "vgg11", "weights": "random"}
    assert plain["batch_size"] == 2


def test_override_in_python_takes_values_as_they_are(load):
    config = load(FOLDER, overrides={"source.path": Path("007"), "source.include": ("a",), "taps": ["b"], "limit": 3})
    assert config.source.params == {"path": "007", "include": ["a"]}
    assert config.plain()["taps"] == ["b"]
    assert config.limit == 3


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("batchsize=1", "command line: batchsize: unknown key; did you mean 'batch_size'?"),
        ("nonsense=1", "command line: nonsense: unknown key"),
        ("batch_size", "command line: 'batch_size' is not an override: write key=value, as in batch_size=32"),
        ("=1", "command line: '=1' is not an override"),
        ("batch_size=", "command line: batch_size: should be a valid integer, not None"),
        ("batch_size=x", "command line: batch_size: should be a valid integer, not 'x'"),
        ("batch_size='64'", "command line: batch_size: should be a valid integer, not '64'"),
        ("batch_size.x=1", "command line: batch_size.x: batch_size has no keys inside; set it as a whole"),
        ("taps.0=a", "command line: taps.0: taps has no keys inside; set it as a whole"),
        ("model..name=a", "command line: model..name: a key's name is missing before or after a dot"),
        ("model.name.x=a", "command line: model.name.x: model.name is 'alexnet' and has no keys inside"),
        ("source.path.x=a", "command line: source.path.x: source.path is 'images/' and has no keys inside"),
        ("source.path=", "command line: source.path: String should have at least 1 character"),
        ("source.pth=a", "command line: source.pth: unknown key; did you mean 'path'?"),
        ("source={type: fodler, path: x}", "command line: source.type: no source has the type 'fodler'; did you mean"),
        ("source={type: folder, pth: x}", "command line: source.pth: unknown key; did you mean 'path'?"),
        ("source={}", "command line: source: has no `type`"),
        ("source.type=samples", "c.yaml:1:24: source.path: unknown key: the source samples has no parameters (source="),
        ("model=null", "command line: model: must be a type name or `{type: NAME, ...}`, not None"),
        ("taps=5", "command line: taps: a tap is a string, but this was read as 5: quote it"),
        ("taps=**.relu", "command line: taps:1:2: while scanning an alias"),
        ("taps=[a", "command line: taps:1:3: while parsing a flow sequence"),
        ("taps=!!python/name:os.system", "command line: taps:1:1: the tag "),
        ("device=cuda:x", "command line: device: must be auto, cpu, cuda, cuda:N or mps, not 'cuda:x'"),
        ("shard_rows=100", "command line: shard_rows: 100 is not a multiple of batch_size (64)"),
        ("source.path=\udcff", "command line: source.path: '\\udcff' is not UTF-8 text; for a path: change into that"),
    ],
)
def test_fault_of_an_override_is_told_as_the_command_lines(refused, typed, message):
    assert refused(FOLDER, typed).startswith(message)


def test_fault_of_an_override_in_python_is_told_as_such(refused):
    assert refused(BASE, overrides={"batch_size": "64"}).startswith("overrides: batch_size: should be a valid integer")
    assert refused(BASE, overrides={"btch_size": 1}).startswith("overrides: btch_size: unknown key; did you mean")


def test_fault_beside_an_override_stays_where_it_was_written(refused):
    assert refused(f"{FOLDER}limit: x\n", "batch_size=1").startswith("c.yaml:3:1: limit: ")
    message = refused("source: {type: folder, pth: x}\nsink: memory\n", "source.include=[a]")
    assert message.startswith("c.yaml:1:24: source.pth: unknown key")


# --- mistakes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{BASE}bach_size: 1\n", "c.yaml:3:1: bach_size: unknown key; did you mean 'batch_size'?"),
        (f"{BASE}colour: 1\n", "c.yaml:3:1: colour: unknown key (known: model, taps, source, "),
        ("sourec: samples\nsink: memory\n", "c.yaml:1:1: sourec: unknown key; did you mean 'source'?"),
        ("sink: memory\n", "c.yaml:1:1: source: is required, as in `source: {type: folder, path: images/}`"),
        ("source: samples\n", "c.yaml:1:1: sink: is required, as in `sink: {type: npy, path: features/}`"),
        ("{}\n", "c.yaml:1:1: source: is required"),
        ("source: {type: folder}\nsink: memory\n", "c.yaml:1:1: source.path: is required"),
        ("source: folder\nsink: memory\n", "c.yaml:1:1: source.path: is required"),
        ("source: {path: x}\nsink: memory\n", "c.yaml:1:1: source: has no `type`: write `{type: NAME, ...}`"),
        ("source:\nsink: memory\n", "c.yaml:1:1: source: must be a type name or `{type: NAME, ...}`, not None"),
        ("source: 5\nsink: memory\n", "c.yaml:1:1: source: must be a type name or `{type: NAME, ...}`, not 5"),
        ("source: {type: 5}\nsink: memory\n", "c.yaml:1:10: source.type: should be a valid string, not 5; quote it"),
        ("source: images/\nsink: memory\n", "c.yaml:1:1: source.type: no source has the type 'images/'"),
        ("source: samples\nsink: {type: nyp, path: f}\n", "c.yaml:2:8: sink.type: no sink has the type 'nyp'; did you"),
        (f"{BASE}model: alexnet\n", "c.yaml:3:1: model.type: no model has the type 'alexnet'"),
        (f"{BASE}model: torchvison/alexnet\n", "c.yaml:3:1: model.type: no model has the type 'torchvison'; did you m"),
        (f"{BASE}model:\n  type: torchvision\n  nmae: a\n", "c.yaml:5:3: model.nmae: unknown key; did you mean 'name'"),
        (f"{BASE}model: {{type: torchvision, name: 18}}\n", "c.yaml:3:28: model.name: should be a valid string, not 1"),
        (f"{BASE}batch_size: '64'\n", "c.yaml:3:1: batch_size: should be a valid integer, not '64'"),
        (f"{BASE}batch_size: true\n", "c.yaml:3:1: batch_size: should be a valid integer, not True"),
        (f"{BASE}batch_size: 64.0\n", "c.yaml:3:1: batch_size: should be a valid integer, not 64.0"),
        (f"{BASE}batch_size: 1e3\n", "c.yaml:3:1: batch_size: should be a valid integer, not 1000.0"),
        (f"{BASE}batch_size: 0\n", "c.yaml:3:1: batch_size: should be greater than or equal to 1, not 0"),
        (f"{BASE}batch_size: -1\n", "c.yaml:3:1: batch_size: should be greater than or equal to 1, not -1"),
        (f"{BASE}batch_size: [64]\n", "c.yaml:3:1: batch_size: should be a valid integer, not [64]"),
        (f"{BASE}shard_rows: 100\n", "c.yaml:3:1: shard_rows: 100 is not a multiple of batch_size (64)"),
        (f"{BASE}limit: 0\n", "c.yaml:3:1: limit: should be greater than or equal to 1, not 0"),
        (f"{BASE}max_failures: many\n", "c.yaml:3:1: max_failures: "),
        (f"{BASE}max_failures: true\n", "c.yaml:3:1: max_failures: "),
        (f"{BASE}max_failures: 1.5\n", "c.yaml:3:1: max_failures: "),
        (f"{BASE}max_failures: .nan\n", "c.yaml:3:1: max_failures: is a number that a manifest cannot hold"),
        (f"{BASE}early_stop: no\n", "c.yaml:3:1: early_stop: should be a valid boolean, not 'no'; write true or false"),
        (f"{BASE}on_error: no\n", "c.yaml:3:1: on_error: should be 'skip' or 'fail', not 'no'"),
        (f"{BASE}device: gpu\n", "c.yaml:3:1: device: must be auto, cpu, cuda, cuda:N or mps, not 'gpu'"),
        (
            f"{BASE}device: cuda:99999999999999999999\n",
            "c.yaml:3:1: device: must be auto, cpu, cuda, cuda:N or mps, not 'c",
        ),
        (f"{BASE}device: 0\n", "c.yaml:3:1: device: should be a valid string, not 0; quote it if it is text"),
        (f"{BASE}preprocess: {{type: model, crop: 1}}\n", "c.yaml:3:27: preprocess.crop: unknown key: `type: model` h"),
        (f"{BASE}preprocess: {{type: imagenet, crop: '1'}}\n", "c.yaml:3:30: preprocess.crop: should be a valid integ"),
        (f"{BASE}model: {{type: torchvision, args: {{a: .inf}}}}\n", "c.yaml:3:35: model.args.a: is a number that a m"),
        (f"{BASE}observers: [progres]\n", "c.yaml:3:13: observers[0].type: no observer has the type 'progres'; did yo"),
        (f"{BASE}observers: progres\n", "c.yaml:3:1: observers.type: no observer has the type 'progres'; did you mean"),
        (f"{BASE}taps: 5\n", "c.yaml:3:1: taps: a tap is a string, but this was read as 5: quote it"),
        (f"{BASE}taps: [a, 5, b]\n", "c.yaml:3:11: taps[1]: a tap is a string, but this was read as 5: quote it"),
        (f"{BASE}taps: [a, 5.0, b]\n", "c.yaml:3:11: taps[1]: a tap is a string, but this was read as 5.0: quote it"),
        (f"{BASE}taps: [true]\n", "c.yaml:3:8: taps[0]: a tap is a string, but this was read as True: quote it"),
        (f"{BASE}taps: [null]\n", "c.yaml:3:8: taps[0]: a tap must be a string or a mapping with `layer`, not None"),
        (f"{BASE}taps: []\n", "c.yaml:3:1: taps: names no tap"),
        (f"{BASE}taps: {{}}\n", "c.yaml:3:1: taps: "),
        (f"{BASE}taps:\n", "c.yaml:3:1: taps: must be a tap, a list of taps, or a mapping of name to tap, not None"),
        (f"{BASE}taps: {{layer: a}}\n", "c.yaml:3:1: taps: the long form of a tap belongs in a list"),
        (f"{BASE}taps:\n- a\n- 'b[0'\n- c\n", "c.yaml:5:3: taps[1]: the tap 'b[0', at character 2: "),
        (f"{BASE}taps:\n- a\n- layer: b\n  cal: 1\n- c\n", "c.yaml:6:3: taps[1].cal: unknown key; did you mean 'call'"),
        (f"{BASE}taps:\n- a\n- layer: b\n  call: x\n", "c.yaml:6:3: taps[1].call: "),
        (f"{BASE}taps:\n- layer: b\n  select: [a, -1]\n", "c.yaml:5:15: taps[0].select[1]: "),
        (f"{BASE}taps:\n- layer: b\n  select: -1\n", "c.yaml:5:3: taps[0].select: "),
        (f"{BASE}taps:\n- layer: b\n  dtype: float8\n", "c.yaml:5:3: taps[0].dtype: should be 'float16', "),
        (f"{BASE}taps:\n- name: b\n", "c.yaml:4:3: taps[0].layer: is required"),
        (f"{BASE}taps:\n  a: x\n  b: {{layer: y,\n    cal: 1}}\n", "c.yaml:6:5: taps.b.cal: unknown key; did you mean"),
        (f"{BASE}taps:\n  a: x\n  b: 5\n", "c.yaml:5:3: taps.b: a tap is a string, but this was read as 5: quote it"),
        (f"{BASE}taps:\n- layer: b\n  reduce: [flatten,\n   meen_pool]\n", "c.yaml:6:4: taps[0].reduce[1].type: no re"),
        (f"{BASE}taps:\n- layer: b\n  reduce: flaten\n", "c.yaml:5:3: taps[0].reduce.type: no reducer has the type 'f"),
        (f"{BASE}taps:\n- layer: b\n  reduce:\n    type: flatten\n    x: 1\n", "c.yaml:7:5: taps[0].reduce.x: unknown"),
        (f"{BASE}taps:\n- layer: b\n  reduce:\n  - a: 1\n", "c.yaml:6:5: taps[0].reduce[0]: has no `type`"),
        (f"{BASE}taps:\n  e:\n    layer: b\n    reduce: [flaten]\n", "c.yaml:6:14: taps.e.reduce[0].type: no reducer"),
        ("source: {type: many, pair: [1, x]}\nsink: memory\n", "c.yaml:1:32: source.pair[1]: should be a valid intege"),
        ("source: {type: many, numbers: [1, x]}\nsink: memory\n", "c.yaml:1:35: source.numbers[1]: should be a valid"),
        ("source: {type: many, numbers: x}\nsink: memory\n", "c.yaml:1:22: source.numbers: should be a valid "),
        ("source: {type: many, inner: {a: 1}}\nsink: memory\n", "c.yaml:1:30: source.inner.a: should be a valid strin"),
        ("source: {type: strict}\nsink: memory\n", "c.yaml:1:1: source.inner: is required"),
        ("source: {type: strict, inner: {}}\nsink: memory\n", "c.yaml:1:24: source.inner.depth: is required"),
        ("source: {type: strict, inner: {deep: 1}}\nsink: memory\n", "c.yaml:1:32: source.inner.deep: unknown key"),
        ("source: {type: samples, path: x}\nsink: memory\n", "c.yaml:1:25: source.path: unknown key: the source sampl"),
        (f"{BASE}limit: {'9' * 5_000}\n", "c.yaml:3:8: a number of 5,000 digits"),
        (f"{BASE}limit: '{'x' * 500_000}'\n", "c.yaml:3:1: limit: should be a valid integer, not 'xxx"),
        (f'{BASE}"\\e[31m\\n": 1\n', "c.yaml:3:1: \\x1b[31m\\n: unknown key"),
    ],
)
def test_mistake_is_told_where_it_stands(refused, text, message):
    found = refused(text)
    assert found.startswith(message)
    assert len(found) < 3_000


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"source": "samples", "sink": "memory", "taps": (x for x in "ab")}, "config: taps: must be plain data"),
        ({"source": {"type": "folder", "path": object()}, "sink": "memory"}, "config: source.path: must be plain data"),
        ({"source": "samples", "sink": "memory", "batch_size": 10**200}, "config: batch_size: is a number that a mani"),
        ({"source": "samples", "sink": "memory", 5: 1}, "config: 5: unknown key"),
        ({"source": "samples"}, "config: sink: is required"),
        ({"source": {"type": "folder", "path": "\ud800"}, "sink": "memory"}, "config: source.path: '\\ud800' is not U"),
    ],
)
def test_mistake_in_a_mapping_is_told_by_its_key(refused, config, message):
    assert refused(config).startswith(message)


def test_mapping_inside_itself_is_refused(refused):
    circle: dict[str, object] = {"source": "samples", "sink": "memory"}
    circle["model"] = circle
    assert "is nested more than 32 deep" in refused(circle)


def test_plugin_whose_parameters_raise_is_named(tmp_path):
    (tmp_path / "odd.py").write_text(
        "import layertap\nfrom pydantic import field_validator\n"
        "class Odd(layertap.Source):\n"
        "    class Params(layertap.Params):\n"
        "        x: int = 0\n"
        "        @field_validator('x')\n"
        "        @classmethod\n"
        "        def check(cls, x):\n"
        "            raise KeyError('oops')\n"
        "    def records(self):\n        yield\n"
        "@layertap.hookimpl\ndef register_sources(register):\n    register('odd', Odd)\n"
    )
    own = Plugins.load([str(tmp_path / "odd.py")])
    with pytest.raises(layertap.PluginError, match=r"the source Odd raised KeyError: 'oops' \(at .*odd\.py:9\)"):
        load_config({"source": {"type": "odd", "x": 1}, "sink": "memory"}, None, own)


# --- at the end of the public door


@pytest.mark.parametrize("device", ["cuda:9", "cuda", "mps"])
def test_absent_device_is_a_config_error_before_any_output(tmp_path, device):
    import torch

    if (device == "mps" and torch.backends.mps.is_available()) or (device == "cuda" and torch.cuda.is_available()):
        pytest.skip(f"{device} is here")
    config = {"source": "samples", "sink": {"type": "npy", "path": str(tmp_path / "out")}, "device": device}
    with pytest.raises(ConfigError, match=f"^config: device: '{device}': no such device") as caught:
        layertap.run(config)
    assert caught.value.code == 2
    assert not (tmp_path / "out").exists()


def test_fault_of_a_part_is_told_where_the_part_stands(tmp_path):
    (tmp_path / "c.yaml").write_text("\n\nsource: {type: folder, path: absent}\nsink: {type: npy, path: OUT}\n")
    with pytest.raises(ConfigError) as caught:
        layertap.run(tmp_path / "c.yaml", overrides={"sink.path": str(tmp_path / "out")})
    assert str(caught.value).startswith(f"{tmp_path}/c.yaml:3:24: source.path: cannot use 'absent'")
    assert not (tmp_path / "out").exists()


# --- hostile files

CANARY = "open('canary','w')"
HOSTILE = {
    "tag": f'{BASE}model: !!python/object/apply:builtins.exec ["{CANARY}"]\n',
    "tag of a new object": f"{BASE}limit: !!python/object/new:type {{args: [a, [], {{}}]}}\n",
    "tag of a name": f"{BASE}taps: [!!python/name:os.system]\n",
    "tag of a module": "source: !!python/module:antigravity\nsink: memory\n",
    "type that is a dotted path": "source: os.system\nsink: {type: npy, path: f}\n",
    "type that is an expression": f"source: {{type: \"__import__('builtins').exec({CANARY!r})\"}}\nsink: memory\n",
    "type that is a module": f"{BASE}model: {{type: 'canary_module:Class'}}\n",
    "type that is a file": "source: ./canary_module.py\nsink: memory\n",
    "model that is a module": f"{BASE}model: canary_module/Class\n",
    "observer that is a builtin": f'{BASE}observers: [{{type: builtins.exec, code: "{CANARY}"}}]\n',
    "reducer that is a callable": f"{BASE}taps: [{{layer: a, reduce: ['canary_module:run']}}]\n",
    "target of hydra": f"{BASE}_target_: canary_module.run\n",
    "plugins key": f"{BASE}plugins: [canary_module.py]\n",
    "plugin key": f"{BASE}plugin: canary_module\n",
    "include": f"{BASE}include: /etc/passwd\n",
    "logging dictionary": f"{BASE}logging: {{handlers: {{a: {{(): canary_module.run}}}}}}\n",
    "params that call": "source: {type: samples, (): canary_module.run}\nsink: memory\n",
    "merge key": "a: &a {source: samples}\n<<: *a\nsink: memory\n",
    "template": "source: {type: '${oc.env:HOME}'}\nsink: memory\n",
    "jinja": "source: {type: \"{{ cycler.__init__.__globals__.os.popen('touch canary') }}\"}\nsink: memory\n",
}
WATCH = """
import builtins, json, os, sys
from layertap.config.loading import load_config
from layertap.errors import ConfigError
from layertap.plugins import Plugins
plugins = Plugins.load()
assert list(plugins)  # a plugin is imported when its type is used: have all of them imported before
ready = False
seen = []
def hook(event, arguments):
    if not ready:
        return
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    runs = {"import", "exec", "compile", "marshal", "os", "subprocess", "socket", "shutil", "ctypes", "pickle"}
    if writes or event.split(".")[0] in runs:
        seen.append([event, str(arguments[0])])
def attempt(path):
    try:
        load_config(path, None, plugins)
        return "loaded"
    except ConfigError as error:
        return str(error)
attempt(sys.argv[1])  # once unwatched: what the library itself still loads lazily
sys.addaudithook(hook)
ready = True
said = {path: attempt(path) for path in sys.argv[1:]}
ready = False
print(json.dumps([said, seen]))
"""


def test_hostile_files_run_nothing(tmp_path):
    (tmp_path / "canary_module.py").write_text("open('canary', 'w')\nclass Class: ...\ndef run(*a, **k): ...\n")
    paths = []
    for number, text in enumerate(HOSTILE.values()):
        paths.append(f"{number}.yaml")
        (tmp_path / paths[-1]).write_text(text)
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", WATCH, *paths], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    said, seen = json.loads(done.stdout)
    assert [path for path in paths if not said[path].startswith(f"{path}:")] == []
    assert seen == []
    assert not (tmp_path / "canary").exists()
