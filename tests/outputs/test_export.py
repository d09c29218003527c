"""`layertap export`: any output by any sink and back, to the bit, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import layertap
from layertap.pipeline.verify import verify
from layertap.plugins import Plugins
from layertap.store.lock import Lock
from tests.cli.test_main import layertap_  # noqa: F401
from tests.conftest import TINY

TYPED = str(Path(__file__).parents[1] / "typed.py")
OWN = [TINY, TYPED]
TAPS = [
    "features.0",
    {"layer": "classifier", "name": "text", "dtype": "bfloat16"},
    {"layer": "features.4", "name": "maps", "dtype": "float16"},
]
TYPES = sorted(
    known.type_name for known in Plugins.load(OWN) if known.kind == "sink" and issubclass(known.cls, layertap.FileSink)
)

SMALL: dict[str, Any] = {"source": {"type": "typed", "count": 10}, "shard_rows": 4}
PAIRED = [type_name for type_name in TYPES if type_name != "deadly"]


def extracted(out: Path, **changes: Any) -> Any:
    config = {
        "model": "tiny",
        "taps": TAPS,
        "source": "typed",
        "sink": {"type": "npy", "path": str(out)},
        "device": "cpu",
        "batch_size": 2,
        "shard_rows": 6,
        "observers": [],
        **changes,
    }
    return layertap.run(config, plugins=OWN)


def opened(path: Path) -> Any:
    return layertap.open(path, plugins=OWN)


def assert_same(path: Path, source: Any, taps: list[str] | None = None) -> None:
    """An export holds what its original holds, and nothing of it is left beside it."""
    with opened(path) as found:
        assert found.is_complete
        assert found.taps == (taps or source.taps)
        for tap in found.taps:
            assert found[tap].dtype == source[tap].dtype
            assert found[tap].shape == source[tap].shape
            assert found[tap][:].tobytes() == source[tap][:].tobytes()
            picked = [2, 0, 2, -1] if len(source.ids) else []
            assert np.asarray(found[tap][picked]).tobytes() == source[tap][picked].tobytes()
    for name in ("index.csv", "failures.csv"):
        assert (path / name).read_bytes() == (source.path / name).read_bytes()
    assert verify(path, rows=0, plugins=OWN).faults == []
    assert not path.with_name(f"{path.name}.export").exists()


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Any:
    """An output of 10 images in three shards, one image of them failed."""
    out = tmp_path_factory.mktemp("source") / "out"
    extracted(out, **SMALL)
    return opened(out)


@pytest.fixture(scope="module")
def exports(source, tmp_path_factory) -> dict[str, Path]:
    """The output as every sink writes it."""
    root = tmp_path_factory.mktemp("exports")
    return {type_name: source.export(type_name, root / type_name) for type_name in PAIRED}


@pytest.fixture(scope="module")
def rowless(tmp_path_factory) -> Any:
    """An output of 6 images that all failed."""
    out = tmp_path_factory.mktemp("rowless") / "out"
    extracted(out, source={"type": "typed", "count": 6, "bad": True})
    return opened(out)


def test_first_party_sinks_are_among_those_tried():
    assert {"npy", "parts", "deadly"} <= set(TYPES)


@pytest.mark.parametrize("type_name", PAIRED)
def test_every_sink_takes_an_export(source, exports, type_name):
    assert_same(exports[type_name], source)


@pytest.mark.parametrize("after", PAIRED)
@pytest.mark.parametrize("before", PAIRED)
def test_every_sink_exports_to_every_other_to_the_bit(source, exports, tmp_path, before, after):
    opened(exports[before]).export(after, tmp_path / "out")
    assert_same(tmp_path / "out", source)


@pytest.mark.parametrize("type_name", PAIRED)
def test_output_without_a_row_can_be_exported(rowless, tmp_path, type_name):
    assert len(rowless["maps"]) == 0
    rowless.export(type_name, tmp_path / "out")
    assert_same(tmp_path / "out", rowless)
    assert len(opened(tmp_path / "out").failures) == 6


def test_export_is_an_output_as_its_run_would_have_written_it(source, exports):
    report = extracted(exports["parts"], sink={"type": "parts", "path": str(exports["parts"])}, **SMALL)
    assert report.already
    found, made = opened(exports["parts"]).manifest, source.manifest
    assert found["run"] != made["run"]
    assert found["config"]["sink"] == {"type": "parts", "path": str(exports["parts"])}
    assert found["versions"]["typed.py"].startswith("sha256:")
    for key in ("model", "device", "started", "seconds", "shards", "counts", "failures", "notes", "meta", "host"):
        assert found[key] == made[key], key


def test_rows_of_an_export_are_computed_again(source, tmp_path):
    source.export("npy", tmp_path / "out", "text")
    verdict = verify(tmp_path / "out", plugins=OWN)
    assert verdict.faults == verdict.environment == []
    assert len(verdict.rows) == 9


def test_chosen_taps_alone_are_exported(tmp_path):
    taps = ["features.*", "<classifier", {"layer": "features.4", "name": "pooled", "reduce": "mean_pool"}]
    extracted(tmp_path / "all", taps=taps, source={"type": "typed", "count": 6}, shard_rows=None)
    source = opened(tmp_path / "all")
    source.export("npy", tmp_path / "out", ["pooled", "features.3", "<classifier"])
    assert_same(tmp_path / "out", source, ["features.3", "<classifier", "pooled"])
    assert verify(tmp_path / "out", plugins=OWN).faults == []
    config = opened(tmp_path / "out").manifest["config"]
    assert [tap if isinstance(tap, str) else tap["name"] for tap in config["taps"]] == [
        "features.3",
        "<classifier",
        "pooled",
    ]


def test_metadata_keeps_its_types(source, exports):
    for path in exports.values():
        assert opened(path).index == source.index
        assert opened(path).meta == source.meta


def test_memory_is_bounded_by_shards(tmp_path):
    extracted(
        tmp_path / "in",
        taps=["features.0"],
        source={"type": "typed", "count": 600},
        batch_size=10,
        shard_rows=10,
        max_failures=200,
    )
    source = opened(tmp_path / "in")
    rows = source["features.0"]
    whole, shard = np.asarray(rows).nbytes, 10 * rows[0].nbytes
    source.export("parts", tmp_path / "warm")
    tracemalloc.start()
    source.export("parts", tmp_path / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # What is not a shard: the table of plugins, the buffer of a digest, the manifest as text.
    assert peak < 6 * shard + 700_000 < whole / 2


def test_damaged_rows_are_refused_and_nothing_is_left(source, tmp_path):
    shutil.copytree(source.path, tmp_path / "in")
    with open(tmp_path / "in/maps.npy", "r+b") as file:
        file.seek(-5, os.SEEK_END)
        file.write(b"\xff")
    with pytest.raises(layertap.StoreError, match="the rows of 'maps' in shard 2 are damaged"):
        opened(tmp_path / "in").export("npy", tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["in"]
    opened(tmp_path / "in").export("npy", tmp_path / "out", ["text"])


@pytest.mark.parametrize("name", ["index.csv", "failures.csv", "text.npy"])
@pytest.mark.parametrize("how", ["cut", "gone", "link"])
def test_damaged_files_are_refused_before_anything_is_written(source, tmp_path, name, how):
    shutil.copytree(source.path, tmp_path / "in")
    file = tmp_path / "in" / name
    if how == "cut":
        os.truncate(file, file.stat().st_size - 7)
    else:
        file.rename(tmp_path / name)
        if how == "link":
            file.symlink_to(tmp_path / name)
    with pytest.raises(layertap.StoreError):
        opened(tmp_path / "in").export("npy", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.export").exists()


@pytest.mark.parametrize("key", ["model", "taps", "source"])
def test_manifest_of_a_strangers_is_told_in_a_line(source, tmp_path, key):
    shutil.copytree(source.path, tmp_path / "in")
    manifest = json.loads((tmp_path / "in/manifest.json").read_text())
    manifest["config"][key] = 7
    (tmp_path / "in/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(layertap.StoreError, match="was modified after it was written"):
        opened(tmp_path / "in").export("npy", tmp_path / "out", "maps")
    assert not (tmp_path / "out.export").exists()


def test_unfinished_output_is_refused_with_advice(tmp_path):
    with pytest.raises(layertap.LayertapError):
        extracted(tmp_path / "in", observers=[{"type": "stop", "after": 12}])
    with pytest.raises(layertap.StoreError, match="is unfinished; finish it"):
        opened(tmp_path / "in").export("npy", tmp_path / "out")


def test_taken_places_are_refused_and_left_alone(source, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for place in ("full", "file"):
        with pytest.raises(layertap.StoreError) as caught:
            source.export("npy", tmp_path / place)
        assert caught.value.code == 6
    with pytest.raises(layertap.StoreError, match="would be inside the output"):
        source.export("npy", source.path / "again")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "full"]
    (tmp_path / "empty").mkdir()
    source.export("npy", tmp_path / "empty")
    assert_same(tmp_path / "empty", source)


@pytest.mark.parametrize("type_name", ["npy", "thingsvision"])
def test_what_stands_where_an_export_is_built_is_left_alone(source, tmp_path, type_name):
    """Neither a folder of the user's nor a finished output, the original among them, is taken for a begun export."""
    (tmp_path / "a.export").mkdir()
    (tmp_path / "a.export/mine").write_text("mine")
    shutil.copytree(source.path, tmp_path / "b.export")
    for place in ("a", "b"):
        with pytest.raises(layertap.StoreError, match="is in the way of an export"):
            source.export(type_name, tmp_path / place, "maps")
    with pytest.raises(layertap.StoreError, match=r"is in the way of an export|would be inside the output"):
        opened(tmp_path / "b.export").export(type_name, tmp_path / "b", "maps")
    assert (tmp_path / "a.export/mine").read_text() == "mine"
    assert verify(tmp_path / "b.export", rows=0, plugins=OWN).faults == []


