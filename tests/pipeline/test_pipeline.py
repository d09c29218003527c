"""run(): every planned image is accounted for once, and nothing a bad one does reaches a good one."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import layertap
from tests.conftest import TINY


def config(photos: Path, out: Path | None, **changes: Any) -> dict[str, Any]:
    sink = {"type": "npy", "path": str(out)} if out else {"type": "memory"}
    return {
        "model": "tiny",
        "taps": ["features.0", "classifier"],
        "source": {"type": "folder", "path": str(photos)},
        "sink": sink,
        "device": "cpu",
        "batch_size": 4,
        "observers": [],
        **changes,
    }


def run(*args: Any, **changes: Any) -> Any:
    return layertap.run(config(*args, **changes), plugins=[TINY])


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of an output but the manifest, which holds times."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file() and p.name != "manifest.json"}


def test_run_writes_one_array_a_tap_beside_index_and_failures(photos, tmp_path):
    report = run(photos, tmp_path / "out")
    assert (report.planned, report.kept, report.failed, report.stored) == (20, 20, 0, True)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "classifier.npy",
        "failures.csv",
        "features.0.npy",
        "index.csv",
        "manifest.json",
    ]
    with (tmp_path / "out/index.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["row"] for row in rows] == [str(number) for number in range(20)]
    assert rows[0] == {"row": "0", "id": "cats/01.jpg", "label": "cats"}
    assert (tmp_path / "out/failures.csv").read_text() == "id,stage,reason\n"
    assert np.load(tmp_path / "out/features.0.npy").min() < 0


def test_manifest_says_what_the_features_are(photos, tmp_path):
    run(photos, tmp_path / "out", taps=[{"layer": "features.4", "name": "a/b", "reduce": "mean_pool"}])
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["status"] == "complete"
    assert manifest["counts"] == {"planned": 20, "kept": 20, "failed": 0, "shards": 1}
    tap = manifest["taps"]["a/b"]
    assert (tap["layer"], tap["shape"], tap["dtype"], tap["file"]) == ("features.4", [8], "float32", "a%2Fb")
    assert tap["raw"] == {"shape": [8, 5, 5], "dtype": "float32", "axes": "NCHW"}
    assert tap["nonfinite"] == 0
    assert manifest["model"] == {"name": "tiny", "seed": 0}
    assert layertap.open(tmp_path / "out")["a/b"].shape == (20, 8)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("shard_rows", [4, 12, None])
def test_neither_workers_nor_shards_change_a_byte(photos, tmp_path, workers, shard_rows):
    run(photos, tmp_path / "plain")
    run(photos, tmp_path / "other", workers=workers, shard_rows=shard_rows)
    assert contents(tmp_path / "other") == contents(tmp_path / "plain")


def test_early_stop_changes_no_value(photos):
    stopped = run(photos, None, taps=["features.0"])
    whole = run(photos, None, taps=["features.0"], early_stop=False)
    assert np.array_equal(stopped.values["features.0"], whole.values["features.0"])


@pytest.mark.parametrize("bad", ["cats/01.jpg", "cats/15.jpg", "dogs/18.jpg"], ids=["first", "middle", "last"])
def test_a_bad_file_fails_alone_and_changes_no_other_row(photos, tmp_path, bad):
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / bad).write_text("not an image at all, whatever its name says")
    good = run(photos, None)
    report = run(tmp_path / "photos", tmp_path / "out")
    assert (report.planned, report.kept, report.failed, report.reasons) == (20, 19, 1, {"not_image": 1})
    features = layertap.open(tmp_path / "out")
    assert features.failures == [{"id": bad, "stage": "decode", "reason": "not_image"}]
    kept = [row for row, name in enumerate(good.ids) if name != bad]
    assert features.ids == [good.ids[row] for row in kept]
    for tap, values in good.values.items():
        assert features[tap][:].tobytes() == values[kept].tobytes()


def test_a_whole_batch_of_bad_files_leaves_the_others(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "photos")
    names = sorted(p.relative_to(photos).as_posix() for p in photos.rglob("*.jpg"))
    for name in names[4:8]:
        (tmp_path / "photos" / name).write_bytes(b"")
    report = run(tmp_path / "photos", None)
    good = run(photos, None)
    assert report.reasons == {"empty": 4}
    rows = [*range(4), *range(8, 20)]
    assert np.array_equal(report.values["classifier"], good.values["classifier"][rows])


def test_images_of_every_kind_give_a_row(tmp_path, photographs):
    image = photographs[1].resize((90, 60))
    folder = tmp_path / "kinds"
    folder.mkdir()
    grey16 = Image.fromarray((np.asarray(image.convert("L")).astype(np.uint16) << 8) + 7)
    for name, picture in {
        "rgb.png": image,
        "grey.png": image.convert("L"),
        "palette.png": image.convert("P"),
        "rgba.png": image.convert("RGBA"),
        "la.png": image.convert("LA"),
        "one-bit.png": image.convert("1"),
        "cmyk.jpg": image.convert("CMYK"),
        "sixteen.png": grey16,
        "thin.png": image.resize((1, 60)),
        "dot.png": image.resize((1, 1)),
    }.items():
        picture.save(folder / name)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(folder / "turned.jpg", exif=exif)
    (folder / "text.jpg").write_text("hello")
    report = run(folder, None)
    assert report.reasons == {"not_image": 1}
    for name, values in zip(report.ids, report.values["classifier"], strict=True):
        # What the plain loop sees: Pillow's own conversion, orientation as stored.
        expected = next(
            layertap.extract(
                "tiny/tiny", [Image.open(folder / name).convert("RGB")], ["classifier"], device="cpu", plugins=[TINY]
            )
        )
        assert np.abs(expected.values["classifier"].numpy()[0] - values).max() < 1e-5, name


def test_interrupted_run_goes_on_and_ends_with_the_same_bytes(photos, tmp_path):
    run(photos, tmp_path / "whole", shard_rows=4)
    with pytest.raises(layertap.PluginError, match="stopped"):
        run(photos, tmp_path / "out", shard_rows=4, observers=[{"type": "stop", "after": 12}])
    unfinished = layertap.open(tmp_path / "out")
    assert not unfinished.is_complete
    assert unfinished["classifier"].shape[0] == len(unfinished.ids) == 8
    report = run(photos, tmp_path / "out", shard_rows=4)
    assert report.kept == 20
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_same_run_from_another_place_is_the_same_run(photos, tmp_path):
    run(photos, tmp_path / "out")
    shutil.copytree(photos, tmp_path / "moved")  # keeps modification times, as a move does
    assert run(tmp_path / "moved", tmp_path / "out").already


@pytest.mark.parametrize("change", [lambda path: path.touch(), lambda path: path.write_bytes(b"other")])
def test_changed_image_behind_the_same_name_is_refused(photos, tmp_path, change):
    shutil.copytree(photos, tmp_path / "photos")
    run(tmp_path / "photos", tmp_path / "out")
    change(tmp_path / "photos/cats/03.jpg")
    with pytest.raises(layertap.StoreError, match="file sizes and times of some images have changed"):
        run(tmp_path / "photos", tmp_path / "out")


def test_complete_output_is_left_as_it_is(photos, tmp_path):
    run(photos, tmp_path / "out")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
    report = run(photos, tmp_path / "out", workers=1)
    assert report.already
    assert (report.planned, report.kept, report.failed) == (20, 20, 0)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"batch_size": 5}, "batch_size was 4, now 5"),
        ({"taps": ["classifier"]}, "taps was"),
        ({"model": {"type": "tiny", "seed": 1}}, "seed"),
        ({"preprocess": {"type": "tiny_squash", "size": 17}}, "preprocess was"),
        ({"limit": 10}, "images was 20, now 10"),
    ],
)
def test_output_of_another_configuration_is_refused_with_the_difference(photos, tmp_path, changes, named):
    run(photos, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(layertap.StoreError, match=named) as refused:
        run(photos, tmp_path / "out", **changes)
    assert refused.value.code == 6
    assert contents(tmp_path / "out") == before


def test_file_in_the_place_of_the_output_is_told(photos, tmp_path):
    (tmp_path / "out").write_text("precious")
    with pytest.raises(layertap.StoreError, match="is a file"):
        run(photos, tmp_path / "out")


def test_folder_that_is_not_ours_is_refused_untouched(photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("precious")
    with pytest.raises(layertap.StoreError) as refused:
        run(photos, tmp_path / "out")
    assert refused.value.code == 6
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"source": {"type": "folder", "path": "no/such/folder"}}, layertap.ConfigError, "no/such/folder"),
        ({"taps": ["clasifier"]}, layertap.TapError, "classifier"),
        ({"taps": ["flatten.*"]}, layertap.TapError, "flatten"),
        ({"device": "cuda:7"}, layertap.ConfigError, "cuda:7"),
        ({"batch_size": 0}, layertap.ConfigError, "batch_size"),
        ({"model": "tinny"}, layertap.ConfigError, "tiny"),
        ({"preprocess": {"type": "tiny_squash", "size": 7}}, layertap.PluginError, "shape"),
    ],
)
def test_what_can_be_known_before_is_told_before_the_output_exists(photos, tmp_path, changes, error, named):
    with pytest.raises(error, match=named) as told:
        run(photos, tmp_path / "out", **changes)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "out").exists()


def test_empty_folder_is_an_error_before_the_output_exists(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(layertap.ConfigError, match=r"source\.path: no images"):
        run(tmp_path / "photos", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_max_failures_stops_the_run(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "photos")
    for path in sorted((tmp_path / "photos").rglob("*.jpg"))[:3]:
        path.write_bytes(b"")
    assert run(tmp_path / "photos", None, max_failures=3).failed == 3
    with pytest.raises(layertap.ImageError, match="max_failures") as stopped:
        run(tmp_path / "photos", None, max_failures=2)
    assert stopped.value.code == 4
    assert run(tmp_path / "photos", None, max_failures=0.01).failed == 3  # a share never stops before 100


def test_limit_takes_the_first_records(photos):
    assert run(photos, None, limit=3).ids == ["cats/01.jpg", "cats/03.jpg", "cats/05.jpg"]


def test_report_of_a_sink_without_a_folder_says_that_nothing_is_stored(photos):
    report = run(photos, None, sink="discard")
    assert not report.stored
    assert report.path is None
    assert report.values is None


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_stored_dtype_is_the_one_asked_for(photos, tmp_path, dtype):
    taps = [{"layer": "classifier", "name": "small", "dtype": dtype}, "classifier"]
    run(photos, tmp_path / "out", taps=taps)
    features = layertap.open(tmp_path / "out")
    assert str(features["small"].dtype) == dtype
    expected = features["classifier"][:].astype(features["small"].dtype)
    assert np.array_equal(features["small"][:].view(np.uint8), expected.view(np.uint8))


def test_nonfinite_values_are_counted(photos, tmp_path):
    shutil.copy(TINY, tmp_path / "inf.py")
    text = (tmp_path / "inf.py").read_text().replace("batch.float() / 255", "batch.float() * float('inf')")
    (tmp_path / "inf.py").write_text(text)
    report = layertap.run(config(photos, tmp_path / "out"), plugins=[str(tmp_path / "inf.py")])
    assert report.nonfinite["classifier"] == 200
    assert json.loads((tmp_path / "out/manifest.json").read_text())["taps"]["classifier"]["nonfinite"] == 200


def test_nonfinite_values_stop_the_run_where_that_is_asked_for(photos, tmp_path):
    text = (
        Path(TINY)
        .read_text()
        .replace("batch.float() / 255", "batch.float() * (float('nan') if batch.float().mean() < 20 else 1)")
    )
    (tmp_path / "nan.py").write_text(text)
    shutil.copytree(photos, tmp_path / "photos")
    Image.new("RGB", (30, 30)).save(tmp_path / "photos/dogs/04.jpg")
    strict = config(tmp_path / "photos", tmp_path / "out", nonfinite="fail", batch_size=1)
    with pytest.raises(layertap.ImageError, match=r"'features.0' gave \d+ values .* for 'dogs/04.jpg'") as stopped:
        layertap.run(strict, plugins=[str(tmp_path / "nan.py")])
    assert stopped.value.code == 4
    assert "dogs/04.jpg" not in layertap.open(tmp_path / "out").ids


def test_output_inside_the_folder_of_the_images_is_refused(photos, tmp_path):
    with pytest.raises(layertap.ConfigError, match="is inside the folder of the images") as refused:
        run(photos, photos / "features")
    assert refused.value.code == 2
    assert not (photos / "features").exists()


def test_model_is_in_eval_mode_and_dropout_rests(photos):
    first, second = run(photos, None), run(photos, None)
    assert np.array_equal(first.values["classifier"], second.values["classifier"])


def test_manifest_names_the_blocks_that_a_tap_takes_off_the_fused_path(photos, tmp_path):
    import torch
    from torch import nn

    from layertap.taps.layers import unfused

    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), 3).eval()
    assert unfused(encoder, ["layers.1.linear1", "layers.2"]) == ["layers.1", "layers.2"]
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        plain = encoder(x)
        with layertap.tap(encoder, "layers.1.linear1") as taps:
            assert torch.allclose(encoder(x), plain, atol=1e-6)
            assert taps["layers.1.linear1"].shape == (2, 3, 8)
    run(photos, tmp_path / "out")
    assert json.loads((tmp_path / "out/manifest.json").read_text())["unfused"] == []


def test_record_with_data_of_another_kind_is_told_before_the_run(photos, tmp_path):
    (tmp_path / "wrong.py").write_text(
        "import layertap\n"
        "class Wrong(layertap.Source):\n"
        "    def records(self):\n"
        "        yield layertap.ImageRecord('a', 'a.jpg')\n"
        "@layertap.hookimpl\n"
        "def register_sources(register): register('wrong', Wrong)\n"
    )
    with pytest.raises(layertap.PluginError, match="gives 'a' data of type str"):
        layertap.run(config(photos, None, source="wrong"), plugins=[TINY, str(tmp_path / "wrong.py")])
