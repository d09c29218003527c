"""The units of a report: numpy's numbers, over all rows."""

from __future__ import annotations

import numpy as np
import pytest

from layertap.looking.report import units
from layertap.looking.report.report import report
from tests.looking.report.pages import blocks
from tests.looking.tables import output, seeded


def test_units_are_those_of_numpy(tmp_path):
    table = np.maximum(seeded(120, 40), 0)
    table[:, 3], table[:, 5] = 0, 7
    found = blocks(report(output(tmp_path, table)))["units-0"]
    order = np.argsort(-table, axis=0, kind="stable")[:10].T
    assert (found["top"] == order).all()
    assert (found["topValues"] == np.take_along_axis(table.T, order, axis=1)).all()
    assert (found["least"] == np.argsort(table, axis=0, kind="stable")[:10].T).all()
    assert found["zeros"] == pytest.approx((table == 0).mean(axis=0))
    assert np.flatnonzero(found["dead"]).tolist() == [3]
    assert np.flatnonzero(found["constant"]).tolist() == [3, 5]
    for unit in (0, 1, 39):
        assert (found["histogram"][unit] == np.histogram(table[:, unit].astype(float), 32)[0]).all()
    assert (found["histogram"].sum(axis=1) == 120).all()


def test_relations_are_correlations_with_the_images_of_each_label(tmp_path):
    table, labels = seeded(60, 5), [f"l{number % 3}" for number in range(60)]
    table[:, 2] += [3 * (label == "l1") for label in labels]
    meta = {"label": labels, "score": np.linspace(0, 1, 60).tolist(), "name": [str(n) for n in range(60)]}
    found = blocks(report(output(tmp_path, table, meta=meta)))
    assert found["units-0"]["columns"] == ["label", "score", "name"]
    label, score = found["relation-0-0"], found["relation-0-1"]
    assert (label["labels"], label["counts"]) == (["l0", "l1", "l2"], [20, 20, 20])
    assert label["correlations"][1].argmax() == 2
    expected = np.corrcoef(table[:, 2], [one == "l1" for one in labels])[0, 1]
    assert label["correlations"][1, 2] == pytest.approx(expected, abs=1e-6)
    assert score["correlations"][0, 4] == pytest.approx(np.corrcoef(table[:, 4], meta["score"])[0, 1], abs=1e-6)


def test_values_that_are_not_finite_are_left_out_and_counted(tmp_path):
    table = seeded(30, 4)
    table[3, 1], table[7, 2] = np.nan, np.inf
    found = blocks(report(output(tmp_path, table)))
    assert found["units-0"]["nonfinite"].tolist() == [0, 1, 1, 0]
    assert found["units-0"]["histogram"].sum(axis=1).tolist() == [30, 29, 29, 30]
    assert np.isnan(found["map-0"]["x"]).nonzero()[0].tolist() == [3, 7]
    assert (found["near-0"]["near"][[3, 7]] == -1).all()


def test_columns_of_one_label_or_too_many_are_not_related(tmp_path, monkeypatch):
    monkeypatch.setattr(units, "MOST_LABELS", 5)
    meta = {"one": ["a"] * 12, "many": [str(n) for n in range(12)], "some": ["a", "b"] * 6, "none": [None] * 12}
    found = blocks(report(output(tmp_path, seeded(12, 3), meta=meta)))
    assert found["units-0"]["columns"] == ["some"]


def test_more_units_than_a_page_holds_are_a_sample_that_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(units, "MOST_UNITS", 10)
    table = seeded(20, 50)
    found = blocks(report(output(tmp_path, table)))["units-0"]
    assert (found["count"], len(found["numbers"])) == (50, 10)
    assert (np.diff(found["numbers"]) > 0).all()
    assert (found["top"][:, 0] == table.argmax(axis=0)[found["numbers"]]).all()
