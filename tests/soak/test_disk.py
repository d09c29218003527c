"""A disk that is full, or fails: a clean stop, nothing committed that is missing, and the same bytes afterwards."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.soak.cases import Broken, Case, Place
from tests.soak.faults import CHANGES, TAKES_SPACE, Event, Fault

STORAGE = 7


def stopped_by(case: Case, tmp_path, faults: list[Fault]) -> None:
    """Each fault: the run that it ends, and the resumed run after the disk has recovered."""
    broken = Broken()
    for number, fault in enumerate(faults):
        with broken.trial(case.named(fault)):
            place = Place(case, tmp_path / str(number))
            outcome = place.run(fault)
            assert outcome["code"] == STORAGE, outcome
            assert "\n" not in outcome["message"]
            assert os.strerror(getattr(errno, fault.how)) in outcome["message"]
            before, after = cut(place.trace)
            assert not [event for event in after if event[:2] == ("mark", "committed")]
            assert commits(place.out) <= before.count("record")
            place.resume()
    print(f"\n{case.sink}: {len(faults)} times {faults[0].how}, a clean stop and the same bytes after it")
    assert not broken, broken.report()


def cut(trace: list[Event]) -> tuple[list[str], list[Event]]:
    """The commit records made before the first failing operation, and every event after it."""
    at = next(at for at, event in enumerate(trace) if event[0] == "failed")
    made = [event for event in trace[:at] if event[0] in ("link", "rename") and event[2].startswith("out/commits/")]
    return ["record"] * len(made), trace[at + 1 :]


def commits(out: Path) -> int:
    """The number of commit records."""
    return len(list((out / "commits").glob("?????.json")))


def of_kind(case: Case, kinds: tuple[str, ...], how: str, *, stays: bool) -> list[Fault]:
    """A fault at every operation of some kinds."""
    kind = {"empty": "create", "truncate": "write"}
    numbers = [n for n, event in enumerate(case.operations, 1) if kind.get(event[0], event[0]) in kinds]
    return [Fault(number, how, kinds if stays else ()) for number in numbers]


def test_full_disk_at_each_sort_of_operation(case, tmp_path):
    points = case("npy").points()
    every = of_kind(case("npy"), TAKES_SPACE, "ENOSPC", stays=True)
    stopped_by(case("npy"), tmp_path, [fault for fault in every if fault.at in points][::8])


def test_failing_fsync_of_each_sort(case, tmp_path):
    points = case("npy").points()
    every = of_kind(case("npy"), ("fsync",), "EIO", stays=False)
    stopped_by(case("npy"), tmp_path, [fault for fault in every if fault.at in points][::2])


@pytest.mark.parametrize("how", ["EROFS", "EACCES"])
def test_disk_that_may_not_be_written_from_some_moment_on(case, tmp_path, how):
    every = of_kind(case("npy"), CHANGES, how, stays=True)
    stopped_by(case("npy"), tmp_path, every[len(every) // 2 :][:1])


@pytest.mark.soak
@pytest.mark.parametrize("sink", ["npy", "plain"])
@pytest.mark.parametrize(
    ("kinds", "how", "stays"),
    [
        (TAKES_SPACE, "ENOSPC", True),
        (("write",), "EDQUOT", False),
        (("fsync",), "EIO", False),
        (CHANGES, "EROFS", True),
    ],
)
def test_disk_that_fails_at_every_operation(case, tmp_path, sink, kinds, how, stays):
    stopped_by(case(sink), tmp_path, of_kind(case(sink), kinds, how, stays=stays))


def test_full_disk_ends_the_command_with_7_and_one_line(case, tmp_path):
    place = Place(case("npy"), tmp_path)
    outcome, said = place.command(fault=Fault(100, "ENOSPC", TAKES_SPACE))
    assert outcome["code"] == STORAGE
    assert said.count("\n") == 1
    assert "No space left on device" in said
    place.resume()


@contextmanager
def small_disk(path: Path, pages: int) -> Iterator[None]:
    """A file system of the given number of pages of 4 KiB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a tmpfs")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={4 * pages}k", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


def enlarge(path: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=64m", str(path)], check=True)


@pytest.mark.soak
@pytest.mark.parametrize("sink", ["npy", "plain"])
def test_file_system_of_sixteen_sizes_that_are_too_small(case, tmp_path, sink):
    def fits(pages: int) -> bool:
        place = Place(case(sink), tmp_path / f"try{pages}")
        with small_disk(place.disk, pages):
            return place.run()["code"] == 0

    small, large = 1, 1024
    assert fits(large)
    while large - small > 1:
        middle = (small + large) // 2
        small, large = (small, middle) if fits(middle) else (middle, large)
    sizes = [1 + (small - 1) * step // 15 for step in range(16)]
    broken = Broken()
    for pages in sizes:
        with broken.trial(f"{pages} pages"):
            place = Place(case(sink), tmp_path / str(pages))
            with small_disk(place.disk, pages):
                outcome = place.run()
                assert outcome["code"] == STORAGE, outcome
                place.look()
                enlarge(place.disk)
                place.resume()
    print(f"\n{sink}: full at {sizes} of {large} pages needed, resumed to the same bytes each time")
    assert not broken, broken.report()
