"""Every error knows where in the configuration it belongs, and one run reports every fault that can be known."""

from __future__ import annotations

import pickle
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import layertap
from layertap.cli.main import main
from layertap.errors import ConfigError, LayertapError, PluginError, TapError

TINY = str(Path(__file__).parents[1] / "tiny.py")

# Plugins that find fault with their own parameters, each in another call of the core.
STRANGER = """
import layertap
from pydantic import Field

class Odd(layertap.ConfigError):
    def __init__(self, key, *more):
        super().__init__(f"{key!r} is odd; the sink is not", where=("steps", 1, key))

class Source(layertap.Source):
    class Params(layertap.Params):
        path: str = "a"
        steps: list[dict[str, int]] = [{}, {}]
        fails: bool = False
    def records(self):
        if self.params.fails:
            raise Odd("size", 1, 2)
        yield layertap.ImageRecord("a", b"")

class Sink(layertap.Sink):
    class Params(layertap.Params):
        path: str = "out"
        at: str = Field("open", description="which call fails")
    def _fail(self, at):
        if at == self.params.at:
            raise layertap.ConfigError(f"cannot {at}", where=("path",))
    def open(self, run):
        self._fail("open")
    def write(self, shard):
        self._fail("write")
    def close(self, report):
        self._fail("close")

class Reducer(layertap.Reducer):
    class Params(layertap.Params):
        count: int = 0
        at: str = "bind"
    def bind(self, tap):
        if self.params.at == "bind":
            raise layertap.TapError("is too many", where=("count",))
    def __call__(self, activation):
        if self.params.at == "call":
            raise layertap.TapError("is too many", where=("count",))
        return activation.sum(0) if self.params.at == "sum" else activation

class Observer(layertap.Observer):
    class Params(layertap.Params):
        path: str = ""
    def run_started(self, run):
        raise layertap.ConfigError("cannot be written", where=("path",))

class Preprocessor(layertap.Preprocessor):
    class Params(layertap.Params):
        size: int = 3
    def prepare(self, image):
        raise layertap.ConfigError("is not a size", where=("size",))

class Model(layertap.ModelProvider):
    class Params(layertap.Params):
        weights: str = "x"
    def load(self):
        raise layertap.WeightsError("'out' is missing", where=("weights",))

@layertap.hookimpl
def register_sources(register):
    register("stranger", Source)
@layertap.hookimpl
def register_sinks(register):
    register("stranger", Sink)
@layertap.hookimpl
def register_reducers(register):
    register("stranger", Reducer)
@layertap.hookimpl
def register_observers(register):
    register("stranger", Observer)
@layertap.hookimpl
def register_preprocessors(register):
    register("stranger", Preprocessor)
@layertap.hookimpl
def register_models(register):
    register("stranger", Model)
"""

