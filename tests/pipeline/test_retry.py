"""`--retry-failed`: images that failed for a passing reason get their rows, as if they had never failed."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest

import layertap
from tests.conftest import TINY
from tests.pipeline.test_pipeline import config, contents


@pytest.fixture
def flaky(photos, tmp_path):
    """The photographs, some of which are links into a folder that comes and goes."""
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos/away").mkdir()
    for name in ("cats/05.jpg", "dogs/18.jpg"):
        os.rename(tmp_path / "photos" / name, tmp_path / "photos/away" / os.path.basename(name))
        (tmp_path / "photos" / name).symlink_to(f"../away/{os.path.basename(name)}")
    return tmp_path / "photos"


INCLUDE = ["cats/*", "dogs/*"]


def extract(photos, out, *, retry_failed=False, **changes):
    source = {"type": "folder", "path": str(photos), "include": INCLUDE}
    whole = config(photos, out, source=source, shard_rows=4, **changes)
    return layertap.run(whole, plugins=[TINY], retry_failed=retry_failed)


def gone(photos):
    os.rename(photos / "away", photos / "elsewhere")


def back(photos):
    os.rename(photos / "elsewhere", photos / "away")


def test_retried_output_is_the_one_that_had_no_failure(flaky, tmp_path):
    extract(flaky, tmp_path / "whole")
    gone(flaky)
    assert extract(flaky, tmp_path / "out").reasons == {"not_found": 2}
    back(flaky)
    report = extract(flaky, tmp_path / "out", retry_failed=True)
    assert (report.kept, report.failed, report.already) == (20, 0, False)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "photos", "whole"]


def test_what_fails_again_stays_listed_and_lasting_failures_are_not_tried(flaky, tmp_path):
    (flaky / "cats/01.jpg").write_text("no image")
    gone(flaky)
    assert extract(flaky, tmp_path / "out").failed == 3
    before = contents(tmp_path / "out")
    report = extract(flaky, tmp_path / "out", retry_failed=True)
    assert report.reasons == {"not_found": 2, "not_image": 1}
    assert contents(tmp_path / "out") == before
    back(flaky)
    assert extract(flaky, tmp_path / "out", retry_failed=True).reasons == {"not_image": 1}
    assert extract(flaky, tmp_path / "out", retry_failed=True).already


def test_nothing_to_retry_is_no_error(photos, tmp_path):
    extract(photos, tmp_path / "out")
    assert extract(photos, tmp_path / "out", retry_failed=True).already


def test_only_the_shards_with_such_failures_are_computed_again(flaky, tmp_path):
    (tmp_path / "count.py").write_text(
        "import layertap\n"
        "from tests.tiny import Tiny\n"
        "class Counting(Tiny):\n"
        "    def load(self):\n"
        "        loaded = super().load()\n"
        "        loaded.module.register_forward_pre_hook(lambda m, args: print('batch', len(args[0])))\n"
        "        return loaded\n"
        "@layertap.hookimpl\n"
        "def register_models(register): register('counting', Counting)\n"
    )
    gone(flaky)
    source = {"type": "folder", "path": str(flaky), "include": INCLUDE}
    whole = config(flaky, tmp_path / "out", source=source, shard_rows=4, model="counting")
    plugins = [TINY, str(tmp_path / "count.py")]
    layertap.run(whole, plugins=plugins)
    back(flaky)
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as said:
        layertap.run(whole, plugins=plugins, retry_failed=True)
    # Two of the five shards, a batch of four each, after the probes of 2 and 3.
    assert said.getvalue().split("\n").count("batch 4") == 2


def test_kept_rows_whose_files_have_changed_are_not_mixed_with_new_ones(flaky, tmp_path):
    gone(flaky)
    extract(flaky, tmp_path / "out")
    back(flaky)
    os.utime(flaky / "cats/09.jpg", (1, 1))
    before = contents(tmp_path / "out")
    with pytest.raises(layertap.StoreError, match="files of some of its rows have changed") as refused:
        extract(flaky, tmp_path / "out", retry_failed=True)
    assert refused.value.code == 6
    assert contents(tmp_path / "out") == before


def test_interrupted_retry_goes_on(flaky, tmp_path):
    extract(flaky, tmp_path / "whole")
    gone(flaky)
    extract(flaky, tmp_path / "out")
    back(flaky)
    with pytest.raises(layertap.PluginError, match="stopped"):
        extract(flaky, tmp_path / "out", retry_failed=True, observers=[{"type": "stop", "after": 12}])
    assert len(layertap.open(tmp_path / "out").ids) == 18
    assert extract(flaky, tmp_path / "out", retry_failed=True).kept == 20
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_damaged_rows_are_not_carried_over(flaky, tmp_path):
    gone(flaky)
    extract(flaky, tmp_path / "out")
    back(flaky)
    array = np.load(tmp_path / "out/classifier.npy")
    array += 1
    np.save(tmp_path / "out/classifier.npy", array)
    with pytest.raises(layertap.StoreError, match=r"'classifier' in shard . are damaged"):
        extract(flaky, tmp_path / "out", retry_failed=True)


def test_sink_without_a_folder_has_nothing_to_retry(photos):
    with pytest.raises(layertap.ConfigError, match="keeps no output folder"):
        layertap.run(config(photos, None), plugins=[TINY], retry_failed=True)


def test_arrays_of_a_shard_that_is_kept_are_the_sinks_own(flaky, tmp_path):
    (tmp_path / "own.py").write_text(
        "import layertap\n"
        "from layertap_plugins.sinks.npy import NpySink\n"
        "class Own(NpySink):\n"
        "    def save(self, shard, folder):\n"
        "        assert all(values.flags.writeable for values in shard.values.values()), shard.number\n"
        "        super().save(shard, folder)\n"
        "@layertap.hookimpl\n"
        "def register_sinks(register): register('own', Own)\n"
    )
    source = {"type": "folder", "path": str(flaky), "include": INCLUDE}
    whole = config(flaky, None, source=source, shard_rows=4, sink={"type": "own", "path": str(tmp_path / "out")})
    plugins = [TINY, str(tmp_path / "own.py")]
    gone(flaky)
    assert layertap.run(whole, plugins=plugins).failed == 2
    back(flaky)
    assert layertap.run(whole, plugins=plugins, retry_failed=True).kept == 20
