"""The plan: what a run is about to read, and what becomes of it when the source changes under the run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import layertap
from layertap.images.plan import Plan
from tests.conftest import TINY
from tests.pipeline.test_pipeline import config, contents, run


class Given(layertap.Source):
    """Gives the ids it holds at the moment."""

    ids: list[str]

    def records(self):
        return (layertap.ImageRecord(name, name.encode()) for name in self.ids)


def source(ids: list[str]) -> Given:
    given = Given()
    given.ids = ids
    return given


IDS = st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=30, unique=True)


@given(IDS, IDS, st.randoms(use_true_random=False))
def test_every_planned_image_comes_once_and_in_its_place_whatever_the_source_does_later(ids, others, random):
    given = source(ids)
    plan = Plan(given)
    later = [name for name in ids if random.random() < 0.8] + others
    if random.random() < 0.5:
        random.shuffle(later)
    given.ids = later
    records = [planned.record for planned in plan.records()]
    assert [record.id for record in records] == ids
    for record in records:
        if record.data != record.id.encode():
            with pytest.raises(layertap.ImageError) as vanished:
                record.data()
            assert vanished.value.reason == "vanished"
    if later[: len(ids)] == ids:
        assert all(record.data == record.id.encode() for record in records)


@given(IDS, st.integers(0, 40), st.integers(0, 40))
def test_a_stretch_of_the_plan_is_that_stretch_of_its_records(ids, first, stop):
    plan = Plan(source(ids))
    assert [planned.record.id for planned in plan.records(first, stop)] == ids[first:stop]
    assert [name for name, _ in plan.entries(first, stop)] == ids[first:stop]


@pytest.mark.parametrize(
    ("ids", "meta", "message"),
    [
        (["a", "a"], {}, "gives the id 'a' twice"),
        (["\ud800"], {}, "not UTF-8 text"),
        (["a"], {"weight": float("nan")}, "a weight of nan; give None instead"),
        (["a"], {"row": 1}, "names metadata 'row'"),
    ],
)
def test_records_that_cannot_be_a_table_are_refused_before_anything_is_written(ids, meta, message):
    class Odd(layertap.Source):
        def records(self):
            return (layertap.ImageRecord(name, b"", meta) for name in ids)

    with pytest.raises(layertap.LayertapError, match=message):
        Plan(Odd())


CHANGING = """
import os, layertap
class Changing(layertap.Observer):
    '''Does something to the images once the first shard is committed.'''
    def shard_committed(self, run, number):
        if number == 0:
            exec(os.environ["CHANGE"])
@layertap.hookimpl
def register_observers(register): register("changing", Changing)
"""


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        ("os.unlink('photos/dogs/18.jpg')", {"vanished": 1}),
        ("with open('photos/dogs/18.jpg', 'ab') as f: f.write(b'more')", {"changed": 1}),
        ("os.utime('photos/dogs/18.jpg')", {"changed": 1}),
        ("os.rename('photos/dogs/18.jpg', 'photos/dogs/99.jpg')", {"vanished": 1}),
        ("os.symlink('18.jpg', 'photos/dogs/17b.jpg')", {}),
    ],
    ids=["removed", "rewritten", "touched", "renamed", "added"],
)
def test_source_that_changes_during_the_run_costs_what_has_changed(photos, tmp_path, monkeypatch, change, reasons):
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "changing.py").write_text(CHANGING)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHANGE", change)
    changing = config(Path("photos"), Path("out"), shard_rows=4, observers=["changing"], workers=1)
    report = layertap.run(changing, plugins=[TINY, str(tmp_path / "changing.py")])
    assert (report.planned, dict(report.reasons)) == (20, reasons)
    good = run(photos, None)
    features = layertap.open("out")
    kept = [row for row, name in enumerate(good.ids) if name in set(features.ids)]
    assert len(kept) == 20 - len(reasons)
    assert features["classifier"][:].tobytes() == good.values["classifier"][kept].tobytes()


def test_source_that_is_gone_altogether_stops_the_run_and_the_run_goes_on_when_it_is_back(
    photos, tmp_path, monkeypatch
):
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "changing.py").write_text(CHANGING)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHANGE", "os.rename('photos', 'away')")
    changing = config(Path("photos"), Path("out"), shard_rows=4, observers=["changing"], max_failures=0, workers=1)
    with pytest.raises(layertap.LayertapError) as stopped:
        layertap.run({**changing, "on_error": "fail"}, plugins=[TINY, str(tmp_path / "changing.py")])
    assert stopped.value.code in (2, 4)
    os.rename("away", "photos")
    assert run(Path("photos"), Path("out"), shard_rows=4).kept == 20
    run(Path("photos"), Path("whole"), shard_rows=4)
    assert contents(Path("out")) == contents(Path("whole"))