LINES = {
    "model": "tiny",
    "taps": "[features.1]",
    "source": "{type: folder, path: images}",
    "sink": "{type: npy, path: out}",
    "device": "cpu",
    "batch_size": "2",
}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A working directory with two images and strange plugins."""
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    for number in range(2):
        Image.effect_noise((20, 20), 50 + number).save(f"images/{number}.png")
    np.save("images.npy", np.zeros((2, 20, 20, 3), "uint8"))
    Path("stranger.py").write_text(STRANGER)


def write(**lines):
    """Writes c.yaml: an honest configuration with these lines in the place of its own; more come last."""
    Path("c.yaml").write_text("".join(f"{key}: {value}\n" for key, value in {**LINES, **lines}.items()))


def fault_of(**lines):
    """The error that `layertap.run` raises for a configuration with these lines."""
    write(**lines)
    with pytest.raises(LayertapError) as caught:
        layertap.run("c.yaml", plugins=[TINY, "stranger.py"])
    assert not Path("out").exists()
    return caught.value


def told(monkeypatch, capsys, *arguments):
    """The exit code of a command line and the lines that it leaves on stderr."""
    monkeypatch.setattr(sys, "argv", ["layertap", *arguments])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(SystemExit) as caught:
            main()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return caught.value.code, capsys.readouterr().err.splitlines()


def test_tap_without_a_layer_is_blamed_though_the_advice_names_another():
    write(model="{type: torchvision, name: alexnet, weights: random}", taps="[classifier.1, classifier.16]")
    with pytest.raises(TapError) as caught:
        layertap.run("c.yaml")
    error = caught.value
    assert str(error).startswith("c.yaml:2:22: taps[1]: the model has no layer 'classifier.16'; did you mean 'classifi")
    assert (error.where, error.place, error.code) == (("taps", 1), "c.yaml:2:22", 2)


@pytest.mark.parametrize(
    ("taps", "line", "where", "message"),
    [
        ("{a: features.0, b: nowhere}", "c.yaml:2:23", ("taps", "b"), "the model has no layer"),
        ("[{layer: nowhere, name: features.0}]", "c.yaml:2:8", ("taps", 0), "the model has no layer"),
        ("nowhere", "c.yaml:2:1", ("taps",), "the model has no layer"),
        ("[features.0, 'head.*']", "c.yaml:2:20", ("taps", 1), "no layer matches"),
        ("[features.0, 'features.0:7']", "c.yaml:2:20", ("taps", 1), "'features.0:7': layer 'features.0' runs 1 times"),
        ("[features.0, 'features.1[x]']", "c.yaml:2:20", ("taps", 1), "tap 'features.1' has no [x]"),
        ("[features.0, {layer: features.0}]", "c.yaml:2:20", ("taps", 1), "two taps are named 'features.0'"),
        ("[features.0, {layer: features.*, name: b}]", "c.yaml:2:20", ("taps", 1), "'features.*' matches 5 layers"),
        (
            "[features.0, {layer: classifier, reduce: [flatten, cls_token]}]",
            "c.yaml:2:58",
            ("taps", 1, "reduce", 1),
            "cls_token: the layer 'classifier'",
        ),
        (
            "[features.0, {layer: classifier, reduce: cls_token}]",
            "c.yaml:2:40",
            ("taps", 1, "reduce"),
            "cls_token: the layer 'classifier'",
        ),
        (
            "{a: features.0, b: {layer: classifier, reduce: [{type: stranger, count: 3}]}}",
            "c.yaml:2:72",
            ("taps", "b", "reduce", 0, "count"),
            "is too many",
        ),
        (
            "[features.0, {layer: classifier, reduce: [{type: stranger, at: call, count: 3}]}]",
            "c.yaml:2:76",
            ("taps", 1, "reduce", 0, "count"),
            "is too many",
        ),
        (
            "[features.0, {layer: classifier, reduce: [{type: stranger, at: sum}]}]",
            "c.yaml:2:20",
            ("taps", 1),
            "tap 'classifier': its reducers made (10,)",
        ),
    ],
)
def test_fault_of_a_tap_is_reported_where_the_tap_was_written(taps, line, where, message):
    error = fault_of(taps=taps)
    assert (error.place, error.where, error.code) == (line, where, 2)
    assert error.message.startswith(message)


@pytest.mark.parametrize(
    ("lines", "line", "where"),
    [
        (
            {"source": "{type: stranger, fails: true, steps: [{}, {size: 1}]}"},
            "c.yaml:3:52",
            ("source", "steps", 1, "size"),
        ),
        ({"source": "{type: stranger, fails: true}"}, "c.yaml:3:1", ("source", "steps", 1, "size")),
        ({"sink": "{type: stranger, at: open, path: x}"}, "c.yaml:4:34", ("sink", "path")),
        ({"sink": "{type: stranger, at: write, path: x}"}, "c.yaml:4:35", ("sink", "path")),
        ({"sink": "{type: stranger, at: close, path: x}"}, "c.yaml:4:35", ("sink", "path")),
        ({"model": "{type: stranger, weights: y}"}, "c.yaml:1:25", ("model", "weights")),
        ({"model": "stranger"}, "c.yaml:1:1", ("model", "weights")),
        ({"preprocess": "{type: stranger, size: 4}"}, "c.yaml:7:30", ("preprocess", "size")),
        ({"sink": "memory", "observers": "[{type: stranger, path: x}]"}, "c.yaml:7:30", ("observers", 0, "path")),
        ({"sink": "memory", "observers": "{type: stranger, path: x}"}, "c.yaml:7:29", ("observers", "path")),
        ({"sink": "{type: npy, path: images/out}"}, "c.yaml:4:19", ("sink", "path")),
        ({"source": "{type: manifest, path: c.yaml}"}, "c.yaml:3:1", ("source", "format")),
        ({"source": "{type: array, path: images.npy, labels: c.yaml}"}, "c.yaml:3:41", ("source", "labels")),
        ({"source": "{type: parquet, path: c.yaml}"}, "c.yaml:3:25", ("source", "path")),
        ({"source": "{type: torchvision_dataset, name: None}"}, "c.yaml:3:37", ("source", "name")),
        (
            {"model": "{type: torchvision, name: alexnet, weights: random, args: {a: 1}}"},
            "c.yaml:1:60",
            ("model", "args"),
        ),
        ({"device": "cuda:99"}, "c.yaml:5:1", ("device",)),
    ],
)
def test_fault_that_a_part_finds_with_its_own_parameter_is_reported_at_that_parameter(lines, line, where):
    error = fault_of(**lines)
    assert (error.place, error.where, error.code) == (line, where, 2)
    assert error.place not in error.message


def test_error_of_a_plugin_says_its_key_without_a_file():
    with pytest.raises(ConfigError) as caught:
        layertap.run({"source": {"type": "folder", "path": "absent"}, "sink": "memory"})
    assert str(caught.value).startswith("config: source.path: cannot use 'absent'")
    with pytest.raises(ConfigError, match=r"^source\.path: cannot use 'absent'"):
        next(layertap.extract("tiny", "absent", taps=["features.1"], plugins=[TINY]))


def test_three_faults_in_one_file_are_three_lines_in_one_run(monkeypatch, capsys):
    write(taps="[features.1, 'features.[']", source="{type: foldr, path: images}", btach_size=3)
    code, lines = told(monkeypatch, capsys, "run", "c.yaml", "--plugin", TINY)
    assert code == 2
    assert [line.split(": ")[:2] for line in lines] == [
        ["c.yaml:2:20", "taps[1]"],
        ["c.yaml:3:10", "source.type"],
        ["c.yaml:7:1", "btach_size"],
    ]


def test_every_static_fault_and_every_fault_of_a_plugin_is_reported_in_the_order_of_the_file():
    error = fault_of(
        model="{type: tiny, seed: x, nmae: y}",
        taps="[{layer: a, cal: 1, dtype: int3}, 'b[', {layer: c, reduce: [flaten, {type: flatten, x: 1}]}, 5]",
        source="{path: images}",
        sink="{type: npy}",
        batch_size="many",
        shard_rows=0,
        observers="[progres, 5]",
        colour=1,
    )
    assert isinstance(error, ConfigError)
    assert [fault.where for fault in error.faults] == [
        ("model", "seed"),
        ("model", "nmae"),
        ("taps", 0, "cal"),
        ("taps", 0, "dtype"),
        ("taps", 1),
        ("taps", 2, "reduce", 0, "type"),
        ("taps", 2, "reduce", 1, "x"),
        ("taps", 3),
        ("source",),
        ("sink", "path"),
        ("batch_size",),
        ("shard_rows",),
        ("observers", 0, "type"),
        ("observers", 1),
        ("colour",),
    ]
    assert str(error).splitlines() == [str(fault) for fault in error.faults]
    assert all(fault.place.startswith("c.yaml:") and fault.code == 2 for fault in error.faults)


def test_every_tap_that_names_no_layer_is_reported():
    error = fault_of(taps="[nowhere, features.1, 're:head.*', {layer: features.2, name: features.1}]")
    assert isinstance(error, TapError)
    assert [fault.where for fault in error.faults] == [("taps", 0), ("taps", 2), ("taps", 3)]


def test_every_tap_that_the_probe_refuses_is_reported():
    error = fault_of(taps="{a: 'features.0:3', b: features.1, c: {layer: features.2, reduce: stranger}}")
    assert [fault.where for fault in error.faults] == [("taps", "a"), ("taps", "c", "reduce", "count")]


def test_every_override_that_cannot_be_laid_over_is_reported(monkeypatch, capsys):
    write()
    code, lines = told(monkeypatch, capsys, "run", "c.yaml", "--plugin", TINY, "btch_size=1", "taps.x=1", "limit=2")
    assert code == 2
    assert [line.split(": ")[:2] for line in lines] == [["command line", "btch_size"], ["command line", "taps.x"]]


def test_faults_of_the_file_and_of_the_command_line_are_reported_together(monkeypatch, capsys):
    write(limit="x")
    _, lines = told(monkeypatch, capsys, "run", "c.yaml", "--plugin", TINY, "source.pth=1", "taps=[a, 'b[']")
    assert [line.split(": ")[:2] for line in lines] == [
        ["command line", "taps[1]"],
        ["command line", "source.pth"],
        ["c.yaml:7:1", "limit"],
    ]


@pytest.mark.parametrize(
    ("lines", "where"),
    [
        # One wrong value is one fault, however many types it may have.
        ({"batch_size": "[x]"}, [("batch_size",)]),
        ({"max_failures": "many"}, [("max_failures",)]),
        ({"taps": "[{layer: a, select: [-1, b, -2]}]"}, [("taps", 0, "select", 0), ("taps", 0, "select", 2)]),
        # A misspelt key is why the right one is missing; any other one is not.
        ({"source": "{type: folder, pth: images}"}, [("source", "pth")]),
        ({"source": "{type: folder, colour: red}"}, [("source", "path"), ("source", "colour")]),
        # What depends on a broken value is not blamed for it.
        ({"batch_size": "x", "shard_rows": "3"}, [("batch_size",)]),
        ({"profile": "{tf23: true, resize: best}"}, [("profile", "tf23"), ("profile", "resize")]),
    ],
)
def test_one_mistake_is_one_fault(lines, where):
    assert sorted(fault.where for fault in fault_of(**lines).faults) == sorted(where)


def test_error_with_several_faults_survives_pickling():
    error = fault_of(limit="x", workers="y")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert [(fault.code, fault.where, fault.message) for fault in again.faults] == [
        (2, ("limit",), "should be a valid integer, not 'x'"),
        (2, ("workers",), "should be a valid integer, not 'y'"),
    ]


def test_taps_in_python_are_blamed_by_their_number_or_name():
    from tests.models import chain

    with pytest.raises(TapError, match=r"^taps\[1\]: the model has no layer 'x'"):
        layertap.tap(chain(), ["0", "x"])
    with pytest.raises(TapError, match=r"^taps\.second: the model has no layer 'x'"):
        layertap.tap(chain(), {"first": "0", "second": "x"})
    with pytest.raises(TapError, match=r"^the model has no layer 'x'"):
        layertap.tap(chain(), "x")
    with pytest.raises(TapError) as caught:
        layertap.tap(chain(), (name for name in ("0", "a[", "b:")))
    assert [fault.where for fault in caught.value.faults] == [("taps", 1), ("taps", 2)]


def test_plugin_that_breaks_is_reported_where_it_was_asked_for():
    Path("broken.py").write_text(
        "import layertap\nclass Broken(layertap.Reducer):\n    def __call__(self, activation):\n        return 1 / 0\n"
        "@layertap.hookimpl\ndef register_reducers(register):\n    register('broken', Broken)\n"
    )
    write(taps="[features.0, {layer: features.1, reduce: [flatten, broken]}]")
    with pytest.raises(PluginError) as caught:
        layertap.run("c.yaml", plugins=[TINY, "broken.py"])
    assert str(caught.value).startswith("c.yaml:2:58: taps[1].reduce[1]: the reducer Broken raised ZeroDivisionError")
    assert caught.value.code == 1
