"""Many runs started at once on one output: one proceeds, the others end with 5, and the output is that one run's."""

from __future__ import annotations

import pytest

from tests.soak.cases import Broken, Case, Place
from tests.soak.faults import Fault

LOCKED = 5
AT_ONCE = 5.0
"""The seconds within which all the others have ended, when they share this machine."""


def raced(case: Case, tmp_path, times: int, starters: int = 8) -> None:
    slowest = 0.0
    for number in range(times):
        place = Place(case, tmp_path / str(number))
        if number % 2:
            # This starts from an output that a kill has left unfinished.
            place.run(Fault(7 + 5 * number, "before"))
        outcomes = case.trials.race(place.config, [place.new_trace() for _ in range(starters)])
        assert sorted(outcome["code"] for outcome in outcomes) == [0] + [LOCKED] * (starters - 1)
        assert [outcome["code"] for outcome in outcomes if outcome["ran"]] == [0]
        assert outcomes[0]["others"] < AT_ONCE
        slowest = max(slowest, outcomes[0]["others"])
        place.resume()
    print(
        f"\n{times} races of {starters}: one ran each time, the others had ended with 5 after {slowest:.2f} s at most"
    )


def test_of_eight_starters_one_runs(case, tmp_path):
    raced(case("npy"), tmp_path, 1)


@pytest.mark.soak
def test_of_eight_starters_one_runs_twenty_five_times(case, tmp_path):
    raced(case("npy"), tmp_path, 25)


def overtaken(case: Case, tmp_path, numbers: list[int]) -> None:
    """A run suspended at each operation keeps its lock on the output, and continues when it is resumed."""
    broken = Broken()
    for number in numbers:
        fault = Fault(number, "pause")
        with broken.trial(case.named(fault)):
            place = Place(case, tmp_path / str(number))
            outcomes = place.overtake(fault)
            # Before it has the lock, and after it has finished its work, another run is allowed.
            assert outcomes[0]["code"] in (0, LOCKED), outcomes
            assert outcomes[1]["code"] in (0, LOCKED), outcomes
            assert 0 in (outcomes[0]["code"], outcomes[1]["code"])
            place.resume()
            assert place.computed_twice() == 0
    print(f"\n{len(numbers)} runs suspended while another one started")
    assert not broken, broken.report()


def test_suspended_run_keeps_its_output(case, tmp_path):
    overtaken(case("npy"), tmp_path, case("npy").points()[1::20])


@pytest.mark.soak
@pytest.mark.parametrize("sink", ["npy", "plain"])
def test_run_suspended_at_any_operation_keeps_its_output(case, tmp_path, sink):
    overtaken(case(sink), tmp_path, list(range(1, len(case(sink).operations) + 1)))
