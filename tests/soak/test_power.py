"""A power cut at any moment, whatever becomes of what was not synced: no wrong row, and the run goes on."""

from __future__ import annotations

import random
import time

import pytest

from tests.soak.cases import Broken, Case, Place, cuts
from tests.soak.disk import FATES, Disk
from tests.soak.faults import Fault
from tests.soak.pictures import shards_seen


def cut_off(case: Case, tmp_path, states: set[tuple[int, str]]) -> None:
    """Each state that a power cut may leave: what a reader sees of it, and the resume after it."""
    started, broken, disk = time.monotonic(), Broken(), Disk()
    # Many moments leave the same disk: one trial answers for all of them.
    known: dict[str, int] = {}
    for number in cuts(disk, case.trace):
        for fate in (fate for fate in FATES if (number, fate) in states):
            with broken.trial(f"{fate}, {case.named(Fault(max(number, 1), 'after'))}"):
                place = Place(case, tmp_path / f"{number}-{fate}")
                disk.lay_out(place.disk, fate, random.Random(f"{number} {fate}"))
                digest = place.digest()
                if digest not in known:
                    known[digest] = shards_seen(place.resume()["seen"][0])
                assert known[digest] >= disk.promised, "a committed shard is lost"
    took = time.monotonic() - started
    print(f"\n{case.sink}: {len(states)} power cuts, {len(known)} different disks, {took:.0f} s")
    assert not broken, broken.told()


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
