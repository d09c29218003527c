"""A power cut at any moment, whatever happens to unsynced data: no wrong row, and the run resumes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

from tests.soak.cases import KILLED, Broken, Case, Place, cuts
from tests.soak.disk import FATES, Disk
from tests.soak.faults import Event, Fault, operations
from tests.soak.pictures import shards_seen


def resumed(place: Place, disk: Disk, fate: str, seed: str, known: dict[str, int]) -> None:
    """The rows that a reader sees on such a disk, and the resumed run after it.

    Many moments leave the same disk: one trial covers all of them, by its digest in `known`.
    """
    disk.lay_out(place.disk, fate, random.Random(seed))
    digest = place.digest()
    if digest not in known:
        known[digest] = shards_seen(place.resume()["seen"][0])
    assert known[digest] >= disk.promised, "a committed shard is lost"


def cut_off(case: Case, tmp_path, states: set[tuple[int, str]]) -> None:
    """Each state that a power cut may leave: the rows that a reader sees, and the resumed run after it."""
    started, broken, disk = time.monotonic(), Broken(), Disk()
    known: dict[str, int] = {}
    for number in cuts(disk, case.trace):
        for fate in (fate for fate in FATES if (number, fate) in states):
            with broken.trial(f"{fate}, {case.named(Fault(max(number, 1), 'after'))}"):
                resumed(Place(case, tmp_path / f"{number}-{fate}"), disk, fate, f"{number} {fate}", known)
    took = time.monotonic() - started
    print(f"\n{case.sink}: {len(states)} power cuts, {len(known)} different disks, {took:.0f} s")
    assert not broken, broken.report()


def cut_off_after_kill(
    case: Case, tmp_path, shard: int, choose: Callable[[list[Event]], list[int]], seeds: int
) -> None:
    """A kill during the commit of a shard, just after its record was made, and power cuts in the run after it."""
    record = f"out/commits/{shard:05d}.json"
    at = next(number for number, event in enumerate(case.operations, 1) if event[0] == "link" and event[2] == record)
    place, broken = Place(case, tmp_path / "first"), Broken()
    assert place.run(Fault(at, "after"))["code"] == KILLED
    disk = Disk.of(place.disk)
    disk.promised = shard
    assert place.run()["code"] == 0
    trace, done, known = place.trace, operations(place.trace), dict[str, int]()
    chosen = choose(done)
    for number in cuts(disk, trace):
        for fate, seed in ((fate, seed) for fate in FATES for seed in range(seeds) if number in chosen):
            with broken.trial(f"{fate} {seed} after {number} {done[max(number, 1) - 1][:3]}"):
                place = Place(case, tmp_path / f"{number}-{fate}-{seed}")
                resumed(place, disk, fate, f"{number} {fate} {seed}", known)
    print(f"\n{case.sink}: {len(known)} different disks after a kill and a power cut")
    assert not broken, broken.report()


def first_link(done: list[Event]) -> list[int]:
    """The first operation that makes a record, and the one after it."""
    number = next(number for number, event in enumerate(done, 1) if event[0] == "link")
    return [number, number + 1]


@pytest.mark.parametrize("sink", ["npy"])
def test_power_cut_soon_after_a_kill(case, tmp_path, sink):
    cut_off_after_kill(case(sink), tmp_path, 3, first_link, 8)


@pytest.mark.soak
@pytest.mark.parametrize("sink", ["npy", "plain"])
def test_power_cut_after_every_operation_since_a_kill(case, tmp_path, sink):
    cut_off_after_kill(case(sink), tmp_path, 3, lambda done: list(range(len(done) + 1)), 2)


@pytest.mark.parametrize("sink", ["npy"])
def test_power_cut_at_some_moments(case, tmp_path, sink):
    moments = case(sink).points()[1::4]
    cut_off(case(sink), tmp_path, {(moment, FATES[at % len(FATES)]) for at, moment in enumerate(moments)})


@pytest.mark.soak
@pytest.mark.parametrize("sink", ["npy", "plain"])
def test_power_cut_after_every_operation(case, tmp_path, sink):
    moments = range(len(case(sink).operations) + 1)
    states = {(moment, fate) for moment in moments for fate in FATES}
    assert len(states) >= 300
    cut_off(case(sink), tmp_path, states)
