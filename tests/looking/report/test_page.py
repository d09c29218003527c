"""The page of a report: where it is written, what is on it, and that nothing of an output changes it but as text."""

from __future__ import annotations

import base64
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import layertap
from layertap.errors import ConfigError
from layertap.looking.report import contents, pictures
from layertap.looking.report import report as reports
from layertap.looking.report.figures import library
from layertap.looking.report.packing import json_text, packed
from layertap.looking.report.report import report
from tests.conftest import TINY
from tests.looking.report.pages import Tags, blocks
from tests.looking.tables import TABLE, output, seeded

HOSTILE = [
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "a'b\"c`d${alert(1)}{{ 7*7 }}{% raw %}",
    "line\nbreak\r\ttab\u2028separator\u2029\x85",
    "\u202egpj.exe\u202c \u200f\u061c \u2066x",
    "<!-- --> ]]> <![CDATA[ &lt; &amp; \\u003c",
    "x" * 10_000,
    "__proto__",
]


def test_report_is_beside_its_output_and_nothing_is_written_into_that(tmp_path):
    features = output(tmp_path, seeded(10, 4))
    before = {path: path.stat().st_mtime_ns for path in features.path.rglob("*")}
    page = report(features)
    assert page == tmp_path / "out.report" / "index.html"
    assert {path: path.stat().st_mtime_ns for path in features.path.rglob("*")} == before
    assert [path.name for path in page.parent.iterdir()] == ["index.html"]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("place", ["out/report", "out", "out/../out/deep/er", "linked/report"])
def test_report_into_the_output_is_refused(tmp_path, place):
    features = output(tmp_path, seeded(10, 4))
    (tmp_path / "linked").symlink_to(features.path)
    with pytest.raises(ConfigError, match="choose"):
        report(features, to=tmp_path / place)
    layertap.open(features.path, plugins=features._plugins)
    assert not list(features.path.rglob("index.html"))


def test_older_report_is_replaced_and_nothing_else_is(tmp_path):
    features = output(tmp_path, seeded(10, 4))
    page = report(features, to=tmp_path / "a" / "b")
    page.write_text(page.read_text("utf-8").replace("principal", ""), "utf-8")
    assert report(features, to=tmp_path / "a" / "b") == page
    (page.parent / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not a report"):
        report(features, to=tmp_path / "a" / "b")
    assert (page.parent / "notes.txt").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="not a report"):
        report(features, to=tmp_path / "file")
    assert report(features, to=tmp_path / "empty").exists()


def test_report_into_the_folder_of_the_images_is_refused(tmp_path, photos):
    features = tiny(tmp_path, photos)
    with pytest.raises(ConfigError, match="images"):
        report(features, to=photos / "report")


def test_unknown_projection_and_tap_are_named(tmp_path):
    features = output(tmp_path, seeded(10, 4))
    with pytest.raises(ConfigError, match=r"'tsne' \(pca, umap\)"):
        report(features, projection="tsne")
    with pytest.raises(layertap.errors.StoreError, match="'tap1'"):
        report(features, ["tap1"])


def test_taps_that_are_named_are_the_only_ones(tmp_path):
    features = output(tmp_path, seeded(10, 4), seeded(10, 3), seeded(10, 2))
    found = blocks(report(features, ["tap2", "tap0"]))
    assert [tap["name"] for tap in found["report"]["taps"]] == ["tap0", "tap2"]
    assert found["layers"]["names"] == ["tap0", "tap2"]
    assert found["layers"]["cka"][0][1] == pytest.approx(features.similarity(taps=["tap0", "tap2"]).cka[0, 1])


def test_hostile_text_changes_nothing_but_its_own_text(tmp_path, monkeypatch):
    benign = [f"label {number}" for number in range(len(HOSTILE))]
    pages = []
    for name, labels in (("benign", benign), ("hostile", HOSTILE)):
        meta = {"label": labels * 2, "other": labels[::-1] * 2}
        features = output(tmp_path / name, seeded(16, 4), meta=meta)
        pages.append(report(features, to=tmp_path / f"{name}.report"))
    plain, odd = map(Tags.of, pages)
    assert odd.found == plain.found
    found = blocks(pages[1])
    assert sorted(found["column-0"]["labels"]) == sorted(HOSTILE)
    assert sorted(found["relation-0-0"]["labels"]) == sorted(HOSTILE)
    assert all(character not in json_text(HOSTILE) for character in "<>&\u2028\u202e")


def test_hostile_ids_and_reasons_are_text(tmp_path):
    folder = tmp_path / "images"
    names = ['a"><img src=x onerror=alert(1)>.png', "new\nline.png", "\u202egnp.png", "'q'.png", "a&amp;b.png"]
    for name in [*names, "plain.png"]:
        path = folder / "<b>" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (200, 10, 10)).save(path)
        (folder / "<b>" / f"broken {name}").write_bytes(b"no image")
    page = report(tiny(tmp_path, folder, max_failures=1.0))
    tags = Tags.of(page)
    assert not any("onerror" in attributes for _, attributes in tags.found)
    assert not any(tag in ("b", "img") for tag, _ in tags.found)
    assert "broken 'q'.png" in tags.text
    assert "broken \u202egnp.png" in tags.text
    assert sorted(blocks(page)["ids-0"]) == sorted(f"<b>/{name}" for name in [*names, "plain.png"])


