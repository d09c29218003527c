"""The approximate index: beside the output, built once for its rows, with exact values and a measured recall."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import typer

import layertap
from layertap.cli.main import app
from layertap.looking.features import Features
from layertap.looking.index import Index
from layertap.looking.metrics import METRICS
from tests.looking.table import numbered
from tests.looking.tables import TABLE, output, seeded

usearch = pytest.importorskip("usearch.index")


def typed(*arguments: str) -> int:
    return typer.main.get_command(app).main(["search", *arguments], standalone_mode=False) or 0


def clustered(count: int, length: int) -> np.ndarray:
    centres, noise = seeded(20, length), 0.5 * seeded(count, length, seed=1)
    return np.maximum(centres[np.arange(count) % 20] + noise, 0)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def features(tmp_path) -> Features:
    values = clustered(600, 32)
    values[7], values[8, 3] = 0, np.nan
    values[40:50] = values[100] * np.linspace(1, 2, 10, dtype=np.float32)[:, None]
    return output(tmp_path, values)


@pytest.mark.parametrize("metric", METRICS)
def test_index_finds_what_exact_search_finds_with_the_same_values(features, metric):
    index = Index(features, "tap0", metric)
    assert index.facts.recall > 0.95
    exact = features.search(["0100.png", "0200.png"], k=20, metric=metric)
    found = features.search(["0100.png", "0200.png"], k=20, metric=metric, index="usearch")
    for one, other in zip(exact, found, strict=True):
        same = [hit for hit in other if hit in list(one)]
        assert len(same) >= 19
        assert other.left_out == one.left_out
        assert other.rows == one.rows
        assert (one.recall, other.recall) == (None, index.facts.recall)
    if metric == "cosine":
        assert {hit.row for hit in found[0][:11]} == {100, *range(40, 50)}
        assert [hit.row for hit in found[0][:11]] == [hit.row for hit in exact[0][:11]]


def test_image_is_searched_in_the_index_too(features):
    found = features.search(numbered(30), k=3, index="usearch")
    assert found[0].row == 30
    assert found[0].value == pytest.approx(1, abs=1e-9)


def test_index_is_built_once_beside_the_output_and_never_in_it(features, tmp_path, capsys):
    before = files(tmp_path / "out")
    arguments = [str(tmp_path / "out"), "0003.png", "-k", "2", "--index", "usearch", "--plugin", TABLE]
    assert typed(*arguments) == 0
    first = capsys.readouterr()
    assert "building the index" in first.err
    assert "recall" in first.err
    assert "approximate, from the usearch index with a recall" in first.out
    assert files(tmp_path / "out") == before
    stored = [(path.name, path.stat().st_mtime_ns) for path in (tmp_path / "out.index").iterdir()]
    assert len(stored) == 2
    assert typed(*arguments, "--json") == 0
    second = capsys.readouterr()
    assert "building" not in second.err
    found = json.loads(second.out)
    assert found["index"]["recall"] > 0.9
    assert found["index"]["sample"] > 190
    assert [(path.name, path.stat().st_mtime_ns) for path in (tmp_path / "out.index").iterdir()] == stored


def test_stale_index_of_another_run_is_built_again(features, tmp_path):
    features.search("0003.png", index="usearch")
    old = files(tmp_path / "out.index")
    values = clustered(600, 32)[::-1].copy()
    again = output(tmp_path, values, mode="new")
    found = again.search("0003.png", k=5, index="usearch")
    assert list(found) == list(again.search("0003.png", k=5))
    assert not set(files(tmp_path / "out.index")) & set(old)
    assert len(files(tmp_path / "out.index")) == 2


@pytest.mark.parametrize("damage", ["cut", "other", "facts", "more"])
def test_damaged_index_is_built_again(features, tmp_path, damage):
    features.search("0003.png", index="usearch")
    path = next((tmp_path / "out.index").glob("*.usearch"))
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:200])
    elif damage == "other":
        path.write_bytes(b"no index" * 1000)
    elif damage == "facts":
        path.with_suffix(".json").write_text('{"key": 1}')
    else:
        facts = json.loads(path.with_suffix(".json").read_text())
        path.with_suffix(".json").write_text(json.dumps({**facts, "indexed": facts["indexed"] + 1}))
    said: list[str] = []
    index = Index(features, "tap0", "cosine", said.append)
    assert said[0].startswith("building")
    assert index.facts.indexed == 598


def test_indexes_of_taps_and_metrics_are_kept_apart(tmp_path):
    taps = [{"layer": "tap0", "name": "a"}, {"layer": "tap1", "name": "a.cosine"}]
    features = output(tmp_path, clustered(50, 8), clustered(50, 6), taps=taps)
    for tap in ("a", "a.cosine"):
        for metric in METRICS:
            assert features.search("0003.png", k=1, tap=tap, metric=metric, index="usearch")
    assert len(files(tmp_path / "out.index")) == 2 * 2 * len(METRICS)


@pytest.mark.parametrize("values", [np.zeros((5, 4), np.float32), seeded(1, 4), seeded(3, 2, 3, 3)])
def test_few_rows_or_none_are_indexed(tmp_path, values):
    features = output(tmp_path, values)
    for _ in range(2):
        if values.any():
            found = features.search("0000.png", k=9, index="usearch")
            assert list(found) == list(features.search("0000.png", k=9))
        else:
            assert list(features.search(numbered(1), metric="dot", k=2, index="usearch")) == list(
                features.search(numbered(1), metric="dot", k=2)
            )
            with pytest.raises(layertap.ConfigError, match="vector of zeros"):
                features.search("0000.png", index="usearch")


def test_missing_extra_unknown_index_and_pairs_say_what_to_do(features, tmp_path, monkeypatch):
    with pytest.raises(layertap.ConfigError, match="did you mean 'usearch'"):
        features.search("0003.png", index="usarch")
    with pytest.raises(layertap.ConfigError, match="--pairs is exact"):
        typed(str(tmp_path / "out"), "--pairs", "--index", "usearch", "--plugin", TABLE)
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    with pytest.raises(layertap.ConfigError, match=r"pip install 'layertap\[index\]'"):
        features.search("0003.png", index="usearch")


def test_folder_that_cannot_be_written_is_a_config_error(features, tmp_path):
    (tmp_path / "out.index").write_text("a file")
    with pytest.raises(layertap.ConfigError, match="the index cannot be written"):
        features.search("0003.png", index="usearch")
