"""Pairs are all that are alike, and no others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import layertap
from layertap.looking import pairs as looking
from layertap.looking.pairs import alike
from tests.looking.tables import output, seeded
from tests.looking.test_search import Held, reference


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_pairs_are_those_of_a_float64_reference(data):
    count, length = data.draw(st.integers(0, 40)), data.draw(st.integers(1, 20))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    values = rng.integers(-2, 3, (count, length)).astype(data.draw(st.sampled_from([np.float32, np.float64])))
    above = data.draw(st.sampled_from([-0.5, 0.0, 0.5, 0.9, 1.0]))
    zero = (values == 0).all(axis=1)
    expected = []
    for row in np.flatnonzero(~zero):
        with np.errstate(all="ignore"):
            cosines = reference(values, values[row], "cosine")
        later = [other for other in range(row + 1, count) if not zero[other]]
        expected += [(-cosines[other], row, other) for other in later if cosines[other] >= above]
    found = alike(Held(values), "tap", above)
    assert [(pair.row, pair.other_row) for pair in found] == [pair[1:] for pair in sorted(expected)]
    assert found.left_out == {"nonfinite": 0, "zero": zero.sum()}


def test_planted_near_duplicates_are_all_found_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(looking, "_BLOCK", 17)
    values = seeded(300, 64)
    copies = [11, 40, 41, 99, 120, 150, 200, 250, 298, 299]
    values[copies] = values[copies[0]] + 1e-2 * seeded(10, 64, seed=1)
    values[5, 0], values[6] = np.nan, 0
    found = output(tmp_path, values).pairs(above=0.95)
    assert {(pair.row, pair.other_row) for pair in found} == {(a, b) for a in copies for b in copies if a < b}
    assert [pair.similarity for pair in found] == sorted((pair.similarity for pair in found), reverse=True)
    assert (found[0].id, found[0].other_id) == (f"{found[0].row:04d}.png", f"{found[0].other_row:04d}.png")
    assert found.left_out == {"nonfinite": 1, "zero": 1}


def test_equal_rows_have_a_cosine_of_1_wherever_they_are(monkeypatch):
    monkeypatch.setattr(looking, "_BLOCK", 7)
    values = np.tile(seeded(1, 5000), (50, 1))
    found = alike(Held(values), "tap", 1.0)
    assert [(pair.row, pair.other_row) for pair in found] == [(a, b) for a in range(50) for b in range(a + 1, 50)]
    assert {pair.similarity for pair in found} == {1.0}


def test_too_many_pairs_are_refused_early():
    with pytest.raises(layertap.ConfigError, match=r"more than 100 pairs .* first .* of 50 rows\); raise --above"):
        alike(Held(np.ones((50, 3), np.float32)), "tap", 0.5, most=100)


@pytest.mark.parametrize("above", [1.5, -2, float("nan")])
def test_threshold_that_no_cosine_has_is_refused(above):
    with pytest.raises(layertap.ConfigError, match="between -1 and 1"):
        alike(Held(np.ones((3, 3), np.float32)), "tap", above)
