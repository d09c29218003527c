"""A sink is told how its run ends: by `close`, or by `abort` where an error or an interrupt ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

import layertap
from tests.conftest import TINY
from tests.pipeline.test_pipeline import config

LEDGER = """
import time
import layertap

class Ledger(layertap.Sink):
    \"\"\"Writes down what it is called for.\"\"\"
    class Params(layertap.Params):
        log: str
        raises: str = ""

    def note(self, word):
        with open(self.params.log, "a") as file:
            print(word, file=file, flush=True)
        if self.params.raises == word.split()[0]:
            raise OSError("connection lost")

    def open(self, run):
        self.note("open")

    def write(self, shard):
        self.note("write")

    def close(self, report):
        self.note("close")

    def abort(self, error):
        self.note(f"abort {type(error).__name__}")


class FileLedger(layertap.FileSink):
    def save(self, shard, folder):
        raise OSError("disk on fire")

    def load(self, folder, tap): ...

    def abort(self, error):
        with open(self.params.path + ".log", "a") as file:
            print(f"abort {type(error).__name__}", file=file)


class Ends(layertap.Observer):
    class Params(layertap.Params):
        at: str
        slow: float = 0.0

    def at(self, event):
        if event == self.params.at:
            raise ValueError("no more")

    def run_started(self, run): self.at("run_started")
    def batch_done(self, run, count):
        time.sleep(self.params.slow)
        self.at("batch_done")
    def run_finished(self, run, report, error): self.at("run_finished")


class Hides(layertap.Reducer):
    def __call__(self, activation):
        if len(activation) == 4:  # as in a batch, and not in the probe
            raise KeyboardInterrupt
        return activation


@layertap.hookimpl
def register_sinks(register):
    register("ledger", Ledger)
    register("file_ledger", FileLedger)

@layertap.hookimpl
def register_observers(register):
    register("ends", Ends)

@layertap.hookimpl
def register_reducers(register):
    register("hides", Hides)
"""


@pytest.fixture
def ledger(tmp_path):
    """The plugin file, the sink's configuration, and a function that gives what the sink was called for."""
    (tmp_path / "ledger.py").write_text(LEDGER)
    log = tmp_path / "log"
    log.touch()
    return str(tmp_path / "ledger.py"), {"type": "ledger", "log": str(log)}, lambda: log.read_text().splitlines()


def run(photos, own, sink, expect=None, **changes):
    asked = config(photos, None, **{"sink": sink, "batch_size": 4, "shard_rows": 4, **changes})
    if expect is None:
        return layertap.run(asked, plugins=[TINY, own])
    with pytest.raises(expect) as caught:
        layertap.run(asked, plugins=[TINY, own])
    return caught.value


def test_run_that_finishes_closes_its_sink(photos, ledger):
    own, sink, calls = ledger
    run(photos, own, sink)
    assert calls() == ["open", *["write"] * 5, "close"]


@pytest.mark.parametrize(
    ("changes", "expect", "last"),
    [
        ({"observers": [{"type": "ends", "at": "run_started"}]}, layertap.PluginError, ["open", "abort PluginError"]),
        ({"observers": [{"type": "ends", "at": "batch_done"}]}, layertap.PluginError, ["open", "abort PluginError"]),
        ({"nonfinite": "fail", "taps": [{"layer": "classifier", "reduce": ["hides"]}]}, KeyboardInterrupt, None),
    ],
)
def test_error_or_interrupt_aborts_the_sink_once(photos, ledger, changes, expect, last):
    own, sink, calls = ledger
    run(photos, own, sink, expect, **changes)
    assert calls() == (last or ["open", "abort KeyboardInterrupt"])


def test_bad_image_aborts_the_sink(photos, ledger, tmp_path):
    own, sink, calls = ledger
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.jpg").write_text("no image")
    run(tmp_path / "bad", own, sink, layertap.ImageError, on_error="fail")
    assert calls() == ["open", "abort ImageError"]


def test_sink_that_fails_in_write_is_aborted(photos, ledger):
    own, sink, calls = ledger
    error = run(photos, own, {**sink, "raises": "write"}, layertap.PluginError)
    assert "the sink Ledger raised OSError: connection lost" in str(error)
    assert calls()[-1] == "abort PluginError"
    assert "close" not in calls()


@pytest.mark.parametrize(("raises", "calls_of_it"), [("open", ["open"]), ("close", ["open", *["write"] * 5, "close"])])
def test_sink_that_never_opened_or_has_closed_is_not_aborted(photos, ledger, raises, calls_of_it):
    own, sink, calls = ledger
    run(photos, own, {**sink, "raises": raises}, layertap.PluginError)
    assert calls() == calls_of_it


def test_observer_that_raises_at_the_end_does_not_abort_a_closed_sink(photos, ledger):
    own, sink, calls = ledger
    run(photos, own, sink, layertap.PluginError, observers=[{"type": "ends", "at": "run_finished"}])
    assert calls()[-1] == "close"


def test_abort_that_raises_does_not_hide_why_the_run_ended(photos, ledger, tmp_path):
    own, sink, calls = ledger
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.jpg").write_text("no image")
    error = run(tmp_path / "bad", own, {**sink, "raises": "abort"}, layertap.ImageError, on_error="fail")
    assert "'a.jpg' cannot be used" in str(error)
    assert error.__notes__[0].startswith("layertap: afterwards the sink Ledger raised OSError: connection lost (at ")
    assert calls() == ["open", "abort ImageError"]


def test_file_sink_is_aborted_too(photos, ledger, tmp_path):
    own, _, _ = ledger
    run(photos, own, {"type": "file_ledger", "path": str(tmp_path / "out")}, layertap.StoreError)
    assert (tmp_path / "out.log").read_text() == "abort StoreError\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_to_the_command_line_aborts_the_sink(photos, ledger, tmp_path, number):
    own, sink, calls = ledger
    changes = {"sink": {**sink, "raises": "abort"}, "batch_size": 1, "shard_rows": 1}
    asked = config(photos, None, **changes, observers=[{"type": "ends", "at": "", "slow": 0.5}])
    import yaml

    (tmp_path / "c.yaml").write_text(yaml.safe_dump(asked))
    command = [sys.executable, "-m", "layertap", "run", "c.yaml", "--plugin", TINY, "--plugin", own]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        while "write" not in calls() and process.poll() is None:
            time.sleep(0.05)
        os.kill(process.pid, number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert calls()[-1] == "abort Stopped"
    assert said.splitlines()[0].startswith("stopped; ")
    assert said.splitlines()[1].startswith("layertap: afterwards the sink Ledger raised OSError: connection lost")