def test_hostile_configuration_is_text(tmp_path):
    features = output(tmp_path, seeded(10, 4))
    manifest = json.loads((features.path / "manifest.json").read_text())
    manifest["config"]["model"]["weights"] = HOSTILE[0]
    manifest["versions"]["<script>alert(1)</script>"] = "<i>"
    manifest["remarks"] = ["<u>remark</u>"]
    plain = Tags.of(report(features))
    (features.path / "manifest.json").write_text(json.dumps(manifest))
    changed = Tags.of(report(layertap.open(features.path, plugins=features._plugins)))
    assert "<u>remark</u>" in changed.text
    assert {tag for tag, _ in changed.found} - {tag for tag, _ in plain.found} <= {"ul", "li"}


def test_page_allows_itself_no_network(tmp_path):
    text = report(output(tmp_path, seeded(10, 4))).read_text("utf-8")
    policy = text.split('http-equiv="Content-Security-Policy" content="', 1)[1].split('"', 1)[0]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert "connect-src" not in rules
    assert "http" not in policy
    own = text.replace(library(), "")
    assert len(own) < len(text)
    assert "http" not in own.replace('http-equiv="', "")


def tiny(tmp_path: Path, photos: Path, **changes) -> layertap.Features:
    config = {
        "model": {"type": "tiny"},
        "taps": [
            {"layer": "features.1", "name": "maps"},
            {"layer": "features.4", "name": "pooled", "reduce": ["mean_pool"]},
            {"layer": "classifier", "name": "logits"},
        ],
        "source": {"type": "folder", "path": str(photos)},
        "sink": {"type": "npy", "path": str(tmp_path / "out")},
        "device": "cpu",
        "observers": [],
        **changes,
    }
    layertap.run(config, plugins=[TINY])
    return layertap.open(tmp_path / "out", plugins=[TINY])


