"""The metrics observer: a file that Prometheus's own parser reads, complete at every moment, correct at the end."""

from __future__ import annotations

import os
import shutil

import pytest
from prometheus_client.parser import text_string_to_metric_families

import layertap
from layertap.config.loading import load_config
from layertap.pipeline.pipeline import run_loaded
from layertap.plugins import Plugins, Registered
from tests.conftest import TINY
from tests.pipeline.test_pipeline import config

READER = """
import layertap
from pathlib import Path
from pydantic import Field

class Reader(layertap.Observer):
    class Params(layertap.Params):
        path: str = Field(description="the file to read")
        into: str = Field(description="the folder to copy it into")
    def shard_committed(self, number):
        text = Path(self.params.path).read_text()
        (Path(self.params.into) / str(number)).write_text(text)

@layertap.hookimpl
def register_observers(register):
    register("reader", Reader)
"""


def samples(text):
    """The values that a scraper would keep, each under its name and labels."""
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        assert family.type == "gauge"
        for sample in family.samples:
            found[sample.name, *sorted(sample.labels.items())] = sample.value
    return found


def state(found):
    (on,) = [key[1][1] for key, value in found.items() if key[0] == "layertap_run_state" and value == 1]
    return on


@pytest.fixture
def path(tmp_path):
    (tmp_path / "metrics").mkdir()
    return tmp_path / "metrics" / "layertap.prom"


def run(photos, out, path, *more, plugins=(), **changes):
    observers = [{"type": "metrics", "path": str(path), "every": 1e-6}, *more]
    return layertap.run(config(photos, out, observers=observers, shard_rows=4, **changes), plugins=[TINY, *plugins])


def test_finished_run_is_reported_in_full(photos, path, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(photos, images)
    (images / "cats" / "bad.jpg").write_bytes(b"no image")
    (images / "dogs" / "empty.jpg").write_bytes(b"")
    report = run(images, tmp_path / "out", path)
    found = samples(path.read_text())
    assert found["layertap_images_planned",] == 22
    assert found["layertap_images_kept",] == report.kept == 20
    failed = {key[1]: value for key, value in found.items() if key[0] == "layertap_images_failed"}
    assert failed == {("reason", reason): count for reason, count in report.reasons.items()}
    assert found["layertap_shards_committed",] == report.shards == 6
    assert found["layertap_images_per_second",] > 0
    assert state(found) == "finished"
    (info,) = [dict(key[1:]) for key in found if key[0] == "layertap_run_info"]
    assert info["model"] == "tiny"
    assert info["taps"] == "features.0,classifier"
    assert info["device"] == "cpu"
    assert len(info["run"]) == 32
    assert os.listdir(path.parent) == [path.name]


def test_workers_of_an_engine_are_labels(photos, path, tmp_path):
    class Reports(layertap.Engine):
        """An engine whose worker is in this process, and says what it does."""

        def run(self, job, numbers):
            yield layertap.WorkerReport("gpu-1", "computing", host="node1", device="cuda:1", images=20, rate=7.5)
            yield layertap.WorkerReport("gpu-2", "waiting", host="node1", device="cuda:2", images=3, rate=5.0)
            with layertap.Worker(job, "gpu-1") as worker:
                yield from worker.compute(numbers)

    plugins = Plugins.load([TINY])
    plugins.add(Registered("engine", "reports", Reports, "here", "here", "0", "-"))
    observers = [{"type": "metrics", "path": str(path)}]
    settings = config(photos, tmp_path / "out", observers=observers, shard_rows=4, engine="reports")
    run_loaded(load_config(settings, None, plugins), plugins)
    found = samples(path.read_text())
    one, two = ((("device", f"cuda:{n}"), ("host", "node1"), ("worker", f"gpu-{n}")) for n in (1, 2))
    assert found["layertap_worker_images", *one] == 20
    assert found["layertap_worker_images", *two] == 3
    assert found["layertap_worker_images_per_second", *one] == 7.5
    assert found["layertap_worker_images_per_second", *two] == 0


def test_file_is_whole_during_the_run(photos, path, tmp_path):
    seen, plugin = tmp_path / "seen", tmp_path / "reader.py"
    seen.mkdir()
    plugin.write_text(READER)
    reader = {"type": "reader", "path": str(path), "into": str(seen)}
    run(photos, tmp_path / "out", path, reader, plugins=[str(plugin)])
    told = [samples((seen / str(number)).read_text()) for number in range(5)]
    assert {state(found) for found in told} == {"running"}
    kept = [found["layertap_images_kept",] for found in told]
    assert kept == sorted(kept)
    assert 0 < kept[0] < kept[-1] <= 20
    assert {found["layertap_images_planned",] for found in told} == {20}


def test_run_that_is_stopped_says_so_and_the_next_resumes_from_there(photos, path, tmp_path):
    with pytest.raises(layertap.PluginError, match="stopped"):
        run(photos, tmp_path / "out", path, {"type": "stop", "after": 12})
    stopped = samples(path.read_text())
    assert state(stopped) == "failed"
    assert 0 < stopped["layertap_images_kept",] <= 12
    run(photos, tmp_path / "out", path)
    finished = samples(path.read_text())
    assert state(finished) == "finished"
    assert finished["layertap_images_kept",] == 20
    assert finished["layertap_shards_committed",] == 5


def test_labels_hold_any_text(photos, path, tmp_path):
    odd = 'a"b\\c\nd,é'
    run(photos, tmp_path / "out", path, taps=[{"layer": "classifier", "name": odd}])
    (info,) = [dict(key[1:]) for key in samples(path.read_text()) if key[0] == "layertap_run_info"]
    assert info["taps"] == odd


def test_unwritable_path_is_reported_before_the_first_image(photos, tmp_path):
    with pytest.raises(layertap.ConfigError, match=r"observers\[0\]\.path: cannot write '.*x.prom': No such file"):
        run(photos, tmp_path / "out", tmp_path / "nowhere" / "x.prom")


def test_disk_that_fails_later_does_not_stop_a_run(photos, path, tmp_path):
    """A folder takes the place of the file after the run has started."""
    plugin = tmp_path / "spoil.py"
    plugin.write_text(
        READER.replace("shard_committed(self, number)", "batch_done(self)")
        .replace("text = Path(self.params.path).read_text()", "path = Path(self.params.path)")
        .replace(
            "(Path(self.params.into) / str(number)).write_text(text)",
            "path.is_file() and (path.unlink(), path.mkdir())",
        )
    )
    spoiler = {"type": "reader", "path": str(path), "into": "-"}
    assert run(photos, tmp_path / "out", path, spoiler, plugins=[str(plugin)]).kept == 20
    assert path.is_dir()
