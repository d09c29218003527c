"""`mode`: going on with an output, or replacing what layertap has written there."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

import layertap
from tests.pipeline.test_pipeline import contents, run
from tests.store.test_store import stop


def test_new_replaces_a_finished_output_and_leaves_nothing_beside_it(photos, tmp_path):
    run(photos, tmp_path / "out", taps=["features.0"])
    report = run(photos, tmp_path / "out", mode="new", taps=["classifier"])
    assert not report.already
    run(photos, tmp_path / "plain", taps=["classifier"])
    assert contents(tmp_path / "out") == contents(tmp_path / "plain")
    assert sorted(os.listdir(tmp_path)) == ["out", "plain"]
    assert layertap.open(tmp_path / "out").taps == ["classifier"]


def test_new_where_nothing_stands_is_a_run_like_any_other(photos, tmp_path):
    run(photos, tmp_path / "out", mode="new")
    assert sorted(os.listdir(tmp_path)) == ["out"]
    assert layertap.open(tmp_path / "out").manifest["replaces"] is None


def test_without_new_another_configuration_is_refused_and_told_of_it(photos, tmp_path):
    run(photos, tmp_path / "out")
    with pytest.raises(layertap.StoreError, match=r"taps was .*, now .*mode=new to replace it") as refused:
        run(photos, tmp_path / "out", taps=["classifier"])
    assert refused.value.code == 6


def test_until_it_is_complete_the_old_output_stays_readable(photos, tmp_path):
    run(photos, tmp_path / "out", taps=["features.0"])
    before = contents(tmp_path / "out")
    again = {"mode": "new", "taps": ["classifier"], "shard_rows": 4}
    with pytest.raises(layertap.PluginError, match="stopped"):
        run(photos, tmp_path / "out", **again, observers=[{"type": "stop", "after": 12}])
    assert contents(tmp_path / "out") == before
    assert layertap.open(tmp_path / "out").taps == ["features.0"]
    assert len(layertap.open(tmp_path / "out.new").ids) == 8
    # The same command goes on: two of its five shards are there already.
    assert run(photos, tmp_path / "out", **again).kept == 20
    assert layertap.open(tmp_path / "out")["classifier"].shape == (20, 10)
    assert sorted(os.listdir(tmp_path)) == ["out"]


def test_a_replacement_begun_for_another_configuration_begins_anew(photos, tmp_path):
    run(photos, tmp_path / "out")
    with pytest.raises(layertap.PluginError, match="stopped"):
        run(photos, tmp_path / "out", mode="new", shard_rows=4, observers=[{"type": "stop", "after": 12}])
    run(photos, tmp_path / "out", mode="new", taps=["classifier"], shard_rows=4)
    assert layertap.open(tmp_path / "out").taps == ["classifier"]
    assert sorted(os.listdir(tmp_path)) == ["out"]


def test_unfinished_output_of_the_same_configuration_is_gone_on_with(photos, tmp_path):
    stop(photos, tmp_path / "out")
    first = layertap.open(tmp_path / "out").manifest["run"]
    run(photos, tmp_path / "out", mode="new", shard_rows=4)
    assert layertap.open(tmp_path / "out").manifest["run"] == first


def test_unfinished_output_of_another_configuration_is_replaced(photos, tmp_path):
    stop(photos, tmp_path / "out")
    run(photos, tmp_path / "out", mode="new", taps=["classifier"])
    assert layertap.open(tmp_path / "out").taps == ["classifier"]
    assert sorted(os.listdir(tmp_path)) == ["out"]


def test_what_layertap_did_not_write_is_never_removed(photos, tmp_path):
    run(photos, tmp_path / "out")
    (tmp_path / "out/notes.txt").write_text("mine")
    (tmp_path / "out/plots").mkdir()
    (tmp_path / "out/plots/a.png").write_bytes(b"mine too")
    run(photos, tmp_path / "out", mode="new", taps=["classifier"])
    assert sorted(p.relative_to(tmp_path / "out.old").as_posix() for p in (tmp_path / "out.old").rglob("*")) == [
        "notes.txt",
        "plots",
        "plots/a.png",
    ]
    with pytest.raises(layertap.StoreError, match=r"out\.old: is in the way of replacing"):
        run(photos, tmp_path / "out", mode="new", taps=["features.0"])


@pytest.mark.parametrize("name", ["out", "out.new"])
def test_folder_that_is_not_ours_is_refused(photos, tmp_path, name):
    run(photos, tmp_path / "out")
    if name == "out":
        shutil.rmtree(tmp_path / "out")
    (tmp_path / name).mkdir(exist_ok=True)
    (tmp_path / name / "thesis.txt").write_text("years of work")
    with pytest.raises(layertap.StoreError, match="not empty and not a layertap output") as refused:
        run(photos, tmp_path / "out", mode="new")
    assert refused.value.code == 6
    assert (tmp_path / name / "thesis.txt").read_text() == "years of work"


def test_finished_output_that_merely_has_the_name_of_a_replacement_is_not_touched(photos, tmp_path):
    run(photos, tmp_path / "out")
    run(photos, tmp_path / "out.new", taps=["classifier"])
    with pytest.raises(layertap.StoreError, match=r"out\.new: is in the way"):
        run(photos, tmp_path / "out", mode="new")
    assert layertap.open(tmp_path / "out.new").taps == ["classifier"]


def test_crash_between_the_two_renames_is_mended_by_the_next_run(photos, tmp_path):
    run(photos, tmp_path / "out", taps=["classifier"])
    run(photos, tmp_path / "new", taps=["features.0"])
    old = layertap.open(tmp_path / "out").manifest["run"]
    manifest = json.loads((tmp_path / "new/manifest.json").read_text())
    (tmp_path / "new/manifest.json").write_text(json.dumps({**manifest, "replaces": old}))
    os.rename(tmp_path / "out", tmp_path / "out.old")
    os.rename(tmp_path / "new", tmp_path / "out.new")
    assert run(photos, tmp_path / "out", taps=["features.0"]).already
    assert sorted(os.listdir(tmp_path)) == ["out"]


def test_replacement_that_was_complete_but_not_yet_in_place_takes_it(photos, tmp_path):
    run(photos, tmp_path / "out", taps=["classifier"])
    run(photos, tmp_path / "out.new", taps=["features.0"])
    manifest = json.loads((tmp_path / "out.new/manifest.json").read_text())
    manifest["replaces"] = layertap.open(tmp_path / "out").manifest["run"]
    (tmp_path / "out.new/manifest.json").write_text(json.dumps(manifest))
    assert run(photos, tmp_path / "out", taps=["features.0"], mode="new").already
    assert layertap.open(tmp_path / "out").taps == ["features.0"]
    assert sorted(os.listdir(tmp_path)) == ["out"]


def test_replacement_that_was_stopped_while_sweeping_is_swept_before_it_takes_its_place(photos, tmp_path):
    run(photos, tmp_path / "out", taps=["features.0"])
    run(photos, tmp_path / "out.new", shard_rows=4)
    manifest = json.loads((tmp_path / "out.new/manifest.json").read_text())
    manifest["replaces"] = layertap.open(tmp_path / "out").manifest["run"]
    (tmp_path / "out.new/manifest.json").write_text(json.dumps(manifest))
    before = contents(tmp_path / "out.new")
    stop(photos, tmp_path / "stopped")
    for name in ("parts", "commits"):
        shutil.copytree(tmp_path / "stopped" / name, tmp_path / "out.new" / name)
    assert run(photos, tmp_path / "out", shard_rows=4, mode="new").already
    assert contents(tmp_path / "out") == before
    assert not {"parts", "commits"}.intersection(os.listdir(tmp_path / "out"))


def test_empty_folder_left_of_a_replaced_output_is_no_hindrance(photos, tmp_path):
    run(photos, tmp_path / "out")
    (tmp_path / "out.old").mkdir()
    run(photos, tmp_path / "out", taps=["classifier"], mode="new")
    assert sorted(os.listdir(tmp_path)) == ["out"]


def test_output_behind_a_link_is_replaced_where_it_is(photos, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk/out")
    (tmp_path / "disk/out").mkdir()
    run(photos, tmp_path / "link")
    run(photos, tmp_path / "link", mode="new", taps=["classifier"])
    assert (tmp_path / "link").is_symlink()
    assert os.listdir(tmp_path / "disk") == ["out"]
    assert layertap.open(tmp_path / "disk/out").taps == ["classifier"]


@pytest.mark.parametrize("name", ["parts", "commits"])
def test_nothing_is_written_or_removed_through_a_link(photos, tmp_path, name):
    stop(photos, tmp_path / "out")
    elsewhere = tmp_path / "elsewhere"
    os.rename(tmp_path / "out" / name, elsewhere)
    (tmp_path / "out" / name).symlink_to(elsewhere)
    before = sorted(elsewhere.rglob("*"))
    for mode in ("resume", "new"):
        with pytest.raises(layertap.StoreError, match="is a link") as refused:
            run(photos, tmp_path / "out", shard_rows=4, mode=mode)
        assert refused.value.code == 6
    assert sorted(elsewhere.rglob("*")) == before


def test_temporary_file_that_is_a_link_is_not_written_through(photos, tmp_path):
    stop(photos, tmp_path / "out")
    victim = tmp_path / "victim"
    victim.write_text("precious")
    Path(tmp_path / "out/manifest.json.tmp").symlink_to(victim)
    with pytest.raises(layertap.StoreError) as refused:
        run(photos, tmp_path / "out", shard_rows=4)
    assert refused.value.code == 7
    assert victim.read_text() == "precious"


def test_first_write_cut_short_does_not_lock_the_folder_for_ever(photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/manifest.json.tmp").write_text('{"lay')
    assert run(photos, tmp_path / "out").kept == 20
