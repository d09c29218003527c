"""Observers: built from the configuration, called in order, and what becomes of a run when one of them raises."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import layertap
from layertap.pipeline.events import Events

TINY = str(Path(__file__).parents[1] / "outsider" / "tiny.py")

OBSERVERS = '''
from pydantic import Field
import layertap

class Plain(layertap.Observer):
    """Writes down what it is told; its methods have no decorator."""
    class Params(layertap.Params):
        path: str
        name: str = "plain"
        raises: str = ""
    def tell(self, event, *facts):
        with open(self.params.path, "a") as file:
            print(self.params.name, event, *facts, file=file)
        if event == self.params.raises:
            raise RuntimeError("out of ink\\nand paper")
    def run_started(self, run):
        self.tell("run_started", run.planned, run.resumed)
    def image_failed(self, run, record, reason):
        self.tell("image_failed", record.id, reason)
    def batch_done(self, run, count):
        self.tell("batch_done", count)
    def shard_committed(self, run, number):
        self.tell("shard_committed", number)
    def run_finished(self, run, report, error):
        self.tell("run_finished", report and report.kept, type(error).__name__)

class Decorated(layertap.Observer):
    """Some of the events, with the decorator, with fewer arguments, and a name of ours for something else."""
    class Params(layertap.Params):
        path: str
    def __init__(self, params=None):
        super().__init__(params)
        self.batch_done = 0
        self.shard_committed = [].append
    @layertap.hookimpl
    def run_finished(self, report):
        with open(self.params.path, "a") as file:
            print("decorated run_finished", self.batch_done, file=file)
    @staticmethod
    def image_failed(reason):
        pass

class Misspelt(layertap.Observer):
    @layertap.hookimpl
    def run_finnished(self): ...

class Greedy(layertap.Observer):
    def batch_done(self, run, number): ...

class Wrapping(layertap.Observer):
    @layertap.hookimpl(wrapper=True)
    def batch_done(self):
        return (yield)

class Eager(Plain):
    @layertap.hookimpl(tryfirst=True)
    def batch_done(self, count):
        self.tell("eager", count)

class Renamed(Plain):
    def batch_done(self): ...
    @layertap.hookimpl(specname="batch_done")
    def counted(self, count):
        self.tell("counted", count)

class Listed(layertap.Source):
    """Images of one colour; the one called `bad` is none."""
    class Params(layertap.Params):
        names: list[str] = ["a", "b", "c", "d", "e"]
    def records(self):
        for name in self.params.names:
            yield layertap.ImageRecord(name, image if name != "bad" else (lambda: b"no image"))

def image():
    from PIL import Image
    return Image.new("RGB", (8, 8))

@layertap.hookimpl
def register_observers(register):
    for cls in (Plain, Decorated, Misspelt, Greedy, Wrapping, Eager, Renamed):
        register(cls.__name__.lower(), cls)

@layertap.hookimpl
def register_sources(register):
    register("listed", Listed)
'''


@pytest.fixture
def run(tmp_path):
    """Runs with observers that write to `log`, and gives the lines they wrote."""
    (tmp_path / "observers.py").write_text(OBSERVERS)
    log = tmp_path / "log"

    def run(*observers, expect=None, **config):
        log.write_text("")
        wrong = ("misspelt", "greedy", "wrapping")
        observers = [{**o, **({} if o["type"] in wrong else {"path": str(log)})} for o in observers]
        config = {"model": "tiny", "taps": "features.2", "source": "listed", "sink": "discard", **config}
        config |= {"observers": observers, "device": "cpu", "batch_size": 2, "shard_rows": 4}
        own = [str(tmp_path / "observers.py"), TINY]
        if expect is None:
            layertap.run(config, plugins=own)
            return log.read_text().splitlines()
        with pytest.raises(expect) as caught:
            layertap.run(config, plugins=own)
        return caught.value, log.read_text().splitlines()

    return run


def test_observers_are_told_everything_in_the_order_written(run):
    lines = run(
        {"type": "plain", "name": "first"},
        {"type": "plain", "name": "second"},
        source={"type": "listed", "names": ["a", "b", "c", "bad", "e"]},
    )
    events = ["run_started 5 0", "batch_done 2", "image_failed bad corrupt", "batch_done 2", "batch_done 1"]
    told = [line.removeprefix("first ") for line in lines if line.startswith("first ")]
    reasons = [line for line in told if line.startswith("image_failed bad ")]
    assert len(reasons) == 1
    assert [line.split()[0] for line in told] == [
        *(event.split()[0] for event in events),
        "shard_committed",
        "shard_committed",
        "run_finished",
    ]
    assert [line for line in told if not line.startswith("image_failed")] == [
        "run_started 5 0",
        "batch_done 2",
        "batch_done 2",
        "batch_done 1",
        "shard_committed 0",
        "shard_committed 1",
        "run_finished 4 NoneType",
    ]
    assert lines == [f"{name} {event}" for event in told for name in ("first", "second")]


def test_decorated_methods_work_and_other_attributes_are_let_be(run):
    assert run({"type": "decorated"}, source={"type": "listed", "names": ["a", "bad"]}) == ["decorated run_finished 0"]


@pytest.mark.parametrize("event", ["run_started", "image_failed", "batch_done", "shard_committed"])
def test_observer_that_raises_ends_the_run(run, event):
    source = {"type": "listed", "names": ["bad", "b", "c", "d", "e"]}
    error, lines = run({"type": "plain", "raises": event}, source=source, expect=layertap.PluginError)
    assert error.code == 1
    assert str(error).startswith("config: observers[0]: the observer Plain raised RuntimeError: out of ink (at ")
    assert lines[0] == "plain run_started 5 0"
    if event != "run_started":
        assert lines[-1] == "plain run_finished None PluginError"


def test_observer_that_raises_at_the_end_lets_the_others_hear_of_it(run):
    observers = [{"type": "plain", "name": "first", "raises": "run_finished"}, {"type": "plain", "name": "second"}]
    error, lines = run(*observers, expect=layertap.PluginError)
    assert "the observer Plain raised RuntimeError: out of ink" in str(error)
    assert lines[-2:] == ["first run_finished 5 NoneType", "second run_finished 5 NoneType"]


def test_observer_that_raises_does_not_hide_why_a_run_ended(run):
    source = {"type": "listed", "names": ["a", "bad"]}
    observer = {"type": "plain", "raises": "run_finished"}
    error, lines = run(observer, source=source, on_error="fail", expect=layertap.ImageError)
    assert "'bad' cannot be used" in str(error)
    assert error.__notes__[0].startswith("layertap: afterwards observers[0]: the observer Plain raised RuntimeError")
    assert lines[-1] == "plain run_finished None ImageError"


@pytest.mark.parametrize(
    ("observer", "said"),
    [("misspelt", "the observer Misspelt has a method 'run_finnished', which is not an event; did you mean"),
     ("greedy", "the observer Greedy raised PluginValidationError: Plugin "),
     ("wrapping", "the observer Wrapping raised PluginValidationError: Plugin ")],
)  # fmt: skip
def test_event_that_does_not_exist_is_told_before_the_run(run, tmp_path, observer, said):
    sink = {"type": "npy", "path": str(tmp_path / "out")}
    error, _ = run({"type": observer}, sink=sink, expect=layertap.PluginError)
    assert str(error).startswith(f"config: observers[0]: {said}")
    assert not (tmp_path / "out").exists()


def test_no_observer_is_fine(run):
    assert run() == []


def test_method_named_almost_like_an_event_is_told():
    class Nearly(layertap.Observer):
        def batch_don(self, run, count):
            raise AssertionError

    with pytest.raises(layertap.PluginError, match="'batch_don', which is not an event; did you mean 'batch_done'"):
        Events([Nearly()])


def test_options_of_a_decorated_method_hold_among_all_observers(run):
    lines = run({"type": "plain", "name": "first"}, {"type": "eager", "name": "second"}, source={"type": "listed"})
    batches = [line for line in lines if line.split()[1] in ("batch_done", "eager")]
    assert batches[:2] == ["second eager 2", "first batch_done 2"]


def test_method_of_another_name_may_take_an_event(run):
    assert "own counted 2" in run({"type": "renamed", "name": "own"})


@pytest.mark.parametrize("event", ["run_started", "image_failed", "batch_done", "shard_committed"])
def test_observer_that_raises_keeps_no_event_from_the_others(run, event):
    source = {"type": "listed", "names": ["bad", "b", "c", "d", "e"]}
    observers = [{"type": "plain", "name": "first", "raises": event}, {"type": "plain", "name": "second"}]
    _, lines = run(*observers, source=source, expect=layertap.PluginError)
    (at,) = [number for number, line in enumerate(lines) if line.startswith(f"first {event} ")]
    assert lines[at + 1] == lines[at].replace("first", "second")
    assert [line.split()[1] for line in lines[-2:]] == ["run_finished", "run_finished"]


def test_run_has_one_manager_for_all_its_observers():
    class Counts(layertap.Observer):
        count = 0

        def batch_done(self, count):
            self.count += count

    observers = [Counts(), Counts(), layertap.Observer()]
    events = Events(observers)
    assert len(events._manager.hook.batch_done.get_hookimpls()) == 2
    events.batch_done(None, 5)
    assert [getattr(observer, "count", None) for observer in observers] == [5, 5, None]


def test_every_event_has_a_method_with_types_and_a_docstring_that_does_nothing():
    events = {name: method for name, method in vars(layertap.Observer).items() if not name.startswith("_")}
    during = ["image_failed", "batch_done", "shard_committed", "worker_reported"]
    assert list(events) == ["run_started", *during, "run_finished"]
    for name, method in events.items():
        arguments = [word for word in inspect.signature(method).parameters if word != "self"]
        assert set(method.__annotations__) == {*arguments, "return"}
        assert method.__doc__.startswith("When ")
        assert method(layertap.Observer(), *arguments) is None
        assert inspect.signature(getattr(Events, name)).parameters.keys() == {"self", *arguments}
