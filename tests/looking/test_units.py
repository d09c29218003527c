"""Units are what numpy finds over all rows at once."""

from __future__ import annotations

import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kurtosis

import layertap
from layertap.looking import units as looking
from layertap.looking.extremes import Extremes
from layertap.looking.moments import Moments
from tests.conftest import TINY
from tests.looking.tables import output, seeded
from tests.pipeline.test_pipeline import run


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_moments_and_extremes_in_chunks_are_those_of_the_whole(data):
    count, columns, k = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 5)), data.draw(st.integers(1, 70))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    values = rng.integers(-3, 4, (count, columns)) / 2 + data.draw(st.sampled_from([0, 1000.0]))
    cuts = sorted(data.draw(st.lists(st.integers(0, count), max_size=5)))
    moments, extremes = Moments(columns), Extremes(k, columns)
    for start, stop in zip([0, *cuts], [*cuts, count], strict=True):
        if start < stop:
            moments.add(values[start:stop])
            extremes.add(start, values[start:stop])
    assert moments.means == pytest.approx(values.mean(axis=0))
    assert moments.second == pytest.approx(((values - values.mean(axis=0)) ** 2).sum(axis=0), abs=1e-6)
    assert moments.third == pytest.approx(((values - values.mean(axis=0)) ** 3).sum(axis=0), abs=1e-6)
    assert moments.fourth == pytest.approx(((values - values.mean(axis=0)) ** 4).sum(axis=0), abs=1e-6)
    expected = np.argsort(-values, axis=0, kind="stable")[:k]
    assert np.array_equal(extremes.rows[: len(expected)], expected)
    assert (extremes.rows[count:] == -1).all()


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(looking, "_VALUES", 100)


def test_units_of_vectors_are_those_of_numpy(tmp_path, small_chunks):
    values = np.maximum(np.round(seeded(70, 9), 1), 0)
    values[:, 3], values[:, 5] = 0, 2.5
    features = output(tmp_path, values)
    found = features.units("tap0", k=70)
    exact = values.astype(np.float64)
    assert len(found) == 9
    assert (found.rows, found.channels) == (70, False)
    assert found.mean == pytest.approx(exact.mean(axis=0))
    assert found.std == pytest.approx(exact.std(axis=0))
    assert np.array_equal(found.min, exact.min(axis=0))
    assert np.array_equal(found.max, exact.max(axis=0))
    assert found.zeros == pytest.approx((values == 0).mean(axis=0))
    alive = [0, 1, 2, 4, 6, 7, 8]
    assert found.kurtosis[alive] == pytest.approx(kurtosis(exact[:, alive]))
    assert np.isnan(found.kurtosis[[3, 5]]).all()
    assert np.array_equal(found.top_rows, np.argsort(-values, axis=0, kind="stable").T)
    assert np.array_equal(found.least_rows, np.argsort(values, axis=0, kind="stable").T)
    assert np.array_equal(found.top_values, np.take_along_axis(exact, found.top_rows.T, axis=0).T)
    assert np.array_equal(found.least_values, np.take_along_axis(exact, found.least_rows.T, axis=0).T)
    assert np.flatnonzero(found.dead).tolist() == [3]
    assert np.flatnonzero(found.constant).tolist() == [3, 5]


def test_units_of_maps_are_channels_and_their_largest_value(photos, tmp_path, small_chunks):
    run(photos, tmp_path / "out")
    features = layertap.open(tmp_path / "out", plugins=[TINY])
    found, values = features.units("features.0", k=5), np.asarray(features["features.0"]).astype(np.float64)
    assert values.shape == (20, 8, 14, 14)
    assert found.channels
    assert found.mean == pytest.approx(values.mean(axis=(0, 2, 3)))
    assert found.std == pytest.approx(values.std(axis=(0, 2, 3)))
    largest = values.max(axis=(2, 3))
    assert np.array_equal(found.top_rows, np.argsort(-largest, axis=0, kind="stable")[:5].T)
    assert np.array_equal(found.least_values, np.sort(largest, axis=0)[:5].T)


