"""Ctrl-C: the command ends with 130, soon and without leftovers, and the same command resumes from there."""

from __future__ import annotations

import random
import signal

import pytest

from tests.soak.cases import MOST_TWICE, Broken, Case, Place

INTERRUPTED, TERMINATED = 130, 143
SOME_FAILED = 3
SOON, AT_ONCE = 5.0, 1.0


def interrupted(case: Case, tmp_path, times: int, number: signal.Signals, code: int, **changes: str) -> int:
    """Signals at random moments of a command, and the resumed run after each; returns how many came in time."""
    chance, hit, slowest, most, broken = random.Random(times), 0, 0.0, 0, Broken()
    for trial in range(times):
        moment = chance.uniform(0, 1.1 * case.seconds)
        with broken.trial(f"{moment:.4f} s"):
            place = Place(case, tmp_path / str(trial), **changes)
            outcome, said = place.command(signals=[(moment, number)])
            # After it has reported its result, the interpreter is shutting down, and a signal just ends it.
            assert outcome["code"] in (code, *([SOME_FAILED, -number] if "images kept" in said else [])), said
            assert not outcome["orphans"]
            assert "Traceback" not in said
            assert outcome["waited"] <= SOON
            hit += outcome["code"] == code
            slowest = max(slowest, outcome["waited"])
            place.resume()
            most = max(most, place.computed_twice())
            assert place.computed_twice() <= MOST_TWICE
    print(
        f"\n{hit} of {times} runs ended by {number.name}, within {slowest:.2f} s; {most} shards computed twice at most"
    )
    assert not broken, broken.report()
    return hit


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, TERMINATED)])
def test_interrupted_at_some_moments(case, tmp_path, number, code):
    interrupted(case("npy"), tmp_path, 1, number, code)


@pytest.mark.soak
def test_interrupted_at_a_hundred_moments(case, tmp_path):
    assert interrupted(case("npy"), tmp_path, 100, signal.SIGINT, INTERRUPTED) > 50


@pytest.mark.soak
def test_interrupted_while_processes_decode(case, tmp_path):
    interrupted(case("npy"), tmp_path, 20, signal.SIGINT, INTERRUPTED, isolation="process")


STUCK = "preprocess={type: stuck, started: STARTED}"


def test_second_interrupt_ends_a_run_that_hangs_at_once(case, tmp_path):
    place = Place(case("npy"), tmp_path)
    outcome, said = place.command(STUCK, signals=[(0, signal.SIGINT), (0.3, signal.SIGINT)])
    assert outcome["code"] == INTERRUPTED, said
    assert not outcome["orphans"]
    assert outcome["waited"] <= AT_ONCE


@pytest.mark.soak
def test_one_interrupt_ends_a_run_that_hangs(case, tmp_path):
    place = Place(case("npy"), tmp_path)
    outcome, said = place.command(STUCK, signals=[(0, signal.SIGINT)])
    assert outcome["code"] == INTERRUPTED, said
    assert not outcome["orphans"]
    assert outcome["waited"] <= SOON
    print(f"\na run that hangs ended {outcome['waited']:.2f} s after one interrupt")
