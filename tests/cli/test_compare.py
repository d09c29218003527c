"""`layertap compare`: matrices for people, CSV and JSON for machines."""

from __future__ import annotations

import csv
import io
import json
from xml.etree import ElementTree

import numpy as np
import pytest
import typer

import layertap
from layertap.cli.main import app
from layertap.looking import similarity as looking
from tests.looking.tables import output, seeded


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("compare")
    output(folder, seeded(30, 8), np.maximum(seeded(30, 8), 0), np.ones((30, 2), np.float32))
    return str(folder / "out")


def typed(*arguments: str) -> int:
    return typer.main.get_command(app).main(["compare", *arguments], standalone_mode=False) or 0


def test_matrices_are_printed_with_the_number_of_images(out, capsys):
    typed(out)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "3 taps by 30 images"
    assert lines[2] == "linear CKA, unbiased"
    assert lines[3].split() == ["tap0", "tap1", "tap2"]
    assert lines[4].split()[:2] == ["tap0", "1.000"]
    assert lines[6].split() == ["tap2", "-", "-", "-"]


def test_sample_is_said_to_be_one(out, capsys, monkeypatch):
    monkeypatch.setattr(looking, "MOST", 20)
    typed(out)
    assert capsys.readouterr().out.startswith("3 taps by a sample of 20 of 30 images\n")


def test_csv_and_json_hold_the_same_values(out, capsys):
    typed(out, "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["names"] == ["tap0", "tap1", "tap2"]
    assert found["cka"][2] == [None, None, None]
    typed(out, "--csv")
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(lines) == 2 * 9
    assert lines[1]["measure"] == "cka"
    assert (lines[1]["tap"], lines[1]["other_tap"], lines[1]["images"]) == ("tap0", "tap1", "30")
    assert float(lines[1]["value"]) == found["cka"][0][1]
    assert lines[2]["value"] == ""


def test_taps_can_be_chosen_and_are_checked(out, capsys):
    typed(out, "--tap", "tap1", "--tap", "tap0", "--json")
    assert json.loads(capsys.readouterr().out)["names"] == ["tap0", "tap1"]
    with pytest.raises(layertap.StoreError, match="no tap is named 'tap9'"):
        typed(out, "--tap", "tap9")
    with pytest.raises(layertap.ConfigError, match="choose one of --csv and --json"):
        typed(out, "--csv", "--json")


def test_names_of_taps_do_not_steer_a_terminal(tmp_path, capsys):
    taps = [{"layer": "tap0", "name": "red\x1b[31m"}, {"layer": "tap1", "name": "two\nlines"}]
    output(tmp_path, seeded(9, 8), seeded(9, 8, seed=1), taps=taps)
    for arguments in ([], ["--csv"], ["--json"]):
        typed(str(tmp_path / "out"), *arguments)
        said = capsys.readouterr().out
        assert "\x1b" not in said
        assert "red" in said
        assert not any(line.startswith("lines") for line in said.splitlines())


def test_picture_has_a_cell_per_pair_of_taps_and_names_are_text(tmp_path, capsys):
    names = ['<script>alert("1")</script>', "a\x00\x1b&'b\u202e", "x" * 300]
    taps = [{"layer": f"tap{number}", "name": name} for number, name in enumerate(names)]
    output(tmp_path, seeded(30, 8), seeded(30, 8, seed=1), np.ones((30, 2), np.float32), taps=taps)
    assert typed(str(tmp_path / "out"), "--picture", str(tmp_path / "a.svg"), "--json") == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert "a.svg" in captured.err
    root = ElementTree.parse(tmp_path / "a.svg").getroot()
    tags = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert tags == {"svg", "rect", "text", "title", "g"}
    titles = [element.text for element in root.iter("{http://www.w3.org/2000/svg}title")]
    assert f"{names[0]}, {names[0]}: 1.00" in titles
    assert f"{names[0]}, a\\x00\\x1b&'b\\u202e: {found['cka'][0][1]:.2f}" in titles
    assert sum(str(title).endswith(": -") for title in titles) == 2 * 5
    assert len([title for title in titles if ": " in str(title)]) == 2 * 9


def test_picture_is_an_svg_outside_of_the_outputs(out, tmp_path):
    for path, said in (("a.png", "ends in .svg"), (f"{out}/a.svg", "is inside the output")):
        with pytest.raises(layertap.ConfigError, match=said):
            typed(out, "--picture", path)
    found = layertap.open(out).similarity()
    assert ElementTree.fromstring(found._repr_svg_()).tag.endswith("svg")
