"""The same pictures give the same features, bit for bit, from every source, and later changes are detected."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

import layertap
from layertap.config.model import RunConfig
from layertap.plugins import Plugins
from tests.conftest import TINY
from tests.pipeline.test_pipeline import contents, run
from tests.plugins.storing import WAYS, pictures


@pytest.fixture(scope="module")
def paths(photographs, tmp_path_factory):
    return pictures(photographs, tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def stored(paths, tmp_path_factory):
    """The source for each way of storing the pictures, stored once."""
    made = {}

    def source(way):
        if way not in made:
            made[way] = WAYS[way](paths, tmp_path_factory.mktemp(way))
        return made[way]

    return source


def built(source):
    plugins = Plugins.load([TINY])
    return RunConfig.model_validate({"model": "tiny", "source": source, "sink": {"type": "memory"}}).build(
        "source", plugins
    )


@pytest.fixture(scope="module")
def expected(stored):
    return run(Path(), None, source=stored("folder"))


@pytest.mark.parametrize("way", WAYS)
def test_every_source_gives_the_same_features_to_the_bit(way, stored, expected):
    report = run(Path(), None, source=stored(way))
    assert (report.planned, report.kept, len(set(report.ids))) == (24, 24, 24)
    for tap, values in expected.values.items():
        assert report.values[tap].tobytes() == values.tobytes()
    assert np.unique(expected.values["classifier"], axis=0).shape == (24, 10)


@pytest.mark.parametrize("way", WAYS)
def test_records_come_again_the_same_and_survive_a_trip_to_another_process(way, stored):
    def facts_of(source):
        return [(record.id, dict(record.meta)) for record in source.records()]

    source = built(stored(way))
    again = pickle.loads(pickle.dumps(source))
    assert facts_of(source) == facts_of(source) == facts_of(again) == facts_of(built(stored(way)))
    *_, last = source.records()
    assert type(pickle.loads(pickle.dumps(last.data))) is type(last.data)


STOP = [{"type": "stop", "after": 12}]
CONTAINERS = {"tar": "shard-001.tar", "parquet": "images.parquet", "npy": "images.npy", "hdf5": "images.h5"}


@pytest.mark.parametrize("way", ["tar", "parquet", "npy", "huggingface"])
def test_a_stopped_run_is_finished_to_the_same_bytes(way, stored, tmp_path):
    source = stored(way)
    with pytest.raises(layertap.PluginError, match="stopped"):
        run(Path(), tmp_path / "out", source=source, shard_rows=4, observers=STOP)
    assert any((tmp_path / "out/commits").iterdir())
    assert run(Path(), tmp_path / "out", source=source, shard_rows=4).kept == 24
    run(Path(), tmp_path / "whole", source=source, shard_rows=4)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("way", CONTAINERS)
def test_a_container_that_changed_meanwhile_is_refused(way, paths, tmp_path):
    source = WAYS[way](paths, tmp_path)
    with pytest.raises(layertap.PluginError, match="stopped"):
        run(Path(), tmp_path / "out", source=source, shard_rows=4, observers=STOP)
    os.utime(tmp_path / CONTAINERS[way], ns=(1, 1))
    with pytest.raises(layertap.StoreError, match="sizes and times of some images have changed") as refused:
        run(Path(), tmp_path / "out", source=source, shard_rows=4)
    assert refused.value.code == 6


@pytest.mark.parametrize("way", CONTAINERS)
def test_a_container_that_changes_after_listing_is_not_read_again(way, paths, tmp_path):
    source = built(WAYS[way](paths, tmp_path))
    *_, last = source.records()
    assert last.data()
    (tmp_path / CONTAINERS[way]).write_bytes(b"something else")
    with pytest.raises(layertap.ImageError) as refused:
        last.data()
    assert refused.value.reason == "changed"


@pytest.mark.parametrize(
    ("way", "module", "extra"),
    [
        ("table", "pyarrow", "parquet"),
        ("parquet", "pyarrow", "parquet"),
        ("hdf5", "h5py", "hdf5"),
        ("huggingface", "datasets", "huggingface"),
    ],
)
def test_a_missing_package_is_reported_with_the_command_to_install_it(way, module, extra, stored, monkeypatch):
    source = stored(way)
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(layertap.PluginError, match=rf"{module}.*pip install 'layertap\[{extra}\]'") as missing:
        run(Path(), None, source=source)
    assert missing.value.code == 2


@pytest.mark.parametrize("way", ["csv", "tar", "npy", "npz", "torchvision"])
def test_what_needs_no_package_works_without_them(way, stored, monkeypatch):
    source = stored(way)
    for name in ("pyarrow", "h5py", "datasets", "fsspec"):
        monkeypatch.setitem(sys.modules, name, None)
    assert len(list(built(source).records())) == 24
