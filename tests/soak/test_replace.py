"""Replacing an output, and retrying its failures: the old one exists until the new one does, whatever happens."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.soak.cases import KILLED, MOST_TWICE, Broken, Case, Place, cuts
from tests.soak.disk import FATES, Disk
from tests.soak.faults import Event, Fault, operations
from tests.soak.pictures import SHARDS, draw
from tests.soak.trials import Trials

LOCKED = 5
LATE = "dogs/20.jpg"


@dataclass
class Replacement:
    """An output, and a run that will replace it: the bytes of `after` instead of those of `before`."""

    before: Case
    after: Case
    how: dict[str, Any]
    changes: dict[str, Any]

    def place(self, root: Path) -> Place:
        """The old output, in its own folder."""
        place = Place(self.after, root, **self.changes)
        shutil.copytree(self.before.whole, place.out)
        return place

    def trace(self, root: Path) -> tuple[Place, Disk, list[Event]]:
        """The operations of replacing it, on the original disk."""
        place = self.place(root)
        disk = Disk.of(place.disk)
        assert place.run(**self.how)["code"] == 0
        return place, disk, place.trace

    def visible(self, place: Place) -> str:
        """Which of the two a reader sees completely; `neither` if there is no output at all."""
        before, after = self.after.trials.look(place.out, self.before.whole, self.after.whole)
        if before["rows"] is None:
            assert not place.out.exists()
            return "neither"
        assert before["complete"]
        assert (before["wrong"] is None) != (after["wrong"] is None), (before, after)
        return "after" if before["wrong"] else "before"

    def ends(self, place: Place) -> str:
        """The run that completes it after a disturbance; returns which output was there before that run."""
        seen = self.visible(place)
        place.resume(look=None, **self.how)
        twice = place.computed_twice()
        assert twice <= (MOST_TWICE if seen == "before" else SHARDS), f"{twice} shards computed twice"
        return seen


@pytest.fixture(scope="module")
def replacement(trials: Trials, pictures, case, tmp_path_factory) -> Callable[[str], Replacement]:
    """An output of other weights that a run with `mode: new` replaces; one with a failed image, which is retried."""
    made: dict[str, Replacement] = {}

    def make(kind: str) -> Replacement:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            if kind == "new":
                before = Case(trials, pictures, folder, "npy", model={"type": "tiny", "seed": 1})
                made[kind] = Replacement(before, case("npy"), {}, {"mode": "new"})
            else:
                late = draw(folder / "images") / LATE
                late.rename(late.with_suffix(".late"))
                late.symlink_to("20.late")
                after = Case(trials, folder / "images", folder / "after", "npy")
                late.with_suffix(".late").rename(folder / "away")
                before = Case(trials, folder / "images", folder / "before", "npy", kept=20)
                (folder / "away").rename(late.with_suffix(".late"))
                made[kind] = Replacement(before, after, {"retry_failed": True}, {})
        return made[kind]

    return make


def killed(replacement: Replacement, tmp_path, choose: Callable[[list[Event]], list[int]]) -> None:
    """A kill around each chosen operation of a replacement, and the same command after it."""
    _, _, trace = replacement.trace(tmp_path / "whole")
    done, broken = operations(trace), Broken()
    faults = [*(Fault(number, "before") for number in choose(done)), Fault(len(done), "after")]
    seen = []
    for number, fault in enumerate(faults):
        with broken.trial(f"{fault.how} {fault.at} {done[fault.at - 1][:3]}"):
            place = replacement.place(tmp_path / str(number))
            assert place.run(fault, **replacement.how)["code"] == KILLED
            seen.append(replacement.ends(place))
    tally = {name: seen.count(name) for name in ("before", "after", "neither")}
    print(f"\n{len(faults)} kills around {len(done)} operations; a reader saw {tally}")
    assert not broken, broken.report()


def switches(done: list[Event]) -> list[int]:
    """The operations that put one folder in another's place, and the one in which the new output becomes complete."""
    renames = [number for number, event in enumerate(done, 1) if event[0] == "rename"]
    at = [number for number in renames if "/" not in done[number - 1][1]]
    return [max(number for number in renames if number < at[0]), *at]


@pytest.mark.parametrize("kind", ["new"])
def test_killed_while_switching(replacement, tmp_path, kind):
    killed(replacement(kind), tmp_path, switches)


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["new", "retry"])
def test_killed_at_every_operation(replacement, tmp_path, kind):
    killed(replacement(kind), tmp_path, lambda done: list(range(1, len(done) + 1)))


def suspended(replacement: Replacement, tmp_path, choose: Callable[[list[Event]], list[int]]) -> None:
    """Another run starts while a replacement is suspended at each chosen operation."""
    _, _, trace = replacement.trace(tmp_path / "whole")
    done, broken = operations(trace), Broken()
    for number in choose(done):
        with broken.trial(f"pause {number} {done[number - 1][:3]}"):
            place = replacement.place(tmp_path / str(number))
            outcomes = place.overtake(Fault(number, "pause"), **replacement.how)
            assert {outcome["code"] for outcome in outcomes} <= {0, LOCKED}, outcomes
            assert 0 in [outcome["code"] for outcome in outcomes]
            assert replacement.visible(place) == "after"
            assert [path.name for path in place.disk.iterdir()] == ["out"]
    assert not broken, broken.report()


@pytest.mark.parametrize("kind", ["new"])
def test_suspended_while_switching(replacement, tmp_path, kind):
    suspended(replacement(kind), tmp_path, switches)


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["new", "retry"])
def test_suspended_at_every_operation(replacement, tmp_path, kind):
    suspended(replacement(kind), tmp_path, lambda done: list(range(1, len(done) + 1)))


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["new", "retry"])
def test_power_cut_after_every_operation(replacement, tmp_path, kind):
    this, broken, states, known = replacement(kind), Broken(), 0, set()
    _, disk, trace = this.trace(tmp_path / "whole")
    done = operations(trace)
    for number in cuts(disk, trace):
        for fate in FATES:
            states += 1
            with broken.trial(f"{fate} after {number} {done[max(number, 1) - 1][:3]}"):
                place = Place(this.after, tmp_path / f"{number}{fate}", **this.changes)
                disk.lay_out(place.disk, fate, random.Random(f"{number} {fate}"))
                if place.digest() not in known:
                    known.add(place.digest())
                    this.ends(place)
    print(f"\n{kind}: {states} power cuts, {len(known)} different disks")
    assert not broken, broken.report()
