"""The page of a search holds its pictures itself, and whatever an id or a label says is only text on it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import typer

import layertap
from layertap.cli.main import app
from layertap.looking.features import Features
from tests.looking.pages import Page
from tests.looking.table import numbered
from tests.looking.tables import TABLE, output, seeded

HOSTILE = [
    '<img src=x onerror="alert(1)">',
    "</style><script>alert(1)</script>",
    "a'b\"c&amp;{{ 7*7 }}{% raw %}",
    "two\nlines\u2028three",
    "\u202egnp.\u200f\u061c",
    "--><!-- ]]>",
    "10 kB" * 40,
]


def typed(*arguments: str) -> int:
    return typer.main.get_command(app).main(["search", *arguments], standalone_mode=False) or 0


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "images"
    for number, name in enumerate(HOSTILE):
        path = folder / (name.replace("/", "") + ".d") / f"{name.replace('/', '')}.png"
        path.parent.mkdir(parents=True)
        numbered(number).save(path)
        os.utime(path, (1e9, 1e9))
    return folder


def searched(tmp_path: Path, query: str | None, *options: str) -> tuple[Page, int]:
    """The page of a search, and the exit code."""
    written = ["--plugin", TABLE, "--html", str(tmp_path / "page.html")]
    code = typed(*options, *written, "--", str(tmp_path / "out"), *([] if query is None else [query]))
    page = Page((tmp_path / "page.html").read_text("utf-8"))
    page.refuse_active()
    return page, code


def named(features: Features, number: int) -> str:
    """The id of the image of this number."""
    return next(name for name in features.ids if name.startswith(HOSTILE[number].replace("/", "")))


def made(tmp_path: Path, images: Path, **changes) -> Features:
    return output(tmp_path, seeded(len(HOSTILE), 4), source={"type": "folder", "path": str(images)}, **changes)


def test_page_shows_the_query_and_what_was_found_and_hostile_text_is_text(tmp_path, images):
    features = made(tmp_path, images)
    for name in features.ids:
        page, code = searched(tmp_path, name)
        assert code == 0
        assert page.pictures()[:2] == [name, name]
        assert sorted(page.pictures()[1:]) == sorted(features.ids)
        assert {*features.ids, *(row["label"] for row in features.index)} <= set(page.texts)
        assert "1.000000" in page.texts


def test_images_that_are_gone_or_changed_are_grey_tiles_that_say_so(tmp_path, images):
    features = made(tmp_path, images)
    (images / features.ids[0]).unlink()
    numbered(9).save(images / features.ids[1])
    page, _ = searched(tmp_path, features.ids[2])
    assert sorted(page.pictures()[1:]) == sorted(features.ids[2:])
    assert {"gone", "changed since the run"} <= set(page.texts)


def test_query_images_of_a_folder_are_shown_and_those_that_failed_are_listed(tmp_path, images):
    features = made(tmp_path, images)
    asked = tmp_path / "asked"
    asked.mkdir()
    for number in (3, 1):
        numbered(number).save(asked / f"<b>{number}.png")
    (asked / "broken.png").write_bytes(b"no image")
    page, code = searched(tmp_path, str(asked), "-k", "1")
    assert code == 3
    expected = [named(features, 1), named(features, 3)]
    assert page.pictures() == ["<b>1.png", expected[0], "<b>3.png", expected[1]]
    assert any("'broken.png' cannot be used" in text for text in page.texts)


def test_pairs_are_shown_side_by_side(tmp_path, images, capsys):
    values = seeded(len(HOSTILE), 4)
    values[5] = values[2]
    features = output(tmp_path, values, source={"type": "folder", "path": str(images)})
    page, _ = searched(tmp_path, None, "--pairs", "--above", "0.9999", "--json")
    assert sorted(page.pictures()) == sorted([named(features, 2), named(features, 5)])
    assert any(text.startswith("1 pair among 7 rows") for text in page.texts)
    assert json.loads(capsys.readouterr().out)["pairs"]


def test_page_says_how_many_are_left_out_of_it(tmp_path, images, monkeypatch):
    made(tmp_path, images)
    monkeypatch.setattr("layertap.looking.search_page.MOST", 6)
    page, _ = searched(tmp_path, str(images), "-k", "2")
    assert len(page.pictures()) == 6
    assert "The first 2 of 7 queries are on this page." in page.texts
    page, _ = searched(tmp_path, None, "--pairs", "--above", "-1")
    assert len(page.pictures()) == 6
    assert f"The first 3 of {7 * 6 // 2} pairs are on this page." in page.texts


def test_page_is_never_written_into_the_output(tmp_path, images):
    features = made(tmp_path, images)
    before = sorted(path.name for path in (tmp_path / "out").rglob("*"))
    (tmp_path / "link").symlink_to(tmp_path / "out")
    for path in (tmp_path / "out" / "page.html", tmp_path / "link" / "page.html", tmp_path / "out/../out/page.html"):
        with pytest.raises(layertap.ConfigError, match="is inside the output"):
            typed("--html", str(path), "--", str(tmp_path / "out"), features.ids[0])
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == before
    for path in (tmp_path, tmp_path / "nowhere" / "page.html"):
        with pytest.raises(layertap.ConfigError, match=r"is a folder|cannot be written"):
            typed("--html", str(path), "--", str(tmp_path / "out"), features.ids[0])
    with pytest.raises(layertap.ConfigError, match="--remote is for the pictures"):
        typed("--remote", "example.org", "--", str(tmp_path / "out"), features.ids[0])


def test_older_page_is_replaced(tmp_path, images):
    features = made(tmp_path, images)
    (tmp_path / "page.html").write_text("older" * 10**6)
    page, _ = searched(tmp_path, features.ids[0])
    assert page.pictures()
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]


def test_metadata_by_the_name_of_a_fact_does_not_replace_it(tmp_path):
    output(tmp_path, seeded(3, 4), meta={"similarity": ["wrong"] * 3})
    page, _ = searched(tmp_path, "0001.png", "-k", "1")
    assert page.texts.count("similarity") == 2
    assert {"1.000000", "wrong"} <= set(page.texts)
