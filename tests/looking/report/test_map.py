"""The map of a report: projections, neighbours, duplicates."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA

from layertap.looking.report import closeness, components
from layertap.looking.report.projection import Projection, of_components, umap_of
from layertap.looking.report.report import report
from tests.looking.report.pages import blocks
from tests.looking.tables import output, seeded


def stretched(rows: int, columns: int, scale: float = 1) -> np.ndarray:
    """Values whose first directions hold more of the variance than the others, far from the origin."""
    spread = np.linspace(4, 0.1, columns, dtype=np.float32) ** 2
    turn = np.linalg.qr(seeded(columns, columns, seed=1))[0]
    return (scale * ((seeded(rows, columns) * spread) @ turn + 5)).astype(np.float32)


def project(features, tap: str, rows: np.ndarray) -> Projection:
    return of_components(components.components(features, tap, rows, 2))


def alike(places: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference relative to the spread, whatever the signs."""
    signs = np.sign((places * expected).sum(axis=0))
    return np.abs(places * signs - expected).max() / expected.std()


@pytest.mark.parametrize(("rows", "columns", "scale"), [(200, 30, 1), (20, 300, 1), (50, 3, 1e-12), (40, 20, 1e10)])
def test_places_are_principal_components(tmp_path, rows, columns, scale):
    table = stretched(rows, columns, scale)
    found = project(output(tmp_path, table), "tap0", np.arange(rows))
    expected = PCA(2, svd_solver="full").fit(table.astype(np.float64))
    assert alike(found.places, expected.transform(table.astype(np.float64))) < 1e-3
    assert found.shares == pytest.approx(expected.explained_variance_ratio_, rel=1e-4)


def test_rows_outside_the_sample_are_projected_onto_its_components(tmp_path, monkeypatch):
    table = stretched(400, 25)
    features = output(tmp_path, table)
    monkeypatch.setattr(components, "MOST_FITTED", 100)
    found = project(features, "tap0", np.arange(400))
    rows = np.sort(np.random.default_rng(0).choice(400, 100, replace=False))
    expected = PCA(2, svd_solver="full").fit(table[rows].astype(np.float64)).transform(table.astype(np.float64))
    assert found.fitted == 100
    assert alike(found.places, expected) < 1e-3
    again = project(features, "tap0", np.arange(400))
    assert (found.places == again.places).all()


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_few_rows_or_equal_ones_have_places(tmp_path, rows):
    features = output(tmp_path, np.ones((rows, 6), np.float32))
    found = project(features, "tap0", np.arange(rows))
    assert (np.nan_to_num(found.places) == 0).all()


def test_umap_is_the_same_each_time_and_says_its_parameters(tmp_path):
    features = output(tmp_path, stretched(40, 10))
    one, other = (umap_of(features, "tap0", np.arange(40)) for _ in range(2))
    assert (one.places == other.places).all()
    assert np.isfinite(one.places).all()
    assert one.parameters["random_state"] == 0
    assert one.parameters["n_neighbors"] == 15


def cosines(table: np.ndarray) -> np.ndarray:
    unit = table.astype(np.float64) / np.linalg.norm(table.astype(np.float64), axis=1, keepdims=True)
    return unit @ unit.T


def test_neighbours_are_the_nearest_ten_others(tmp_path):
    table = seeded(60, 8)
    found = blocks(report(output(tmp_path, table)))["near-0"]
    similar = cosines(table)
    np.fill_diagonal(similar, -2)
    assert (found["near"] == np.argsort(-similar, axis=1, kind="stable")[:, :10]).all()
    assert found["cosines"] == pytest.approx(np.sort(similar)[:, ::-1][:, :10], abs=1e-6)


def test_twin_of_an_image_is_its_neighbour_although_it_comes_first(tmp_path):
    table = seeded(30, 8)
    table[20] = table[4]
    table[11] = 0
    found = blocks(report(output(tmp_path, table)))["near-0"]
    assert (found["near"][20, 0], found["near"][4, 0]) == (4, 20)
    assert (found["near"][11] == -1).all()
    assert 11 not in found["near"]


def test_neighbours_of_many_rows_are_those_of_a_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(closeness, "_PER_PAIR", 0)
    monkeypatch.setattr(closeness, "_MULTIPLICATIONS", 60 * 8 * 12)
    table = seeded(60, 8)
    found = blocks(report(output(tmp_path, table)))["near-0"]
    similar = cosines(table)
    np.fill_diagonal(similar, -2)
    assert len(found["rows"]) == 12
    assert (found["near"][:, 0] == similar.argmax(axis=1)[found["rows"]]).all()


def test_images_without_computed_neighbours_have_codes_with_a_measured_recall(tmp_path, monkeypatch):
    monkeypatch.setattr(closeness, "_PER_PAIR", 0)
    monkeypatch.setattr(closeness, "_MULTIPLICATIONS", 200 * 20 * 50)
    table = stretched(200, 20)
    found = blocks(report(output(tmp_path, table - table.mean(axis=0))))
    codes = found["codes-0"]["codes"].view(np.int8).astype(float)
    assert codes.shape == (200, 32)
    assert np.linalg.norm(codes, axis=1) == pytest.approx(np.full(200, 127), rel=0.02)
    similar = codes @ codes.T
    np.fill_diagonal(similar, -np.inf)
    guessed = np.argsort(-similar, axis=1)[:, :10]
    rows, near = found["near-0"]["rows"], found["near-0"]["near"]
    right = [len(set(guessed[row]) & set(true)) for row, true in zip(rows, near, strict=True)]
    assert found["codes-0"]["recall"] == pytest.approx(np.mean(right) / 10, abs=0.02)
    assert found["codes-0"]["recall"] > 0.9
    assert found["codes-0"]["measured"] == 50


def test_planted_duplicates_are_the_pairs(tmp_path):
    table = seeded(100, 30)
    for number in range(10):
        table[50 + number] = table[number] * (1 + number)
    found = blocks(report(output(tmp_path, table)))["pairs-0"]
    assert sorted(found["pairs"].tolist()) == [[number, 50 + number] for number in range(10)]
    assert found["cosines"] == pytest.approx(np.ones(10))
    assert (found["least"], found["among"], found["of"]) == (0.8, 100, 100)


def test_too_many_pairs_raise_the_threshold(tmp_path, monkeypatch):
    monkeypatch.setattr(closeness, "MOST_PAIRS", 5)
    table = np.ones((20, 40), np.float32) + seeded(20, 40) / 20
    table[7] = table[3]
    found = blocks(report(output(tmp_path, table)))["pairs-0"]
    assert found["least"] > 0.99
    assert [3, 7] in found["pairs"].tolist()
    same = blocks(report(output(tmp_path / "same", np.ones((20, 4), np.float32))))["pairs-0"]
    assert same["least"] is None


def test_pairs_of_a_sample_have_the_rows_of_the_output(tmp_path, monkeypatch):
    monkeypatch.setattr(closeness, "_PER_PAIR", 0)
    monkeypatch.setattr(closeness, "_MULTIPLICATIONS", 8 * 30**2 / 2)
    table = np.repeat(seeded(30, 8), 2, axis=0)
    found = blocks(report(output(tmp_path, table)))["pairs-0"]
    assert found["among"] == 30
    same = found["pairs"][found["cosines"] > 0.999999]
    assert len(same) > 0
    assert all(one // 2 == other // 2 for one, other in same)
