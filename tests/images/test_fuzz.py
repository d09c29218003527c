"""Hostile files by the hundred among good ones: each is kept or has a reason, and no good row differs by a bit."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from layertap.errors import ImageError
from layertap.images.decoding.decode import decode, notes
from layertap.images.decoding.formats import OPTIONAL
from layertap.images.decoding.notes import NOTES
from layertap.images.failure_codes import REASONS
from tests.images import fuzz
from tests.images.bad_inputs import good
from tests.images.test_bad_inputs import extract, nothing_printed

FORMATS = (*fuzz.STANDARD, *map(str.lower, OPTIONAL))


def mixed(folder: Path, count: int, seed: int) -> tuple[Path, Path]:
    """Two folders of the same names: hostile files with a good image behind every third, and good images alone."""
    bad, whole = folder / "bad", folder / "good"
    bad.mkdir()
    whole.mkdir()
    for number, (_, data) in enumerate(fuzz.hostile(count, seed, FORMATS)):
        (bad / f"{number:05d}.jpg").write_bytes(data)
        (whole / f"{number:05d}.jpg").write_bytes(good(0))
        if number % 3 == 0:
            for here in (bad, whole):
                (here / f"{number:05d} good.jpg").write_bytes(good(number))
    return bad, whole


def hold_out(folder: Path, count: int, seed: int, **changes: object) -> None:
    """Extract from both folders, and compare."""
    bad, whole = mixed(folder, count, seed)
    with nothing_printed():
        features = extract(bad, folder / "bad features", formats=list(OPTIONAL), **changes)
    expected = extract(whole, folder / "good features")
    assert {failure["reason"] for failure in features.failures} <= REASONS.keys()
    assert sorted([*features.ids, *(failure["id"] for failure in features.failures)]) == sorted(expected.ids)
    names = [name for name in expected.ids if "good" in name]
    assert len(names) == -(-count // 3)
    for tap in ("features.0", "classifier"):
        mine = features[tap][:][[features.ids.index(name) for name in names]]
        assert mine.tobytes() == expected[tap][:][[expected.ids.index(name) for name in names]].tobytes()


def test_hostile_files_fail_alone(tmp_path):
    hold_out(tmp_path, 120, seed=0)


@pytest.mark.soak
@pytest.mark.parametrize("isolation", ["thread", "process"])
@pytest.mark.parametrize("seed", [1, 2])
def test_many_hostile_files_fail_alone(tmp_path, seed, isolation):
    hold_out(tmp_path, 700, seed, isolation=isolation)


@pytest.mark.soak
def test_thousands_of_hostile_files_give_an_image_or_a_reason():
    with nothing_printed(), warnings.catch_warnings():
        warnings.simplefilter("error")
        for what, data in fuzz.hostile(10_000, seed=3, formats=FORMATS):
            try:
                image = decode(data, OPTIONAL)
            except ImageError as error:
                assert error.reason in REASONS, what  # noqa: PT017
            else:
                assert set(notes(image)) <= NOTES.keys(), what


def test_the_same_seed_gives_the_same_files():
    assert list(fuzz.hostile(40, seed=5)) == list(fuzz.hostile(40, seed=5))
    assert list(fuzz.hostile(40, seed=5)) != list(fuzz.hostile(40, seed=6))


@pytest.mark.parametrize("name", fuzz.seeds())
def test_what_the_hostile_files_are_made_from_is_good(name):
    decode(fuzz.seeds()[name], OPTIONAL)