def test_two_exports_to_one_place_do_not_mix(source, tmp_path):
    (tmp_path / "out.export").mkdir()
    with Lock(tmp_path / "out.export"), pytest.raises(layertap.StoreError) as caught:
        source.export("npy", tmp_path / "out")
    assert caught.value.code == 5


@pytest.mark.parametrize("place", ["open", "save 0", "save 2", "merge", "close"])
def test_export_that_was_stopped_goes_on(source, tmp_path, monkeypatch, place):
    monkeypatch.setenv("DEADLY", str(tmp_path / "fate"))
    (tmp_path / "fate").write_text(f"raise {place}")
    with pytest.raises(layertap.PluginError):
        source.export("deadly", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    source.export("deadly", tmp_path / "out")
    assert_same(tmp_path / "out", source)


@pytest.mark.parametrize("then", [("npy", None), ("deadly", ["maps"]), ("thingsvision", ["text"])])
def test_another_export_takes_the_place_of_a_stopped_one(source, tmp_path, monkeypatch, then):
    monkeypatch.setenv("DEADLY", str(tmp_path / "fate"))
    (tmp_path / "fate").write_text("raise save 2")
    with pytest.raises(layertap.PluginError):
        source.export("deadly", tmp_path / "out")
    source.export(then[0], tmp_path / "out", then[1])
    assert not (tmp_path / "out.export").exists()
    if then[0] != "thingsvision":
        assert_same(tmp_path / "out", source, then[1])


def test_killed_export_goes_on_where_it_was(source, tmp_path, monkeypatch):
    (tmp_path / "fate").write_text("kill save 2")
    command = [sys.executable, "-m", "layertap", "export", source.path, "deadly", tmp_path / "out"]
    command += ["--plugin", TINY, "--plugin", TYPED]
    environment = {**os.environ, "DEADLY": str(tmp_path / "fate")}
    assert subprocess.run(command, env=environment, timeout=60).returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    before = opened(tmp_path / "out.export")
    assert not before.is_complete
    assert len(before.ids) == sum(facts["kept"] for facts in source.manifest["shards"][:2])
    source.export("deadly", tmp_path / "out")
    assert_same(tmp_path / "out", source)
    assert opened(tmp_path / "out").manifest["run"] == before.manifest["run"]


def test_shards_of_another_original_are_not_gone_on_with(source, tmp_path, monkeypatch):
    """The same configuration, another machine's last bits."""
    monkeypatch.setenv("DEADLY", str(tmp_path / "fate"))
    (tmp_path / "fate").write_text("raise save 2")
    with pytest.raises(layertap.PluginError):
        source.export("deadly", tmp_path / "out")
    begun = tmp_path / "out.export/commits/00001.json"
    digest = source.manifest["shards"][1]["values"]["maps"]
    begun.write_text(begun.read_text().replace(digest, digest[::-1]))
    source.export("deadly", tmp_path / "out")
    assert_same(tmp_path / "out", source)


def test_thingsvision_layout_holds_features_and_names_in_order(source, tmp_path):
    for tap, dtype in (("text", np.float32), ("maps", np.float16)):
        source.export("thingsvision", tmp_path / tap, tap)
        found = np.load(tmp_path / tap / "features.npy")
        assert found.dtype == dtype
        assert np.array_equal(found, source[tap][:].astype(dtype))
        assert (tmp_path / tap / "file_names.txt").read_text("utf-8").split("\n") == [*source.ids, ""]
        assert sorted(p.name for p in (tmp_path / tap).iterdir()) == ["features.npy", "file_names.txt"]


def test_clip_retrieval_layout_holds_vectors_and_metadata(source, tmp_path):
    from pyarrow import parquet

    source.export("clip_retrieval", tmp_path / "out", "text")
    found = np.load(tmp_path / "out/img_emb/img_emb_0.npy")
    assert found.dtype == np.float32
    assert np.array_equal(found, source["text"][:].astype(np.float32))
    rows = parquet.read_table(tmp_path / "out/metadata/metadata_0.parquet").to_pylist()
    assert [row.pop("image_path") for row in rows] == source.ids
    wanted = [{key: value for key, value in row.items() if key not in ("row", "id")} for row in source.index]
    assert rows == [{**row, "large": str(row["large"])} for row in wanted]


@pytest.mark.parametrize("type_name", ["thingsvision", "clip_retrieval"])
def test_layouts_hold_no_row_too(rowless, tmp_path, type_name):
    rowless.export(type_name, tmp_path / "out", "text")
    (file,) = (tmp_path / "out").rglob("*.npy")
    assert np.load(file).shape == (0, 10)


def test_what_a_type_cannot_hold_is_said_first(source, tmp_path):
    for type_name, taps, said in [
        ("thingsvision", None, "holds one tap, but 3 were given"),
        ("clip_retrieval", "maps", r"'maps' has the shape \(8, 5, 5\) per image"),
        ("memory", None, "keeps no output folder"),
        ("nppy", None, "did you mean 'npy'"),
        ("npy", [], "at least one tap"),
    ]:
        with pytest.raises(layertap.ConfigError, match=said):
            source.export(type_name, tmp_path / "out", taps)
    with pytest.raises(layertap.StoreError, match="did you mean 'maps'"):
        source.export("npy", tmp_path / "out", "map")
    assert list(tmp_path.iterdir()) == []


def test_command_line_exports(source, tmp_path, layertap_):  # noqa: F811
    own = ["--plugin", TINY, "--plugin", TYPED]
    code, out, err = layertap_("export", source.path, "npy", tmp_path / "out", "--tap", "maps", "--tap", "text", *own)
    assert (code, out, err) == (0, f"9 rows of text, maps -> {tmp_path / 'out'} (npy)\n", "")
    assert_same(tmp_path / "out", source, ["text", "maps"])
    code, out, err = layertap_("export", source.path, "npy", tmp_path / "out", *own)
    assert (code, out) == (6, "")
    assert err == f"{tmp_path / 'out'}: is not empty; an export goes into a new folder or an empty one\n"
