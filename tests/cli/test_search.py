"""`layertap search`: a table for people, JSON for machines, and exit codes."""

from __future__ import annotations

import json

import pytest
import typer

import layertap
from layertap.cli.main import app
from tests.looking.table import numbered
from tests.looking.tables import TABLE, output, seeded


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("search")
    first = seeded(30, 8)
    first[20], first[7] = first[10], 0
    output(folder, first, seeded(30, 2, 3, 3))
    return str(folder / "out")


def typed(*arguments: str) -> int:
    return typer.main.get_command(app).main(["search", *arguments], standalone_mode=False) or 0


def test_table_says_what_was_compared_and_what_was_left_out(out, capsys):
    assert typed(out, "0010.png", "--tap", "tap0", "-k", "2") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert " ".join(lines[0]) == "'0010.png': the nearest of 30 rows of tap0 by cosine"
    assert " ".join(lines[1]) == "left out: 1 row of zeros, which have no cosine"
    assert lines[2:] == [["similarity", "row", "id"], ["1.000000", "10", "0010.png"], ["1.000000", "20", "0020.png"]]


def test_maps_are_said_to_be_flattened(out, capsys):
    typed(out, "0010.png", "--tap", "tap1", "-k", "1", "--metric", "euclidean")
    said = capsys.readouterr().out
    assert "rows of tap1 (maps 2 x 3 x 3, flattened) by euclidean" in said
    assert said.splitlines()[1].split() == ["distance", "row", "id"]


def test_folder_of_images_is_searched_as_json_and_what_failed_is_listed(out, capsys, tmp_path):
    numbered(3).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    assert typed(out, str(tmp_path), "--tap", "tap0", "-k", "1", "--json", "--plugin", TABLE) == 3
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["queries"][0]["query"] == "a.png"
    assert found["queries"][0]["found"][0]["id"] == "0003.png"
    assert [one["id"] for one in found["failed"]] == ["b.png"]
    assert "'b.png' cannot be used" in said.err


def test_pairs_are_listed(out, capsys):
    assert typed(out, "--pairs", "--above", "0.999", "--tap", "tap0") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1 pair among 30 rows of tap0 with a cosine of at least 0.999"
    assert lines[-1].split() == ["1.000000", "10", "0010.png", "20", "0020.png"]
    assert typed(out, "--pairs", "--above", "0.999", "--tap", "tap0", "--json") == 0
    assert json.loads(capsys.readouterr().out)["pairs"][0]["other_id"] == "0020.png"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["0001.png"], "has 2 taps; choose one with --tap"),
        (["--tap", "tap0"], "give a QUERY"),
        (["0001.png", "--pairs", "--tap", "tap0"], "leave '0001.png' out"),
        (["0001.png", "--above", "0.5", "--tap", "tap0"], "--above is for --pairs"),
        (["--pairs", "--metric", "dot", "--tap", "tap0"], "compares by cosine, not by dot"),
        (["nothing.png", "--tap", "tap0"], "neither an id of"),
    ],
)
def test_what_cannot_be_meant_is_a_config_error(out, arguments, said):
    with pytest.raises(layertap.ConfigError, match=said):
        typed(out, *arguments)


def test_names_do_not_steer_a_terminal_and_a_home_folder_is_expanded(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    output(tmp_path, seeded(9, 8), taps=[{"layer": "tap0", "name": "red\x1b[31m"}])
    numbered(3).save(tmp_path / "bell\x07.png")
    (tmp_path / "broken\x1b.png").write_bytes(b"no image")
    assert typed("~/out", "~/bell\x07.png", "-k", "1", "--plugin", TABLE) == 0
    assert typed("~/out", "--pairs", "--plugin", TABLE) == 0
    assert typed("~/out", "~/broken\x1b.png", "--plugin", TABLE) == 3
    captured = capsys.readouterr()
    assert "0003.png" in captured.out
    assert not {"\x1b", "\x07"} & set(captured.out + captured.err)
