"""Data sets of the library `datasets` give the bytes that they store, and nothing beyond their own folder."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import datasets
import huggingface_hub.constants
import numpy as np
import pydantic
import pytest
from PIL import Image

import layertap
from layertap_plugins.sources.huggingface import HuggingFaceSource
from layertap_plugins.sources.parquet import ParquetSource
from tests.plugins.storing import refusal


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def files(tmp_path):
    found = []
    for number in range(4):
        found.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(np.full((4, 6, 3), number, np.uint8)).save(found[-1])
    return found


def made(files, **columns):
    labels = datasets.ClassLabel(names=["cat", "dog"])
    features = {"label": labels, "box": datasets.List(datasets.Value("int64")), "image": datasets.Image()}
    features |= {name: datasets.Value("string") for name in columns}
    rows = {"image": files, "label": [0, 1, 0, -1], "box": [[1]] * 4, **columns}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def records(path, **params):
    return list(HuggingFaceSource.of(path=str(path), **params).records())


def fault(path, **params):
    return refusal(lambda: records(path, **params))


def test_a_saved_data_set_gives_its_bytes_and_its_classes_by_name(files, tmp_path):
    made(files, id=list("abcd")).save_to_disk(tmp_path / "saved")
    found = records(tmp_path / "saved")
    assert [record.data() for record in found] == [Path(file).read_bytes() for file in files]
    assert [record.id for record in found] == [f"{number:08d}" for number in range(4)]
    assert [record.meta for record in found] == [
        {"label": label, "box": [1], "id_": name}
        for label, name in zip(["cat", "dog", "cat", None], "abcd", strict=True)
    ]
    assert [record.id for record in records(tmp_path / "saved", id="id")] == list("abcd")


def test_splits_are_named_where_there_are_several(files, tmp_path):
    several = datasets.DatasetDict({"train": made(files), "test": made(files).select([1])})
    several.save_to_disk(tmp_path / "several")
    assert "there are several splits, so name one" in fault(tmp_path / "several")
    assert "there is no split 'tain' " in fault(tmp_path / "several", split="tain")
    assert [record.meta["label"] for record in records(tmp_path / "several", split="test")] == ["dog"]
    datasets.DatasetDict({"train": made(files)}).save_to_disk(tmp_path / "one")
    assert len(records(tmp_path / "one")) == 4


def test_the_column_is_the_first_of_images_or_the_one_that_is_named(files, tmp_path):
    rows = {"raw": [b"1", b"2"], "first": files[:2], "second": files[2:]}
    kinds = {"raw": datasets.Value("binary"), "first": datasets.Image(), "second": datasets.Image()}
    datasets.Dataset.from_dict(rows, features=datasets.Features(kinds)).save_to_disk(tmp_path / "saved")
    for column, expected in (
        (None, Path(files[0]).read_bytes()),
        ("second", Path(files[2]).read_bytes()),
        ("raw", b"1"),
    ):
        first, _ = records(tmp_path / "saved", column=column)
        assert first.data() == expected
        assert first.meta == {}
    assert "has no column 'frist'; did you mean 'first'?" in fault(tmp_path / "saved", column="frist")


def test_a_data_set_without_images_says_what_it_has(tmp_path):
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "saved")
    assert "has no column of images (it has text)" in fault(tmp_path / "saved")
    assert "holds Value('string'), not images" in fault(tmp_path / "saved", column="text")


def test_paths_that_a_data_set_names_outside_its_folder_are_not_read(files, tmp_path):
    saved = tmp_path / "saved"
    kinds = datasets.Features({"image": datasets.Image(decode=False)})
    inside = saved / "own.png"
    paths = [str(inside), "/etc/passwd", str(saved / "../0.png"), "/dev/zero", None]
    rows = {"image": [{"bytes": None, "path": path} for path in paths]}
    plain = datasets.Dataset.from_dict(
        rows,
        features=datasets.Features({"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}}),
    )
    plain.save_to_disk(saved)
    info = json.loads((saved / "dataset_info.json").read_text())
    info["features"] = {"image": {"decode": False, "_type": "Image"}}
    (saved / "dataset_info.json").write_text(json.dumps(info))
    inside.write_bytes(b"own")
    assert datasets.load_from_disk(saved).features == kinds
    own, *others = records(saved)
    assert own.data() == b"own"
    reasons = []
    for record in others:
        with pytest.raises(layertap.ImageError) as refused:
            record.data()
        reasons.append(refused.value.reason)
    assert reasons == ["outside_root", "outside_root", "outside_root", "empty"]


def test_another_data_set_in_the_same_folder_has_another_stamp(files, tmp_path):
    made(files).save_to_disk(tmp_path / "saved")
    before = [record.data.stamp for record in records(tmp_path / "saved")]
    assert before == [record.data.stamp for record in records(tmp_path / "saved")]
    made(files[::-1]).save_to_disk(tmp_path / "saved")
    assert set(before).isdisjoint(record.data.stamp for record in records(tmp_path / "saved"))


def test_paths_without_a_data_set_are_reported_in_one_line(files, tmp_path):
    (tmp_path / "folder").mkdir()
    assert "the source `folder`" in fault(tmp_path / "folder")
    (tmp_path / "folder/dataset_info.json").write_text("{")
    (tmp_path / "folder/state.json").write_text("{")
    assert "cannot load" in fault(tmp_path / "folder")
    assert "No such file" in fault(tmp_path / "missing")
    assert "is a URL" in fault("s3://bucket/saved")
    made(files).save_to_disk(tmp_path / "saved")
    assert "name and revision are for data sets on the hub" in fault(tmp_path / "saved", revision="main")
    assert "did you mean 'label'?" in fault(tmp_path / "saved", id="lable")
    with pytest.raises(pydantic.ValidationError):
        HuggingFaceSource.of(path="a", trust_remote_code=True)


def test_the_hub_is_asked_for_data_that_is_not_local():
    assert "cannot load 'owner/name'" in fault("owner/name", split="train")


def test_nested_features_and_labels_in_them_are_kept(files, tmp_path):
    labels = datasets.ClassLabel(names=["cat", "dog"])
    features = {
        "image": datasets.Image(),
        "objects": datasets.List({"kind": labels, "box": datasets.List(datasets.Value("float32"), length=2)}),
        "tags": datasets.List(labels),
        "info": {"when": datasets.Value("timestamp[us]"), "of": {"kind": labels}},
        "grid": datasets.Array2D((1, 2), "int64"),
        "mask": datasets.Image(),
        "raw": datasets.Value("binary"),
    }
    row = {
        "objects": [{"kind": 1, "box": [0.5, 1.0]}, {"kind": -1, "box": [2.0, 3.0]}],
        "tags": [0, 1],
        "info": {"when": datetime.datetime(2020, 1, 2), "of": {"kind": 0}},
        "grid": [[1, 2]],
        "mask": files[1],
        "raw": b"x",
        "image": files[0],
    }
    datasets.Dataset.from_list([row], features=datasets.Features(features)).save_to_disk(tmp_path / "saved")
    expected = {
        "objects": [{"kind": "dog", "box": [0.5, 1.0]}, {"kind": None, "box": [2.0, 3.0]}],
        "tags": ["cat", "dog"],
        "info": {"when": "2020-01-02T00:00:00", "of": {"kind": "cat"}},
        "grid": [[1, 2]],
    }
    source = HuggingFaceSource.of(path=str(tmp_path / "saved"), column="image")
    assert [record.meta for record in source.records()] == [expected]
    (remark,) = source.remarks
    assert "mask (struct<bytes: binary, path: string>), raw (binary): they are left out" in remark
    datasets.Dataset.from_list([row], features=datasets.Features(features)).to_parquet(tmp_path / "a.parquet")
    of_parquet = ParquetSource.of(path=str(tmp_path / "a.parquet"), column="image")
    assert [record.meta for record in of_parquet.records()] == [expected]
    assert "raw (binary)" in of_parquet.remarks[0]
