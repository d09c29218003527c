"""bench(): the cost of a run, stage by stage, its limit, and that measuring leaves no files."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

import layertap
from layertap.bench.baselines import Careful, Images, Tutorial
from layertap.bench.benchmark import bench
from layertap.bench.changes import Change, compared
from layertap.bench.figures import Figure
from layertap.bench.scorecard import scorecard
from layertap.bench.stages import Cost, limits_of
from layertap.bench.trials import Trial
from layertap.config.loading import load_config
from layertap.errors import ConfigError
from layertap.pipeline.forward import OutOfMemory
from layertap.pipeline.prepare import prepared
from layertap.plugins import Plugins
from tests.benchmark.cases import CASES
from tests.conftest import TINY
from tests.pipeline.test_pipeline import config, contents, run

STAGES = ["read", "decode", "prepare", "to_device", "finish", "forward", "to_host", "gather", "write"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def found(photos, place):
    """A bench of a run that already has an output."""
    run(photos, place / "out")
    before = contents(place / "out")
    measured = bench(config(photos, place / "out"), plugins=[TINY], images=10, rounds=2)
    assert contents(place / "out") == before
    return measured


def test_every_stage_is_there_and_takes_its_time(found):
    assert list(found.stages) == STAGES
    for stage in found.stages.values():
        assert 0 < stage.wall.low <= stage.wall.median <= stage.wall.high
        assert 0 < stage.cores.low <= stage.cores.median <= stage.cores.high


def test_the_sample_is_the_first_whole_batches(found):
    assert (found.images, found.batch_size, found.failed, found.rounds) == (8, 4, 0, 2)
    assert (found.model, found.taps, found.device) == ("tiny", ("features.0", "classifier"), "cpu")


def test_the_limit_follows_from_the_stages(found):
    busy = sum(stage.cores.median for name, stage in found.stages.items() if name != "gather")
    assert math.isclose(found.limits["cores"], found.cores / busy)
    assert math.isclose(found.limits["writer"], 1 / found.stages["write"].wall.median)
    assert found.limit == min(found.limits.values()) == found.limits[found.binds]


def test_on_a_gpu_the_slowest_of_what_overlaps_is_the_limit():
    costs = {name: Cost(wall=0.001, cores=0.002) for name in STAGES}
    costs["forward"] = Cost(wall=0.009, cores=5.0)
    limits = limits_of(costs, 8, accelerated=True)
    expected = {"cores": 8 / 0.008, "writer": 1000, "device": 100, "to_device": 1000, "to_host": 1000}
    assert limits == pytest.approx(expected)
    assert limits_of(costs, 8, accelerated=False)["cores"] == pytest.approx(8 / 5.014)


def test_line_and_baselines_are_measured_in_the_same_rounds(found):
    assert found.line.median > 0
    assert found.achieved.median > 0
    assert set(found.baselines) == {"tutorial", "careful"}
    for baseline in found.baselines.values():
        assert baseline.why is None
        assert baseline.rate.median > 0
        assert baseline.ratio.median > 0
    assert found.baselines["careful"].started > 0
    assert found.baselines["careful"].workers == found.cores
    assert min(found.ready, found.first_batch, found.closing) > 0


def test_other_settings_are_tried(found):
    tried = {(change.key, change.value) for change in found.changes}
    assert {("batch_size", 2), ("workers", 2 * found.cores), ("profile", "fast")} <= tried
    assert not {("workers", found.workers), ("batch_size", 4)} & tried
    (fast,) = (change for change in found.changes if change.key == "profile")
    assert set(fast.differences) == {"features.0", "classifier"}
    assert all(0 <= far.relative < 0.2 and 0.9 < far.cosine <= 1.0000001 for far in fast.differences.values())


def test_only_what_gains_more_than_the_noise_is_suggested():
    assert Change("workers", 4, Figure(1.2, 1.1, 1.3)).gains(noise=0.1)
    assert not Change("workers", 4, Figure(1.2, 1.1, 1.3)).gains(noise=0.25)
    assert not Change("workers", 4, Figure(1.2, 0.9, 1.3)).gains(noise=0.1)


def test_nothing_remains_afterwards(found, place):
    assert [path.name for path in place.iterdir()] == ["out"]


def test_text_is_narrow_and_data_is_json(found):
    text = scorecard(found)
    assert max(map(len, text.splitlines())) <= 100
    for word in (*STAGES, "limit", "line", "careful", "tutorial", "tried", "suggested"):
        assert f"\n{word}" in text
    data = json.loads(json.dumps(found.data(), allow_nan=False))
    assert data["limit"] == found.limit
    assert set(data["stages"]) == set(STAGES)


def test_a_run_that_fails_leaves_nothing_and_reports_why(photos, tmp_path):
    path = Path(shutil.copytree(photos, tmp_path / "photos"))
    for file in path.rglob("*.jpg"):
        file.write_bytes(b"no image")
    with pytest.raises(ConfigError, match="none of the first 8 images can be used"):
        bench(config(path, tmp_path / "out"), plugins=[TINY], images=8)
    shutil.copy(photos / "cats/03.jpg", path / "cats/03.jpg")
    with pytest.raises(layertap.ImageError, match=r"cats/01\.jpg"):
        bench(config(path, tmp_path / "out", on_error="fail"), plugins=[TINY], images=8)
    assert [entry.name for entry in tmp_path.iterdir()] == ["photos"]


@pytest.fixture
def this(photos, tmp_path):
    """A prepared run of 8 images."""
    known = Plugins.load([TINY])
    with prepared(load_config(config(photos, tmp_path / "out", limit=8), None, known), known) as ready:
        yield ready


def test_the_baselines_compute_the_same_values(this, tmp_path):
    images = Images([planned.record for planned in this.plan.records()], this.forward.preprocessor, [TINY])
    expected = layertap.run(
        {**this.config.plain(), "sink": "memory", "batch_size": 8, "early_stop": False}, plugins=[TINY]
    )
    Tutorial(this, images).once(tmp_path)
    for number, values in enumerate(expected.values.values()):
        assert np.array_equal(np.load(tmp_path / f"{number}.npy"), values)
    with Careful(this, images, 1) as careful:
        for name, values in careful.features().items():
            assert np.allclose(values, expected.values[name], rtol=1e-5, atol=1e-6)


def test_images_that_cannot_be_sent_to_other_processes_are_reported(this):
    given = layertap.ImageRecord("a", lambda: b"")
    assert "cannot be sent to other processes" in Images([given], this.forward.preprocessor).why_not_sent()


def test_a_sink_without_a_folder_is_not_written_to(photos, tmp_path):
    known = Plugins.load([TINY])
    with prepared(load_config(config(photos, None, limit=4), None, known), known) as ready:
        assert Trial(ready, tmp_path).once().rate > 0
        assert ready.sink.result()[0] == []


def test_what_does_not_fit_into_memory_is_left_out(this, tmp_path):
    def too_large():
        raise OutOfMemory("batch_size: out of memory in a batch of 8 images; try 4")

    usual = Trial(this, tmp_path)
    others = {("batch_size", 8): too_large, ("workers", 1): usual.changed("workers", 1).once}
    ratios, noise = compared(usual, others, rounds=1)
    assert list(ratios) == [("workers", 1)]
    assert noise > 0


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_each_published_case_is_a_configuration(case, tmp_path):
    asked = case.config(tmp_path / "images", tmp_path / "out")
    assert load_config(asked, None, Plugins.load()).batch_size == 64
