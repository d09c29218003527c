"""The promises of an observer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from layertap.contracts import Observer
from layertap.errors import LayertapError, StoreError
from layertap.pipeline.events import Events
from layertap.records import RunInfo
from layertap.testing import trial
from layertap.testing.promises import Suite, promise
from layertap.testing.sinks import values_of

if TYPE_CHECKING:
    import pytest

_CURE = "catch errors inside the observer: one that raises ends the run with an error that names it"


class ObserverSuite(Suite[Observer]):
    """An observer only watches: it does not change the run, and leaves stdout to the command line."""

    kind = Observer

    def test_its_methods_are_events(self) -> None:
        try:
            Events([self.plugin()])
        except LayertapError as error:
            promise(False, str(error), "name the methods and their arguments as in layertap.Observer")

    def test_run_with_it_is_the_run_without_it(self, tmp_path: Path) -> None:
        observer = self.plugin()
        plugins = trial.tables(observer=type(observer))
        trial.run(plugins, trial.npy(tmp_path / "without"))
        try:
            trial.run(plugins, trial.npy(tmp_path / "with"), observers=[trial.spec(observer)])
        except LayertapError as error:
            promise(False, str(error), _CURE)
        promise(
            values_of(tmp_path / "without") == values_of(tmp_path / "with"),
            "a run with it writes different rows from a run without it",
            "change nothing that an event passes",
        )

    def test_run_that_ends_in_an_error_is_watched_to_its_end(self, tmp_path: Path) -> None:
        self._send("run_started, then run_finished with an error", trial.run_info(path=tmp_path), started=True)

    def test_end_may_come_without_a_start(self, tmp_path: Path) -> None:
        # Another observer may have raised before this one received the start.
        self._send("run_finished alone", trial.run_info(path=tmp_path), started=False)

    def test_stdout_is_left_alone(self, capfd: pytest.CaptureFixture[str]) -> None:
        observer = self.plugin()
        capfd.readouterr()
        trial.run(trial.tables(observer=type(observer)), "discard", observers=[trial.spec(observer)])
        printed = capfd.readouterr().out
        promise(
            not printed,
            f"it prints {printed[:60]!r} to stdout, where `layertap run --json` prints its report",
            "print to stderr, or write a file that a parameter names",
        )

    def _send(self, what: str, run: RunInfo, *, started: bool) -> None:
        try:
            events = Events([self.plugin()])
            if started:
                events.run_started(run)
                events.batch_done(run, 2)
            error = StoreError("the disk is full")
            events.run_finished(run, None, error)
        except LayertapError as fault:
            promise(False, f"after {what}: {fault}", _CURE)
        notes = getattr(error, "__notes__", [])
        promise(not notes, f"after {what}: {notes}", _CURE)