def test_values_that_are_not_finite_are_left_out_and_counted(tmp_path, small_chunks):
    values = seeded(30, 4)
    values[3, 0], values[4, 0], values[:, 2] = np.nan, -np.inf, np.inf
    found = output(tmp_path, values, meta={"n": list(range(30))}).units("tap0", k=30, by="n")
    kept = np.delete(values[:, 0].astype(np.float64), [3, 4])
    assert found.nonfinite.tolist() == [2, 0, 30, 0]
    assert found.mean[0] == pytest.approx(kept.mean())
    assert found.kurtosis[0] == pytest.approx(kurtosis(kept))
    assert {3, 4} & set(found.top_rows[0].tolist()) == set()
    assert found.top_rows[0, 28:].tolist() == [-1, -1]
    assert np.isnan(found.least_values[0, 28:]).all()
    assert np.isnan([found.mean[2], found.min[2], found.zeros[2], found.correlation[2]]).all()
    assert found.correlation[0] == pytest.approx(np.corrcoef(kept, np.delete(np.arange(30), [3, 4]))[0, 1])


def test_units_correlate_with_a_number(tmp_path, small_chunks):
    numbers = [None if n == 5 else float(n % 7) for n in range(60)]
    values = seeded(60, 5)
    values[:, 1] += 2 * np.array([number or 0 for number in numbers])
    values[:, 2] = 4
    found = output(tmp_path, values, meta={"share": numbers}).units("tap0", by="share")
    known = np.delete(np.arange(60), 5)
    expected = [np.corrcoef(values[known, unit], [numbers[n] for n in known])[0, 1] for unit in (0, 1, 3, 4)]
    assert found.correlation[[0, 1, 3, 4]] == pytest.approx(expected)
    assert np.isnan(found.correlation[2])
    assert found.selectivity is None


def test_units_are_selective_for_a_label(tmp_path, small_chunks):
    labels = [["cat", "dog", "owl", None][n % 4] for n in range(80)]
    values = seeded(80, 6)
    values[:, 4] += [3 * (label == "owl") for label in labels]
    found = output(tmp_path, values, meta={"label": labels}).units("tap0", by="label")
    assert found.labels == ("cat", "dog", "owl")
    assert found.label_counts.tolist() == [Counter(labels)[label] for label in found.labels]
    assert np.unravel_index(np.argmax(found.selectivity), (6, 3)) == (4, 2)
    known = [n for n in range(80) if labels[n]]
    expected = [
        [np.corrcoef(values[known, unit], [labels[n] == label for n in known])[0, 1] for label in found.labels]
        for unit in range(6)
    ]
    assert found.selectivity == pytest.approx(np.array(expected))


def test_column_that_is_not_there_or_has_too_many_labels_is_refused(tmp_path, monkeypatch):
    features = output(tmp_path, seeded(20, 3), meta={"label": [f"l{n}" for n in range(20)]})
    with pytest.raises(layertap.ConfigError, match="no metadata is named 'labl'; did you mean 'label'"):
        features.units("tap0", by="labl")
    monkeypatch.setattr("layertap.looking.association.MOST_LABELS", 10)
    with pytest.raises(layertap.ConfigError, match="has 20 labels; selectivity takes up to 10"):
        features.units("tap0", by="label")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_short_floats_of_another_sink_have_units(tmp_path, dtype):
    features = output(tmp_path, seeded(20, 4), dtype=dtype, sink="parquet")
    values = np.asarray(features["tap0"]).astype(np.float64)
    assert features.units("tap0").mean == pytest.approx(values.mean(axis=0))


def test_memory_does_not_grow_with_the_rows(tmp_path):
    features = output(tmp_path, seeded(3000, 3000), batch_size=500)
    tracemalloc.start()
    features.units("tap0", k=3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60_000_000
