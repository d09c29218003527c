"""In a notebook: an output shows itself, one image can be looked at, and the bar moves."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import layertap
from tests.conftest import TINY
from tests.looking.pages import Page
from tests.looking.table import numbered
from tests.looking.tables import output, seeded
from tests.looking.test_search_page import HOSTILE


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "images"
    for number, name in enumerate([*HOSTILE, *"abcd"]):
        path = folder / (name.replace("/", "") + ".d") / f"{name.replace('/', '')}.png"
        path.parent.mkdir(parents=True)
        numbered(number).resize((50, 40)).save(path)
        os.utime(path, (1e9, 1e9))
    return folder


def page(text: str) -> Page:
    found = Page(text)
    found.refuse_active(styled=True)
    return found


def test_output_shows_its_taps_shapes_and_first_images(tmp_path, images):
    source = {"type": "folder", "path": str(images)}
    taps = [{"layer": "tap0", "name": HOSTILE[0]}, {"layer": "tap1"}]
    features = output(tmp_path, seeded(11, 4), seeded(11, 2, 3, 3), source=source, taps=taps)
    (images / features.ids[1]).unlink()
    shown = page(features._repr_html_())
    assert {HOSTILE[0], "(11, 4)", "(11, 2, 3, 3)", "float32", "gone", "table", *features.ids[:8]} <= set(shown.texts)
    assert shown.pictures() == [features.ids[0], *features.ids[2:8]]
    assert "The first 8 of 11 images." in shown.texts
    assert not set(features.ids[8:]) & set(shown.texts)


def test_output_without_rows_or_source_shows_itself_too(tmp_path, images):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "bad.png").write_bytes(b"no image")
    none = output(tmp_path / "none", seeded(3, 4), source={"type": "folder", "path": str(tmp_path / "bad")})
    assert "0 images" in "".join(page(none._repr_html_()).texts)
    features = output(tmp_path, seeded(11, 4), source={"type": "folder", "path": str(images)})
    images.rename(tmp_path / "elsewhere")
    assert page(features._repr_html_()).pictures() == []


def test_one_image_is_shown_with_its_metadata(tmp_path, images):
    features = output(tmp_path, seeded(11, 4), source={"type": "folder", "path": str(images)})
    for name in features.ids:
        shown = features.show(name)
        assert (shown.id, features.ids[shown.row]) == (name, name)
        assert shown.meta == {"label": name.partition("/")[0]}
        assert shown.image.size == (50, 40)
        assert {name, str(shown.row), "label", shown.meta["label"]} <= set(page(shown._repr_html_()).texts)
    images.rename(tmp_path / "moved")
    gone = features.show("a.d/a.png")
    assert gone.data is None
    assert page(gone._repr_html_()).pictures() == []
    with pytest.raises(layertap.ImageError, match="has no picture"):
        _ = gone.image
    assert features.show("a.d/a.png", overrides={"source.path": str(tmp_path / "moved")}).image
    with pytest.raises(layertap.ConfigError, match=r"is not an id of .*; did you mean .*'a.d/a.png'"):
        features.show("a.d/b.png")


def test_large_image_is_shown_smaller(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (2000, 1000)).save(tmp_path / "images" / "a.jpg")
    features = output(tmp_path, seeded(1, 4), source={"type": "folder", "path": str(tmp_path / "images")})
    assert features.show("a.jpg").image.size == (512, 256)


def outputs(code: str) -> list[dict[str, Any]]:
    """The messages that a kernel sends while it runs a cell."""
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(startup_timeout=60)
    found: list[dict[str, Any]] = []
    try:
        reply = client.execute_interactive(code, timeout=120, output_hook=found.append, store_history=False)
        assert reply["content"]["status"] == "ok", reply["content"]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    return found


def test_bar_moves_in_a_kernel_and_an_output_is_displayed(tmp_path):
    pytest.importorskip("ipykernel")
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(12):
        numbered(number).save(folder / f"{number:02}.png")
    (folder / "<bad>.png").write_bytes(b"no image")
    config = {
        "model": {"type": "tiny"},
        "taps": ["classifier"],
        "source": {"type": "folder", "path": str(folder)},
        "sink": {"type": "npy", "path": str(tmp_path / "out")},
        "device": "cpu",
        "batch_size": 4,
    }
    found = outputs(
        f"import layertap\nlayertap.run({config!r}, plugins=[{TINY!r}])\n"
        f"layertap.open({str(tmp_path / 'out')!r}, plugins=[{TINY!r}])"
    )
    sent = [(message["msg_type"], message["content"]) for message in found]
    (first,) = [content for kind, content in sent if kind == "display_data"]
    updates = [content for kind, content in sent if kind == "update_display_data"]
    assert re.search(r'<progress value="0" max="13"', first["data"]["text/html"])
    assert '<progress value="13" max="13"' in updates[-1]["data"]["text/html"]
    assert "13 of 13 images done" in updates[-1]["data"]["text/plain"]
    assert {update["transient"]["display_id"] for update in updates} == {first["transient"]["display_id"]}
    assert any(content.get("name") == "stderr" and "failed: <bad>.png" in content["text"] for _, content in sent)
    (result,) = [content for kind, content in sent if kind == "execute_result"]
    assert len(page(result["data"]["text/html"]).pictures()) == 8
