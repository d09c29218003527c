"""Workers and coordinators killed at any operation: the same command ends with the bytes of one process."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.soak.cases import KILLED, Broken, Case, Place
from tests.soak.faults import Fault, operations, read_trace

SINKS = ["npy", "plain"]
LOCKED = 5


def crewed(**params: Any) -> dict[str, Any]:
    """What a configuration changes for an engine."""
    return {"engine": {"type": "forked", **params}, "threads": 1}


def operations_of(case: Case, root: Path) -> tuple[int, int]:
    """How many operations the coordinator and its first worker need where nothing disturbs them."""
    place, trace = Place(case, root, **crewed(workers=1, trace=str(root / "worker.trace"))), root / "worker.trace"
    place.resume()
    return len(operations(place.trace)), len(operations(read_trace(trace)))


def worker_killed(case: Case, tmp_path: Path, faults: Iterable[Fault]) -> int:
    """The first worker killed at each operation: the run continues without it."""
    started, broken, count = time.monotonic(), Broken(), 0
    for fault in faults:
        count += 1
        with broken.trial(f"worker {fault}"):
            place = Place(case, tmp_path / f"{fault.how}{fault.at}", **crewed(at=fault.at, how=fault.how))
            place.resume()
            assert place.computed_twice() == 0
    print(f"\n{case.sink}: {count} kills of a worker, {time.monotonic() - started:.0f} s")
    assert not broken, broken.report()
    return count


def coordinator_killed(case: Case, tmp_path: Path, faults: Iterable[Fault]) -> int:
    """The coordinator killed at each operation, and the same command again."""
    started, broken, hit = time.monotonic(), Broken(), 0
    for fault in faults:
        with broken.trial(f"coordinator {fault}"):
            place = Place(case, tmp_path / f"{fault.how}{fault.at}", **crewed())
            code = place.run(fault)["code"]
            assert code in (0, KILLED)
            hit += code == KILLED
            place.look()
            place.resume()
    print(f"\n{case.sink}: {hit} kills of a coordinator, {time.monotonic() - started:.0f} s")
    assert not broken, broken.report()
    return hit


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("sink", SINKS)
def test_crew_gives_the_bytes_of_one_process(case, tmp_path, sink, workers):
    Place(case(sink), tmp_path, **crewed(workers=workers)).resume()


def test_killed_at_some_operations(case, tmp_path):
    mine, workers = operations_of(case("npy"), tmp_path / "whole")
    chance = random.Random(4)
    how = ["before", "after", "torn"]
    faults = [Fault(at, chance.choice(how)) for at in chance.sample(range(1, workers), 6)]
    worker_killed(case("npy"), tmp_path / "worker", faults)
    faults = [Fault(at, chance.choice(how[:2])) for at in chance.sample(range(1, mine), 6)]
    coordinator_killed(case("npy"), tmp_path / "coordinator", faults)


@pytest.mark.soak
@pytest.mark.parametrize("sink", SINKS)
def test_worker_killed_at_every_operation(case, tmp_path, sink):
    _, count = operations_of(case(sink), tmp_path / "whole")
    faults = [Fault(at, how) for at in range(1, count + 1) for how in ("before", "after", "torn")]
    assert worker_killed(case(sink), tmp_path, faults) >= 60


@pytest.mark.soak
@pytest.mark.parametrize("sink", SINKS)
def test_coordinator_killed_at_every_operation(case, tmp_path, sink):
    count, _ = operations_of(case(sink), tmp_path / "whole")
    faults = [Fault(at, how) for at in range(1, count + 1) for how in ("before", "after")]
    assert coordinator_killed(case(sink), tmp_path, faults) >= 60


def both_killed(case: Case, tmp_path: Path, times: int) -> None:
    chance, broken = random.Random(times), Broken()
    for number in range(times):
        with broken.trial(number):
            at, how = chance.randint(1, 60), chance.choice(["before", "after", "torn"])
            place = Place(case, tmp_path / str(number), **crewed(at=at, how=how, workers=chance.choice([1, 2, 3])))
            for _ in range(3):
                place.run(Fault(chance.randint(1, 120), chance.choice(["before", "after"])))
            place.resume()
    assert not broken, broken.report()


def test_worker_and_coordinator_killed(case, tmp_path):
    both_killed(case("npy"), tmp_path, 2)


@pytest.mark.soak
def test_worker_and_coordinator_killed_sixty_times(case, tmp_path):
    both_killed(case("npy"), tmp_path, 60)


def test_suspended_worker_does_not_hold_up_the_run_and_changes_nothing(case, tmp_path):
    # Idle workers take what it has; it is ended with the run.
    for at in (4, 9, 14):
        Place(case("npy"), tmp_path / str(at), **crewed(at=at, how="pause")).resume()


def test_shard_that_kills_three_workers_is_reported(case, tmp_path):
    place = Place(case("npy"), tmp_path, **crewed(workers=1, at=8, every=True))
    outcome = place.run()
    assert outcome["code"] == 1
    assert "shard 0 ends every worker that computes it" in outcome["message"]
    assert outcome["message"].count("ended with -9") == 3


def test_of_two_coordinators_one_runs(case, tmp_path):
    place = Place(case("npy"), tmp_path, **crewed())
    outcomes = case("npy").trials.race(place.config, [place.new_trace(), place.new_trace()])
    assert sorted(outcome["code"] for outcome in outcomes) == [0, LOCKED]
    place.resume()
