"""The report in a real browser, opened from disk, with the network off."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import layertap
from layertap.looking.report import closeness
from layertap.looking.report import report as reports
from layertap.looking.report.report import report
from tests.browser.chromium import Browser, browsing
from tests.conftest import TINY
from tests.looking.report.pages import blocks
from tests.looking.report.test_page import HOSTILE
from tests.looking.tables import output, seeded

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
SECTIONS = ["run", "map", "units", "maps", "layers", "duplicates"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture(autouse=True)
def quiet(browser: Browser) -> Iterator[None]:
    """A wide window before each test; nothing on the console and no request beyond the disk after it."""
    browser.noise.clear()
    browser.requests.clear()
    browser.resize(1280, 800)
    yield
    browser.js("0")  # what has happened so far has been reported when this is answered
    assert browser.noise == []
    assert {address.partition(":")[0] for address in browser.requests} <= {"file", "data", "blob", "about"}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory, photographs) -> Path:
    """The report of 61 crops in four folders by photograph, with three in a wrong one, a twin and a broken file."""
    folder = tmp_path_factory.mktemp("labelled")
    random = np.random.default_rng(0)
    names = ["astronaut", "chelsea", "coffee", "rocket"]
    for name, photograph in zip(names, photographs, strict=False):
        (folder / "images" / name).mkdir(parents=True)
        for number in range(15):
            left, top = random.integers(0, 60, 2)
            crop = photograph.crop((left, top, photograph.width - 60 + left, photograph.height - 60 + top))
            crop.resize((160, 120)).save(folder / "images" / name / f"{number:02d}.jpg", quality=90)
    images = folder / "images"
    for wrong, place in (("chelsea/03", "rocket/a"), ("rocket/07", "coffee/b"), ("astronaut/11", "chelsea/c")):
        os.rename(images / f"{wrong}.jpg", images / f"{place}.jpg")
    (images / "coffee" / "twin.jpg").write_bytes((images / "coffee" / "05.jpg").read_bytes())
    (images / "rocket" / "broken.jpg").write_bytes((images / "rocket" / "01.jpg").read_bytes()[:700])
    config = {
        "model": {"type": "tiny"},
        "taps": {"early": {"layer": "features.1", "reduce": ["mean_pool"]}, "maps": "features.4", "last": "classifier"},
        "source": {"type": "folder", "path": str(images)},
        "sink": {"type": "npy", "path": str(folder / "out")},
        "observers": [],
    }
    layertap.run(config, plugins=[TINY])
    return report(layertap.open(folder / "out", plugins=[TINY]), plugins=[TINY])


SCATTER = (
    "Object.values(Bokeh.index).flatMap(one => one.roots ?? [one])"
    ".find(one => one.model.renderers[0].glyph.type === 'Scatter')"
)


def at(browser: Browser, x: float, y: float) -> tuple[float, float]:
    """Where in the window a place of the map is."""
    left, top = browser.js(
        f"(() => {{ const view = {SCATTER}, box = view.canvas_view.el.getBoundingClientRect();"
        f"return [box.left + view.frame.x_scale.compute({x}), box.top + view.frame.y_scale.compute({y})]; }})()"
    )
    return left, top


def place_of(browser: Browser, page: Path, number: int, tap: int = 0) -> tuple[float, float]:
    """Where in the window the point of an image is."""
    found = blocks(page)[f"map-{tap}"]
    return at(browser, float(found["x"][number]), float(found["y"][number]))


def shows(selector: str, texts: list[str]) -> str:
    """The expression that is true once the elements that match have these texts."""
    found = f"[...document.querySelectorAll({json.dumps(selector)})].map(one => one.textContent)"
    return f"JSON.stringify({found}) === {json.dumps(json.dumps(texts, separators=(',', ':')))}"


def loneliest(page: Path, tap: int = 0) -> int:
    """The image that is farthest from its nearest one on the map, so that a click hits it alone."""
    found = blocks(page)[f"map-{tap}"]
    places = np.stack([found["x"] / np.ptp(found["x"]), found["y"] / np.ptp(found["y"])], axis=1)
    away = np.linalg.norm(places[:, None] - places, axis=2)
    np.fill_diagonal(away, np.inf)
    return int(away.min(axis=1).argmax())


def test_demo_opens_with_the_network_off_and_every_section_is_drawn(browser, tmp_path):
    config = ROOT / "configs/quickstart.yaml"
    layertap.run(config, overrides={"sink.path": str(tmp_path / "quickstart"), "observers": []})
    page = report(layertap.open(tmp_path / "quickstart"))
    browser.open(page)
    assert browser.text("h1") == "quickstart"
    for section in SECTIONS:
        browser.show(section)
        assert browser.js("[...document.querySelectorAll('.screen')].filter(one => !one.hidden).length") == 1
    assert browser.js("document.getElementById('map-plot').dataset.points") == "14"
    # Every image has a label of its own: none can have neighbours of the same.
    browser.show("map")
    assert browser.text("#odd-title") == "None unlike its neighbours"
    assert browser.texts("#matrix tbody th") == ["embedding", "logits"]
    asked = {request.partition("?")[0] for request in browser.requests}
    assert {request for request in asked if not request.startswith("data:")} == {page.as_uri()}


def test_run_says_what_failed_and_where_the_time_went(browser, labelled):
    browser.open(labelled)
    assert browser.texts(".failed .reason") == ["truncated"]
    browser.js("document.querySelector('.failed').open = true")
    assert browser.texts(".failed li") == ["rocket/broken.jpg"]
    assert "forward" in browser.texts(".bars th")
    assert browser.texts("#taps td:first-child") == ["early", "maps", "last"]


def test_pointing_at_an_image_shows_it(browser, labelled):
    browser.open(labelled, "map")
    number = loneliest(labelled)
    x, y = place_of(browser, labelled, number)
    browser.mouse("mouseMoved", x - 40, y - 40)
    browser.mouse("mouseMoved", x, y)
    browser.until(f"document.getElementById('hovered').dataset.image === '{number}'")
    name = blocks(labelled)["ids-0"][number]
    assert browser.text("#hovered .id") == name
    assert browser.text("#hovered .small") == f"label: {name.partition('/')[0]}"
    browser.until("document.querySelector('#hovered img').naturalWidth === 96")


def test_click_on_an_image_shows_its_ten_nearest(browser, labelled):
    browser.open(labelled, "map")
    number = loneliest(labelled)
    browser.click(*place_of(browser, labelled, number))
    browser.until("document.getElementById('chosen').children.length === 11")
    found = blocks(labelled)
    expected = [number, *found["near-0"]["near"][number]]
    shown = browser.js("[...document.querySelectorAll('#chosen li')].map(one => +one.dataset.image)")
    assert shown == expected
    assert browser.texts("#chosen .id") == [found["ids-0"][one] for one in expected]
    assert browser.texts("#chosen .value")[1] == f"cosine {found['near-0']['cosines'][number, 0]:.4f}"
    assert browser.text("#chosen-title") == "Nearest neighbours"


def test_click_on_an_image_outside_the_sample_shows_approximate_neighbours(browser, tmp_path, monkeypatch):
    monkeypatch.setattr(closeness, "_PER_PAIR", 0)
    monkeypatch.setattr(closeness, "_MULTIPLICATIONS", 60 * 6 * 20)
    table = seeded(60, 6) * np.array([9, 5, 2, 1, 1, 1], np.float32)
    page = report(output(tmp_path, table - table.mean(axis=0)))
    found = blocks(page)
    codes = found["codes-0"]["codes"].view(np.int8).astype(int)
    number = next(one for one in range(60) if one not in found["near-0"]["rows"])
    alike = codes @ codes[number]
    alike[number] = -(10**9)
    browser.open(page, "map")
    browser.click(*place_of(browser, page, number))
    browser.until("document.querySelectorAll('#chosen li').length === 11")
    shown = browser.js("[...document.querySelectorAll('#chosen li')].map(one => +one.dataset.image)")
    assert shown[0] == number
    assert alike[shown[1:]].tolist() == np.sort(alike)[::-1][:10].tolist()
    assert browser.text("#chosen-title") == "Nearest neighbours, approximately"
    assert f"layertap search {tmp_path / 'out'} {number:04d}.png --tap tap0" in browser.text("#chosen-says")


@pytest.mark.parametrize("tool", ["LassoSelectTool", "BoxSelectTool"])
def test_what_is_drawn_around_is_listed(browser, labelled, tool):
    browser.open(labelled, "map")
    browser.js(f"{SCATTER}.model.toolbar.tools.find(one => one.type === '{tool}').active = true")
    found = blocks(labelled)["map-0"]
    x, y = found["x"].astype(float), found["y"].astype(float)
    ordered = np.sort(x)
    gap = 20 + int(np.diff(ordered)[20:40].argmax())
    inside = np.flatnonzero(x <= ordered[gap])
    wide, high = 0.02 * np.ptp(x), 0.02 * np.ptp(y)
    left, top = at(browser, x.min() - wide, y.max() + high)
    right, bottom = at(browser, ordered[gap : gap + 2].mean(), y.min() - high)
    middle = (right, (top + bottom) / 2)
    way = [(left, top), (right, top), middle, (right, bottom), (left, bottom), (left, top)]
    browser.drag(way if tool == "LassoSelectTool" else [(left, top), middle, (right, bottom)])
    browser.until("document.getElementById('chosen').dataset.kind === 'selected'")
    browser.until(f"document.getElementById('chosen').children.length === {len(inside)}")
    shown = browser.js("[...document.querySelectorAll('#chosen li')].map(one => +one.dataset.image)")
    assert sorted(shown) == inside.tolist()
    assert browser.text("#chosen-title") == f"{len(inside)} images"


def test_ids_are_copied_and_saved_with_their_metadata(browser, labelled, tmp_path):
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    browser.open(labelled, "map")
    browser.js("document.querySelector('.chip[data-label=\"2\"]').click()")
    browser.until("document.getElementById('chosen').children.length > 0")
    browser.js("navigator.clipboard.writeText = async text => { window.copied = text; }")
    browser.js("document.getElementById('copy').click()")
    browser.until("window.copied !== undefined")
    names = [name for name in blocks(labelled)["ids-0"] if name.startswith("coffee/")]
    assert browser.js("window.copied").split("\n") == names
    browser.js("document.getElementById('save').click()")
    browser.until("document.getElementById('said').textContent.includes('chosen.csv')")
    end = 100
    while not (tmp_path / "chosen.csv").exists() and (end := end - 1):
        browser.js("new Promise(done => setTimeout(done, 50))")
    lines = (tmp_path / "chosen.csv").read_text().splitlines()
    assert lines[0] == "row,id,label"
    assert [line.split(",")[1:] for line in lines[1:]] == [[name, "coffee"] for name in names]


def test_planted_wrong_labels_are_the_ones_unlike_their_neighbours(browser, labelled):
    browser.open(labelled, "map")
    browser.choose("tap", 2)
    browser.until("document.body.dataset.drawn === 'map 2'")
    browser.until("document.querySelectorAll('#odd-list li').length > 0")
    first = browser.texts("#odd-list .id")[:3]
    assert sorted(first) == ["chelsea/c.jpg", "coffee/b.jpg", "rocket/a.jpg"]


def test_change_of_tap_changes_the_map_and_the_units(browser, labelled):
    browser.open(labelled, "map")
    assert browser.js("document.getElementById('map-plot').dataset.tap") == "early"
    browser.choose("tap", 2)
    browser.until("document.body.dataset.drawn === 'map 2'")
    assert browser.js("document.getElementById('map-plot').dataset.tap") == "last"
    shown = browser.js(f"Array.from({SCATTER}.model.renderers[0].data_source.data.x)")
    assert shown == pytest.approx(blocks(labelled)["map-2"]["x"].tolist())
    browser.show("units")
    assert browser.js("document.getElementById('unit-detail').dataset.tap") == "last"
    assert len(browser.texts("#unit-list tbody tr")) == 10
    browser.choose("tap", 0)
    browser.until("document.getElementById('unit-detail').dataset.tap === 'early'")
    assert len(browser.texts("#unit-list tbody tr")) == 8


def test_change_of_unit_changes_its_images_and_histogram(browser, labelled):
    browser.open(labelled, "units")
    browser.choose("tap", 2)
    browser.until("document.getElementById('unit-detail').dataset.tap === 'last'")
    found = blocks(labelled)
    for unit in (7, 4):
        browser.js(f"document.querySelector('#unit-list tr[data-unit=\"{unit}\"]').click()")
        expected = [found["ids-0"][number] for number in found["units-2"]["top"][unit]]
        browser.until(shows("#top .id", expected))
        assert browser.texts("#least .id") == [found["ids-0"][number] for number in found["units-2"]["least"][unit]]
        assert browser.js("document.getElementById('histogram-plot').dataset.images") == "61"
        assert re.match(rf"Unit {unit} of last", browser.text("#unit-title"))
    assert browser.js("document.querySelector('#unit-list tr[aria-selected]').dataset.unit") == "4"
    browser.choose("unit", 9)
    browser.until("document.getElementById('unit-detail').dataset.unit === '9'")


def test_most_selective_unit_of_a_label_comes_first(browser, labelled):
    browser.open(labelled, "units")
    browser.choose("tap", 2)
    browser.until("document.getElementById('unit-detail').dataset.tap === 'last'")
    browser.choose("sort", "relation 0")
    browser.until("!document.getElementById('label-choice').hidden")
    found = blocks(labelled)["relation-2-0"]
    for code, label in enumerate(found["labels"]):
        browser.choose("label", code)
        best = int(found["correlations"][code].argmax())
        browser.until(f"document.querySelector('#unit-list tbody tr').dataset.unit === '{best}'")
        assert f"{label} ({found['counts'][code]} images)" in browser.texts("#label option")
        assert "images with the label" + str(found["counts"][code]) in browser.text("#unit-numbers")


def test_units_are_sorted_and_filtered(browser, tmp_path):
    table = np.maximum(seeded(40, 12) - 0.3, 0)
    table[:, 3], table[:, 5] = 0, 7
    page = report(output(tmp_path, table))
    browser.open(page, "units")
    browser.choose("sort", "-zeros")
    expected = np.argsort(-(table == 0).mean(axis=0), kind="stable").tolist()
    assert [int(text) for text in browser.texts("#unit-list tbody td:first-child")] == expected
    for kind, units in (("dead", ["3"]), ("constant", ["3", "5"])):
        browser.choose("sort", "unit")
        browser.choose("filter", kind)
        assert browser.texts("#unit-list tbody td:first-child") == units
    assert "1 dead (always 0), 2 constant" in browser.text("#units-says")


def test_channel_is_drawn_over_what_the_model_saw(browser, labelled):
    browser.open(labelled, "maps")
    browser.choose("tap", 1)
    browser.until("document.querySelectorAll('#overlays canvas').length > 0")
    found = blocks(labelled)
    browser.choose("channel", 5)
    browser.until("document.getElementById('overlays').dataset.channel === '5'")
    names = [found["ids-0"][number] for number in found["maps-1"]["images"][5]]
    browser.until(shows("#overlays .id", names))
    drawn = browser.js(
        "(() => { const canvas = document.querySelector('#overlays canvas');"
        "return [canvas.width, canvas.height,"
        " ...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data].map(Number); })()"
    )
    assert drawn[:2] == [5, 5]
    strength = np.array(drawn[2:]).reshape(5, 5, 4)[..., 3]
    expected = np.minimum(1, 1.6 * found["maps-1"]["maps"][5, 0] / 255.0) * 0.7 * 255
    assert np.abs(strength - expected).max() <= 2
    browser.choose("tap", 2)
    browser.until("document.getElementById('overlays').children.length === 0")
    assert "no maps" in browser.text("#maps-says")


def test_layers_are_the_similarity_of_the_taps(browser, labelled):
    browser.open(labelled, "layers")
    features = layertap.open(labelled.parents[1] / "out", plugins=[TINY])
    expected = features.similarity()
    for measure in ("cka", "rsa"):
        browser.choose("measure", measure)
        browser.until(f"document.getElementById('matrix').dataset.measure === '{measure}'")
        values = [float(text) for text in browser.texts("#matrix td[data-value]")]
        assert np.array(values).reshape(3, 3) == pytest.approx(getattr(expected, measure), abs=6e-4)
    assert "61 images" in browser.text("#layers-says")


def test_threshold_of_duplicates_can_be_moved(browser, labelled):
    browser.open(labelled, "duplicates")
    browser.choose("tap", 2)
    browser.until("document.body.dataset.drawn === 'duplicates 2'")
    found = blocks(labelled)["pairs-2"]
    for least in (1, max(found["least"], 0.99)):
        browser.choose("threshold", least)
        count = int((found["cosines"] >= least).sum())
        browser.until(f"document.getElementById('pairs').dataset.count === '{count}'")
    browser.until("document.querySelectorAll('#pairs li li').length > 0")
    assert browser.texts("#pairs > li:first-child .id") == ["coffee/05.jpg", "coffee/twin.jpg"]


def test_click_on_a_picture_anywhere_leads_to_its_place_on_the_map(browser, labelled):
    browser.open(labelled, "units")
    browser.until("document.querySelectorAll('#top li').length === 10")
    number = browser.js("+document.querySelector('#top li').dataset.image")
    browser.js("document.querySelector('#top li button').click()")
    browser.until("!document.getElementById('map').hidden")
    browser.until(f"document.querySelector('#chosen li')?.dataset.image === '{number}'")


def test_hostile_text_is_text_and_runs_nothing(browser, tmp_path):
    meta = {"label": HOSTILE * 4, "again": HOSTILE[::-1] * 4}
    page = report(output(tmp_path, seeded(32, 5), meta=meta))
    browser.open(page, "map")
    browser.until("document.querySelectorAll('.chip').length === 8")
    assert sorted(text[:200] for text in browser.texts(".chip bdi")) == sorted(text[:200] for text in HOSTILE)
    browser.click(*place_of(browser, page, loneliest(page)))
    browser.until("document.querySelectorAll('#chosen li').length === 11")
    browser.show("units")
    browser.choose("sort", "relation 0")
    browser.until("document.querySelectorAll('#label option').length === 8")
    for section in SECTIONS:
        browser.show(section)
        assert browser.js("document.documentElement.scrollWidth <= innerWidth"), section
    assert browser.js("document.querySelectorAll('main img[onerror], main script').length") == 0


def test_sprites_and_data_beside_the_page_are_found(browser, labelled, tmp_path, monkeypatch):
    monkeypatch.setattr(reports, "MOST_INSIDE", 10)
    features = layertap.open(labelled.parents[1] / "out", plugins=[TINY])
    page = report(features, to=tmp_path / "beside", plugins=[TINY])
    browser.open(page, "units")
    browser.until("document.querySelectorAll('#top .picture').length === 10")
    number = browser.js("+document.querySelector('#top li').dataset.image")
    style = browser.js("document.querySelector('#top .picture').style.cssText")
    assert "sprites/0.webp" in style
    assert f"{-96 * (number % 20)}px {-96 * (number // 20)}px" in style
    with Image.open(page.parent / "sprites" / "0.webp") as sheet:
        expected = sheet.size
    size = browser.js(
        "new Promise(done => { const image = new Image(); image.onload = () => done([image.naturalWidth,"
        " image.naturalHeight]); image.src = 'sprites/0.webp'; })"
    )
    assert tuple(size) == expected


def test_image_that_is_gone_is_a_grey_tile_that_says_so(browser, tmp_path, photos):
    folder = tmp_path / "images"
    folder.mkdir()
    for number, path in enumerate(sorted(photos.rglob("*.jpg"))[:5]):
        (folder / f"{number}.jpg").write_bytes(path.read_bytes())
    layertap.run(
        {
            "model": {"type": "tiny"},
            "taps": ["classifier"],
            "source": {"type": "folder", "path": str(folder)},
            "sink": {"type": "npy", "path": str(tmp_path / "out")},
            "observers": [],
        },
        plugins=[TINY],
    )
    (folder / "3.jpg").unlink()
    page = report(layertap.open(tmp_path / "out", plugins=[TINY]), plugins=[TINY])
    browser.open(page, "units")
    browser.until("document.querySelectorAll('#top li').length === 5")
    assert browser.text("#top li[data-image='3'] .picture.none") == "gone"
    assert len(browser.texts("#top .picture.none")) == 1


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_page_fits_its_window_in_light_and_dark(browser, labelled, tmp_path, width, dark):
    browser.resize(width, 800, dark=dark)
    browser.open(labelled)
    for section in SECTIONS:
        browser.show(section)
        assert browser.js("document.documentElement.scrollWidth") <= width
        browser.picture(tmp_path / f"{section}.png")
        ground = np.asarray(Image.open(tmp_path / f"{section}.png").convert("L"))[-1, 0]
        assert (ground < 60) == dark
