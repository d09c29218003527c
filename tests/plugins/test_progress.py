"""Progress counts the images, on a terminal as a bar and elsewhere in a few lines."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace

import pytest

import layertap
from layertap.records import RunInfo
from layertap_plugins.observers import progress
from layertap_plugins.observers.progress import Progress

RUN = RunInfo(
    id="run",
    planned=2_000,
    columns={},
    batch_size=64,
    shard_rows=1_024,
    device="cuda:0",
    path="features",
    config={},
    about={},
)


def record(name="a.jpg"):
    return layertap.ImageRecord(name, b"")


@pytest.fixture
def clock(monkeypatch):
    """A clock that does not move until a test moves it."""

    class Clock:
        now = 1_000.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


@pytest.fixture
def lines(capsys):
    """A function that gives the lines on stderr since its last call."""
    return lambda: capsys.readouterr().err.splitlines()


@contextmanager
def terminal(monkeypatch):
    """A real pseudo-terminal as stderr; yields a function that ends it and gives its contents."""
    master, slave = os.openpty()
    shown = bytearray()

    def read():
        try:
            while piece := os.read(master, 4_096):
                shown.extend(piece)
        except OSError:
            pass  # Linux reports this when the other end is closed

    reader = threading.Thread(target=read)
    reader.start()
    with open(slave, "w") as stderr, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stderr)
        patch.setenv("TERM", "xterm")
        patch.setenv("COLUMNS", "120")
        yield shown
    reader.join()
    os.close(master)


def test_its_methods_are_run_events():
    events = {name for name in vars(layertap.Observer) if not name.startswith("_")}
    assert {name for name in vars(Progress) if not name.startswith("_")} <= events


def test_lines_are_few_and_say_how_far_it_is(clock, lines):
    bar = Progress.of()
    bar.run_started(RUN)
    for _ in range(20):
        clock.now += 1
        bar.batch_done(RUN, 64)
    clock.now += 3.7
    bar.image_failed(RUN, record(), "truncated")
    bar.batch_done(RUN, 720)
    bar.run_finished(RUN, None, None)
    assert lines() == [
        "extracting 2000 images on cuda:0, batch size 64",
        "640 of 2000 images done, 64.0 images/s, 21 s left",
        "1280 of 2000 images done, 64.0 images/s, 11 s left",
        "failed: a.jpg: truncated",
    ]


def test_images_of_an_earlier_run_are_done_and_have_no_rate(clock, lines):
    run = replace(RUN, resumed=1_000)
    bar = Progress.of()
    bar.run_started(run)
    clock.now += 10
    bar.batch_done(run, 100)
    bar.run_finished(run, None, None)
    assert lines() == [
        "extracting 2000 images on cuda:0, batch size 64, 1000 already done",
        "1100 of 2000 images done, 10.0 images/s, 1 min 30 s left",
    ]


def test_a_run_that_stops_says_where(clock, lines):
    bar = Progress.of()
    bar.run_started(RUN)
    clock.now += 4_000
    bar.run_finished(RUN, None, KeyboardInterrupt())
    assert lines()[1:] == ["stopped 1 h 6 min into extracting: 0 of 2000 images done"]


def test_at_most_twenty_failures_are_shown(clock, lines):
    bar = Progress.of()
    bar.run_started(RUN)
    for index in range(50):
        bar.image_failed(RUN, record(f"{index}.jpg"), "empty")
    bar.batch_done(RUN, 64)
    bar.run_finished(RUN, None, ValueError())
    *shown, last = lines()[1:]
    assert shown == [
        *(f"failed: {index}.jpg: empty" for index in range(20)),
        "(more failures are listed in failures.csv)",
    ]
    assert last.endswith("50 failed")


def test_a_run_without_a_folder_has_no_failures_csv(clock, lines):
    run = replace(RUN, path=None)
    bar = Progress.of()
    bar.run_started(run)
    for _ in range(25):
        bar.image_failed(run, record(), "empty")
    assert lines()[-1] == "(more failures are not shown)"


def test_an_id_cannot_write_on_the_terminal(clock, lines):
    bar = Progress.of()
    bar.run_started(RUN)
    bar.image_failed(RUN, record("a\n\x1b[31m\r\u202e\udcff é.jpg"), "not\nimage")
    assert lines()[1:] == [r"failed: a\n\x1b[31m\r\u202e\udcff é.jpg: not\nimage"]


def test_a_terminal_gets_a_bar_that_is_gone_at_the_end(monkeypatch, capsys):
    with terminal(monkeypatch) as shown:
        bar = Progress.of()
        bar.run_started(RUN)
        bar.image_failed(RUN, record("[red]a[/red] :cat:\x1b[2J.jpg"), "truncated")
        print("a line for another program")
        bar.batch_done(RUN, 1_500)
        bar._display._progress.refresh()
        bar.run_finished(RUN, None, None)
    text = shown.decode()
    assert r"failed: [red]a[/red] :cat:\x1b[2J.jpg: truncated" in text
    assert "1500 of 2000 images done" in text
    assert "1 failed" in text
    assert text.endswith("\x1b[2K")  # its line is erased
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor was hidden, and is back
    assert "\x1b[2J" not in text
    assert capsys.readouterr().out == "a line for another program\n"


def test_the_bar_is_closed_when_a_run_fails(monkeypatch):
    with terminal(monkeypatch) as shown:
        bar = Progress.of()
        before = sys.stderr
        bar.run_started(RUN)
        bar.run_finished(RUN, None, layertap.StoreError("disk full"))
        assert sys.stderr is before
    for thread in threading.enumerate():
        if type(thread).__module__.startswith("rich"):
            thread.join(timeout=5)  # it has been asked to end, but nothing has waited for it
            assert not thread.is_alive()
    assert "into extracting: 0 of 2000 images done" in shown.decode().splitlines()[-1]
    assert "\x1b[?25h" in shown.decode()


def worker(number, **facts):
    return layertap.WorkerReport(f"local-{number}", **{"state": "computing", "host": "node1", "rate": 30.0, **facts})


def test_workers_of_an_engine_are_counted_in_lines(clock, lines):
    bar = Progress.of()
    bar.run_started(replace(RUN, device="local"))
    for number in range(2):
        bar.worker_reported(RUN, worker(number))
    clock.now += 10
    bar.batch_done(RUN, 500)
    bar.worker_reported(RUN, worker(1, state="lost", log="out.logs/1.log"))
    bar.worker_reported(RUN, worker(1, state="lost", log="out.logs/1.log"))
    bar.worker_reported(RUN, worker(2, state="refused", error="another\nversion"))
    bar.run_finished(RUN, None, None)
    assert lines() == [
        "extracting 2000 images on local, batch size 64",
        "500 of 2000 images done, 60.0 images/s, 25 s left, 2 workers",
        "worker local-1 on node1 lost (what it printed is in out.logs/1.log)",
        r"worker local-2 on node1 refused: another\nversion",
    ]


def test_a_terminal_gets_a_line_for_each_worker(monkeypatch):
    with terminal(monkeypatch) as shown:
        bar = Progress.of()
        bar.run_started(RUN)
        bar.worker_reported(RUN, worker(0, device="cuda:0", shard=12, images=4_096))
        bar.worker_reported(RUN, worker(1, state="waiting"))
        bar._display._progress.refresh()
        bar.run_finished(RUN, None, None)
    assert "  local-0  cuda:0  shard 12  30.0 images/s  4096 images" in shown.decode()
    assert "  local-1  waiting  30.0 images/s  0 images" in shown.decode()


def test_a_process_without_stderr_runs(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)
    bar = Progress.of()
    bar.run_started(RUN)
    bar.batch_done(RUN, 64)
    bar.run_finished(RUN, None, None)
    assert capsys.readouterr().out == ""


def test_a_run_that_never_started_may_finish(lines):
    Progress.of().run_finished(RUN, None, ValueError())
    assert lines() == []


def test_two_runs_share_nothing(clock, lines):
    first, second = Progress.of(), Progress.of()
    first.run_started(RUN)
    first.batch_done(RUN, 64)
    second.run_started(RUN)
    second.run_finished(RUN, None, None)
    assert "done" not in lines()[-1]
    first.run_finished(RUN, None, ValueError())
    second.run_finished(RUN, None, ValueError())
    assert [line.partition(": ")[2] for line in lines()] == ["64 of 2000 images done", "0 of 2000 images done"]
