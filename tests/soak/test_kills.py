"""SIGKILL at any moment: the same command ends with the bytes of an undisturbed run."""

from __future__ import annotations

import random
import time

import pytest

from tests.soak.cases import KILLED, MOST_TWICE, Broken, Case, Place, assert_same
from tests.soak.disk import Disk
from tests.soak.faults import Fault
from tests.soak.pictures import contents

SINKS = ["npy", "plain"]


def killed_at(case: Case, tmp_path, faults: list[Fault]) -> None:
    """Each kill, and the resumed run after it."""
    started, most, broken = time.monotonic(), 0, Broken()
    for number, fault in enumerate(faults):
        with broken.trial(case.named(fault)):
            place = Place(case, tmp_path / str(number))
            assert place.run(fault)["code"] == KILLED
            place.resume()
            most = max(most, place.computed_twice())
            assert place.computed_twice() <= MOST_TWICE
    took = time.monotonic() - started
    print(f"\n{case.sink}: {len(faults)} kills around operations, at most {most} shards computed twice, {took:.0f} s")
    assert not broken, broken.report()


def killed_at_random(case: Case, tmp_path, kills: int) -> int:
    """Kills at random moments of a run, and the resumed run after each; returns how many came in time."""
    chance, most, hit, broken = random.Random(kills), 0, 0, Broken()
    for number in range(kills):
        with broken.trial(number):
            place = Place(case, tmp_path / str(number))
            hit += place.run(signals=[(chance.uniform(0, 1.1 * case.seconds), 9)])["code"] == KILLED
            place.resume()
            most = max(most, place.computed_twice())
            assert place.computed_twice() <= MOST_TWICE
    print(f"\n{case.sink}: {hit} of {kills} runs killed at random, at most {most} shards computed twice")
    assert not broken, broken.report()
    return hit


def test_trace_of_a_run_records_everything_that_it_did(case, tmp_path):
    for sink in SINKS:
        disk = Disk()
        disk.play(case(sink).trace)
        (tmp_path / sink).mkdir()
        disk.lay_out(tmp_path / sink, "kept", random.Random(0))
        assert_same(contents(tmp_path / sink / "out"), case(sink).contents)


@pytest.mark.parametrize("sink", SINKS)
def test_killed_at_each_sort_of_operation(case, tmp_path, sink):
    points = case(sink).points()[:: 5 if sink == "npy" else 12]
    how = {number: ("before", "after")[number % 2] for number in points}
    killed_at(case(sink), tmp_path, [Fault(number, how[number]) for number in points])


@pytest.mark.soak
@pytest.mark.parametrize("sink", SINKS)
def test_killed_before_in_and_after_every_operation(case, tmp_path, sink):
    killed_at(case(sink), tmp_path, case(sink).kills())


def test_killed_at_a_random_moment(case, tmp_path):
    killed_at_random(case("npy"), tmp_path, 2)


@pytest.mark.soak
@pytest.mark.parametrize("sink", SINKS)
def test_killed_at_a_hundred_random_moments(case, tmp_path, sink):
    assert killed_at_random(case(sink), tmp_path, 100) > 50


@pytest.mark.soak
def test_killed_again_and_again(case, tmp_path):
    chance, most, broken = random.Random(1), 0, Broken()
    for number in range(20):
        with broken.trial(number):
            place, kills = Place(case("npy"), tmp_path / str(number)), 0
            while (
                kills < 12 and place.run(Fault(chance.randint(1, 60), chance.choice(["before", "after"])))["code"] < 0
            ):
                kills += 1
            place.resume()
            assert place.computed_twice() <= MOST_TWICE * kills
            most = max(most, kills)
    print(f"\n20 outputs, killed up to {most} times each")
    assert not broken, broken.report()
