"""Anything that can happen to an output, in any order: a reader sees correct rows, and a resumed run completes it."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.soak.cases import KILLED, Case, Place
from tests.soak.disk import FATES, Disk
from tests.soak.faults import Fault, read_trace
from tests.soak.pictures import COUNT, shards_seen
from tests.soak.trials import Outcome

moments = st.integers(1, 190)
seeds = st.integers(0, 2**32 - 1)


def machine(case: Case, tmp_path) -> type[RuleBasedStateMachine]:
    """The rules, for one sink."""
    numbers = itertools.count()

    class Output(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.place, self.disk = Place(case, tmp_path / str(next(numbers))), Disk()
            self.seen: Outcome = {"rows": None, "complete": False}

        @rule(images=st.integers(1, COUNT))
        def stop(self, images: int) -> None:
            """A run that commits some shards and ends with its own error."""
            self.ran(self.place.run(extra={"type": "stop", "after": images}), 0, 1)

        @rule(moment=moments, how=st.sampled_from(["before", "after", "torn"]))
        def kill(self, moment: int, how: str) -> None:
            """A run that is killed, unless it has ended before."""
            self.ran(self.place.run(Fault(moment, how)), 0, KILLED)

        @rule(moment=moments, how=st.sampled_from(["EIO", "ENOSPC"]))
        def fail(self, moment: int, how: str) -> None:
            """A run on a disk that fails once."""
            self.ran(self.place.run(Fault(moment, how)), 0, 7)

        @rule(fate=st.sampled_from(FATES), seed=seeds)
        def cut_power(self, fate: str, seed: int) -> None:
            """The machine goes down, and only the contents of the disk remain."""
            promised = self.disk.promised
            self.place = Place(case, tmp_path / str(next(numbers)))
            self.disk.lay_out(self.place.disk, fate, random.Random(seed))
            self.disk = Disk.of(self.place.disk)
            self.disk.promised = promised

        @precondition(lambda self: not self.seen["complete"])
        @rule(starters=st.integers(2, 3))
        def race(self, starters: int) -> None:
            """Several runs at once, of which only one proceeds."""
            traces = [self.place.new_trace() for _ in range(starters)]
            outcomes = case.trials.race(self.place.config, traces)
            assert sorted(outcome["code"] for outcome in outcomes) == [0] + [5] * (starters - 1)
            # The losers may have made the folder; everything else is the winner's, and came later.
            for outcome, trace in sorted(zip(outcomes, traces, strict=True), key=lambda each: -each[0]["code"]):
                events = read_trace(trace)
                self.disk.play(events if outcome["code"] == 0 else [event for event in events if event[0] == "mkdir"])

        @precondition(lambda self: self.seen["rows"])
        @rule(seed=seeds)
        def damage(self, seed: int) -> None:
            """A flipped byte in a file that holds rows is found by `verify`, and is flipped back."""
            chance = random.Random(seed)
            path = chance.choice([path for path in self.holding_rows() if path.stat().st_size])
            whole = path.read_bytes()
            at = chance.randrange(len(whole))
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << chance.randrange(8)]) + whole[at + 1 :])
            outcome, said = self.place.verify()
            assert outcome["code"] == 7, said
            assert path.name in said
            path.write_bytes(whole)
            outcome, said = self.place.verify()
            assert outcome["code"] == 0, said

        @rule()
        def resume(self) -> None:
            """An undisturbed run."""
            self.place.resume()
            self.disk.play(self.place.trace)

        @invariant()
        def reader_sees_whole_shards(self) -> None:
            """Correct rows, and never fewer shards than were reported as committed."""
            self.seen = self.place.look()
            assert shards_seen(self.seen) >= self.disk.promised

        def teardown(self) -> None:
            """Whatever its state, the output can be completed."""
            self.place.resume()

        def ran(self, outcome: Outcome, *codes: int) -> None:
            assert outcome["code"] in codes, outcome
            self.disk.play(self.place.trace)

        def holding_rows(self) -> list[Path]:
            out = self.place.out
            if self.seen["complete"] and case.sink == "npy":
                return sorted(out.glob("*.npy"))
            parts = (out / f"parts/{number:05d}" for number in range(shards_seen(self.seen)))
            return sorted(path for part in parts for path in part.iterdir())

    return Output


def survives(case: Case, tmp_path, examples: int, steps: int) -> None:
    """The given number of histories of the given number of steps."""
    run_state_machine_as_test(
        machine(case, tmp_path),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=True,
            # A failing history is informative enough, and a shorter one takes minutes to find.
            phases=(Phase.generate,),
            report_multiple_bugs=False,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_any_history_ends_well(case, tmp_path):
    survives(case("npy"), tmp_path, 3, 4)


@pytest.mark.soak
@pytest.mark.parametrize("sink", ["npy", "plain"])
def test_any_long_history_ends_well(case, tmp_path, sink):
    survives(case(sink), tmp_path, 40, 10)
