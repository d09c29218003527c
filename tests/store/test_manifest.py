"""The manifest: what it says, its schema, and what a hostile one can do, which is nothing."""

from __future__ import annotations

import json
import os
from importlib.resources import files
from pathlib import Path

import jsonschema
import numpy as np
import pytest

import layertap
from layertap.store.manifest import Manifest
from tests.pipeline.test_pipeline import run
from tests.store.test_store import stop

SCHEMA = json.loads(files("layertap.store").joinpath("manifest.schema.json").read_text("utf-8"))


def read(out: Path) -> dict:
    return json.loads((out / "manifest.json").read_text())


def test_schema_in_the_package_is_that_of_the_manifest():
    """To print it anew: layertap schema --manifest > layertap/store/manifest.schema.json"""
    assert Manifest.model_json_schema() == SCHEMA


def test_manifest_is_valid_by_its_schema_at_every_stage(photos, tmp_path):
    run(photos, tmp_path / "out", shard_rows=4)
    stop(photos, tmp_path / "stopped")
    for out in ("out", "stopped"):
        jsonschema.Draft202012Validator(SCHEMA).validate(read(tmp_path / out))


def test_manifest_says_how_its_features_came_about(photos, tmp_path):
    run(photos, tmp_path / "out", shard_rows=4)
    manifest = read(tmp_path / "out")
    assert manifest["owner"] is None
    assert set(manifest["versions"]) >= {"layertap", "torch", "torchvision", "pillow", "numpy"}
    assert set(manifest["timing"]) == {"start", "read", "decode", "prepare", "wait", "forward", "write"}
    assert all(seconds >= 0 for seconds in manifest["timing"].values())
    assert [shard["planned"] for shard in manifest["shards"]] == [4] * 5
    assert set(manifest["files"]) == {"classifier.npy", "features.0.npy", "failures.csv", "index.csv"}
    assert manifest["finished"] >= manifest["started"]


def test_unfinished_manifest_says_who_writes(photos, tmp_path):
    stop(photos, tmp_path / "out")
    assert read(tmp_path / "out")["owner"]["pid"] == os.getpid()


def test_what_was_converted_on_the_way_is_counted(tmp_path, photographs):
    (tmp_path / "photos").mkdir()
    photographs[0].convert("CMYK").save(tmp_path / "photos/a.jpg")
    photographs[0].convert("RGBA").resize((40, 40)).save(tmp_path / "photos/b.png")
    photographs[0].save(tmp_path / "photos/c.jpg")
    report = run(tmp_path / "photos", tmp_path / "out")
    assert report.notes == {"cmyk": 1, "alpha": 1, "icc_profile": 1}
    assert read(tmp_path / "out")["notes"] == {"alpha": 1, "cmyk": 1, "icc_profile": 1}


def spoil(out: Path, **changes: object) -> None:
    (out / "manifest.json").write_text(json.dumps({**read(out), **changes}))


def hostile_tap(**changes: object):
    def change(out: Path) -> None:
        manifest = read(out)
        manifest["taps"]["classifier"] |= changes
        (out / "manifest.json").write_text(json.dumps(manifest))

    return change


def replaced(name: str, how):
    def change(out: Path) -> None:
        (out / name).unlink()
        how(out / name)

    return change


def object_array(path: Path) -> None:
    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(path.parent.parent / "canary"),))

    np.save(path, np.array([Payload()] * 20, dtype=object), allow_pickle=True)


def huge_header(path: Path) -> None:
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (2**50, 10)}
        np.lib.format.write_array_header_1_0(file, header)


def text(content: str, name: str = "manifest.json"):
    return replaced(name, lambda path: path.write_text(content))


HOSTILE = {
    "nothing": text(""),
    "not JSON": text("{"),
    "a list": text("[]"),
    "deep": text("[" * 100_000),
    "binary": replaced("manifest.json", lambda path: path.write_bytes(b"\xff\xfe\x00")),
    "another version": lambda out: spoil(out, layertap=99),
    "version as text": lambda out: spoil(out, layertap="1"),
    "no taps": lambda out: spoil(out, taps=None),
    "sink that is not installed": lambda out: spoil(out, config={"sink": {"type": "os.system", "path": "x"}}),
    "no sink": lambda out: spoil(out, config={}),
    "sink with other parameters": lambda out: spoil(out, config={"sink": {"type": "npy", "path": "x", "run": "y"}}),
    "sink without files": lambda out: spoil(out, config={"sink": {"type": "memory"}}),
    "file above": lambda out: spoil(out, files={"../../etc/passwd": {"bytes": 1, "sha256": "0" * 64}}),
    "absolute file": lambda out: spoil(out, files={"/etc/passwd": {"bytes": 1, "sha256": "0" * 64}}),
    "stem above": hostile_tap(file="../secret"),
    "absolute stem": hostile_tap(file="/etc/passwd"),
    "object dtype": hostile_tap(dtype="object"),
    "void dtype": hostile_tap(dtype="V1000000"),
    "negative shape": hostile_tap(shape=[-1]),
    "huge shape": hostile_tap(shape=[2**60]),
    "other shape": hostile_tap(shape=[11]),
    "pickled array": replaced("classifier.npy", object_array),
    "huge array": replaced("classifier.npy", huge_header),
    "no array": text("hello", "classifier.npy"),
    "linked array": replaced("classifier.npy", lambda path: path.symlink_to("/etc/passwd")),
    "linked manifest": replaced("manifest.json", lambda path: path.symlink_to("/etc/passwd")),
    "pipe for a manifest": replaced("manifest.json", os.mkfifo),
    "pipe for an index": replaced("index.csv", os.mkfifo),
    "linked index": replaced("index.csv", lambda path: path.symlink_to("/etc/passwd")),
    "index without ids": text("a,b\n1,2\n", "index.csv"),
    "index with words for numbers": text("row,id,label\none,a,b\n", "index.csv"),
    "long field": text("row,id,label\n0," + "x" * 200_000 + ",b\n", "index.csv"),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_hostile_output_is_refused_in_one_line_and_runs_nothing(photos, tmp_path, change):
    run(photos, tmp_path / "out")
    change(tmp_path / "out")
    with pytest.raises(layertap.LayertapError) as refused:
        read_all(tmp_path / "out")
    assert "\n" not in str(refused.value)
    assert refused.value.code in ((2,) if change is HOSTILE["sink that is not installed"] else (6, 7))
    assert not (tmp_path / "canary").exists()


def read_all(out: Path) -> None:
    features = layertap.open(out)
    assert features["classifier"].shape == (20, 10)
    assert len(features.index) == len(features.failures) + 20


UNFINISHED = {
    "record above": {"files": {"../../../secret": {"bytes": 1, "sha256": "0" * 64}}},
    "record of another shard": {"shard": 3},
    "record without rows": {"kept": None},
    "record with a list for an id": {"kept": [{"id": ["a"], "meta": {}}]},
    "record of a file that is not there": {"files": {"other.npy": {"bytes": 1, "sha256": "0" * 64}}},
}


@pytest.mark.parametrize("changes", UNFINISHED.values(), ids=UNFINISHED)
def test_hostile_commit_record_is_refused(photos, tmp_path, changes):
    stop(photos, tmp_path / "out")
    record = tmp_path / "out/commits/00001.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), **changes}))
    with pytest.raises(layertap.StoreError):
        assert layertap.open(tmp_path / "out")["classifier"].shape == (8, 10)