def picture(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")).astype(float)


def test_activation_maps_are_those_of_the_layer_on_the_images_shown(tmp_path, photos):
    features = tiny(tmp_path, photos)
    found = blocks(report(features, plugins=[TINY]))
    assert found["report"]["taps"][0]["maps"] == 8
    assert found["report"]["taps"][2]["maps"] == 0
    stored = np.asarray(features["maps"])
    kept = found["maps-0"]
    assert kept["maps"].shape == (8, 8, 14, 14)
    for channel in range(8):
        peaks = stored[:, channel].max(axis=(1, 2))
        rows = kept["images"][channel]
        assert (rows == np.argsort(-peaks, kind="stable")[:8]).all()
        assert kept["peaks"][channel] == pytest.approx(peaks[rows], rel=1e-5)
        scaled = stored[rows, channel] * (255 / peaks.max() if peaks.max() else 0)
        assert np.abs(kept["maps"][channel] - scaled).max() <= 1
    # What was reduced is computed again as the layer returned it.
    assert found["maps-1"]["maps"].shape[2:] == (5, 5)
    assert found["maps-1"]["why"] is None
    for row, text in found["views"].items():
        seen = Image.open(photos / features.ids[int(row)]).convert("RGB").resize((16, 16))
        assert np.abs(picture(text) - np.asarray(seen).astype(float)).mean() < 12


def test_maps_of_an_operation_are_those_of_the_operation(tmp_path, photos):
    taps = [{"layer": "features.0", "op": "conv2d", "name": "op"}]
    features = tiny(tmp_path, photos, taps=taps)
    found = blocks(report(features, plugins=[TINY]))
    assert found["maps-0"]["why"] is None
    stored = np.asarray(features["op"])
    peaks = stored[:, 3].max(axis=(1, 2))
    assert found["maps-0"]["peaks"][3] == pytest.approx(np.sort(peaks)[::-1][:8], rel=1e-5)


def test_stored_maps_are_shown_when_the_model_cannot_be_run_again(tmp_path, photos):
    features = tiny(tmp_path, photos)
    found = blocks(report(features, plugins=[TINY], overrides={"model.seed": 1}))
    assert "seed" in found["maps-0"]["why"]
    assert found["maps-0"]["maps"].shape == (8, 8, 14, 14)
    assert "maps-1" not in found
    assert "seed" in found["report"]["taps"][1]["why"]
    assert found["views"] == {}


def test_images_that_are_gone_or_changed_have_a_reason_instead_of_a_picture(tmp_path, photos):
    folder = tmp_path / "images"
    folder.mkdir()
    for number, path in enumerate(sorted(photos.rglob("*.jpg"))[:6]):
        (folder / f"{number}.jpg").write_bytes(path.read_bytes())
        os.utime(folder / f"{number}.jpg", (1e9, 1e9))
    features = tiny(tmp_path, folder)
    (folder / "2.jpg").unlink()
    (folder / "4.jpg").write_bytes((folder / "0.jpg").read_bytes())
    page = report(features, plugins=[TINY])
    found = blocks(page)["report"]["pictures"]
    assert found["states"].tolist() == [0, 0, 3, 0, 4, 0]
    assert found["reasons"] == ["gone", "changed since the run"]
    assert found["places"].tolist() == [0, 1, -1, 2, -1, 3]
    assert "2 images are gone" in Tags.of(page).text


def test_many_pictures_are_sprites_beside_the_page(tmp_path, photos, monkeypatch):
    monkeypatch.setattr(reports, "MOST_INSIDE", 10)
    features = tiny(tmp_path, photos)
    page = report(features, plugins=[TINY])
    assert sorted(path.name for path in page.parent.iterdir()) == ["data", "index.html", "sprites"]
    assert 'id="block-' not in page.read_text("utf-8")
    found = blocks(page)["report"]["pictures"]
    sheet = Image.open(page.parent / "sprites" / "0.webp")
    assert found["sprites"]
    assert sheet.size == (20 * 96, 96)
    for row, name in enumerate(features.ids):
        small = Image.open(photos / name).convert("RGB")
        small.thumbnail((96, 96))
        left, top = 96 * row + (96 - small.width) // 2, (96 - small.height) // 2
        tile = sheet.crop((left, top, left + small.width, top + small.height))
        assert np.abs(np.asarray(tile).astype(float) - np.asarray(small)).mean() < 20, name
    # A page in a single file takes its place, and nothing of the old one stays.
    monkeypatch.undo()
    assert [path.name for path in report(features, plugins=[TINY]).parent.iterdir()] == ["index.html"]


def test_large_output_shows_a_sample_and_says_of_how_many(tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "MOST_POINTS", 30)
    monkeypatch.setattr(contents, "MOST_PICTURES", 20)
    monkeypatch.setattr(contents, "_SAMPLED_PICTURES", 5)
    table = seeded(2000, 8)
    features = output(tmp_path, table, meta={"label": [f"l{number % 2}" for number in range(2000)]})
    page = report(features, plugins=[TABLE])
    found = blocks(page)
    rows = found["report"]["rows"]
    assert (np.diff(rows) > 0).all()
    assert len(rows) == len(found["ids-0"]) == len(found["map-0"]["x"]) == len(found["report"]["pictures"]["states"])
    assert [f"{row:04d}.png" for row in rows] == found["ids-0"]
    assert (rows[found["units-0"]["top"]] == np.argsort(-table, axis=0, kind="stable")[:10].T).all()
    assert (rows[found["near-0"]["near"]] >= 0).all()
    assert found["column-0"]["counts"] == [1000, 1000]
    assert found["report"]["pictures"]["count"] == 20
    text = Tags.of(page).text
    assert f"a seeded sample of {len(rows):,} of 2,000 images" in text
    assert "Pictures are of 20 of 2,000 images" in text


def test_output_without_rows_has_a_report_of_its_run(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"no image")
    page = report(tiny(tmp_path, folder, max_failures=1.0))
    assert blocks(page)["report"]["taps"] == []
    assert "a.jpg" in Tags.of(page).text


def test_unfinished_output_shows_what_is_committed(tmp_path, photos):
    config = {"observers": [{"type": "stop", "after": 8}], "batch_size": 4, "shard_rows": 4}
    with pytest.raises(Exception, match="stopped"):
        tiny(tmp_path, photos, **config)
    features = layertap.open(tmp_path / "out", plugins=[TINY])
    page = report(features, plugins=[TINY])
    assert len(blocks(page)["ids-0"]) == len(features.ids) > 0
    assert "unfinished" in Tags.of(page).text


def test_tap_that_cannot_be_shown_is_named_with_the_reason(tmp_path):
    features = output(tmp_path, seeded(10, 4), seeded(10, 4).astype(np.complex64))
    page = report(features)
    assert [tap["name"] for tap in blocks(page)["report"]["taps"]] == ["tap0"]
    assert "complex numbers" in Tags.of(page).text


def test_arrays_come_back_from_their_text():
    for dtype in ("uint8", "int16", "int32", "float32", ">f4", "float64"):
        values = np.arange(12).reshape(3, 4).astype(dtype)
        block = packed(values)
        assert (np.frombuffer(base64.b64decode(block["data"]), block["dtype"]).reshape(3, 4) == values).all()
    with pytest.raises(TypeError, match="int64"):
        packed(np.arange(3))


def test_more_reasons_than_a_page_tells_apart_are_one(monkeypatch):
    from layertap.looking.thumbnails import Thumbnail

    monkeypatch.setattr(pictures, "_MOST_REASONS", 3)
    made = pictures.Pictures.of(6, False, lambda number, data: None, lambda number, data: None)
    made.take((number, Thumbnail(number, "id", None, f"reason {number}")) for number in range(6))
    assert made.reasons == ["reason 0", "reason 1", "reason 2", "cannot be shown"]
    assert made.states.tolist() == [3, 4, 5, 6, 6, 6]
