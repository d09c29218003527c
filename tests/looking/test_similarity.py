"""CKA and RSA are those of a float64 reference, for taps of any size, in bounded memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy.stats import spearmanr

import layertap
from layertap.looking import kernels
from layertap.looking import similarity as looking
from tests.looking.tables import output, seeded


def hsic(one: np.ndarray, other: np.ndarray) -> float:
    """HSIC_1 of Song et al. (2012), term by term, of two kernels."""
    count = len(one)
    one, other = one.copy(), other.copy()
    np.fill_diagonal(one, 0)
    np.fill_diagonal(other, 0)
    together = one @ other
    middle = one.sum() * other.sum() / ((count - 1) * (count - 2))
    return (np.trace(together) + middle - 2 / (count - 2) * together.sum()) / (count * (count - 3))


def flat(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1).astype(np.float64)


def cka(one: np.ndarray, other: np.ndarray) -> float:
    kernels = [flat(values) @ flat(values).T for values in (one, other)]
    return hsic(*kernels) / np.sqrt(hsic(kernels[0], kernels[0]) * hsic(kernels[1], kernels[1]))


def rsa(one: np.ndarray, other: np.ndarray) -> float:
    below = np.tril_indices(len(one), -1)
    dissimilar = [1 - np.corrcoef(flat(values))[below] for values in (one, other)]
    return spearmanr(*dissimilar).statistic


def tables(count: int) -> list[np.ndarray]:
    """A tap, one that holds it in other units beside noise, a map that is far from zero, and noise."""
    first = np.maximum(seeded(count, 12), 0)
    second = np.concatenate([5 * first @ seeded(12, 7, seed=1), seeded(count, 3, seed=2)], axis=1)
    third = (first @ seeded(12, 90, seed=3) + 100).reshape(count, 10, 3, 3)
    return [first, second, third, seeded(count, 6, seed=4)]


@pytest.mark.parametrize("count", [4, 5, 60])
def test_similarities_are_those_of_a_float64_reference(tmp_path, count, monkeypatch):
    monkeypatch.setattr(kernels, "_COLUMNS_BYTES", 8 * count * 7)  # of 90 columns, seven at a time
    monkeypatch.setattr(kernels, "_ROWS", 13)
    values = tables(count)
    found = output(tmp_path, *values).similarity()
    assert found.names == ("tap0", "tap1", "tap2", "tap3")
    assert (found.images, found.shared, found.left_out) == (count, count, 0)
    assert found.cka == pytest.approx(np.array([[cka(one, other) for other in values] for one in values]), abs=1e-6)
    assert found.rsa == pytest.approx(np.array([[rsa(one, other) for other in values] for one in values]), abs=1e-6)


def test_unpooled_taps_are_compared_in_bounded_memory(tmp_path):
    values = [np.maximum(seeded(30, 400_000, seed=seed), 0) for seed in (0, 1)]
    values[1][:, :200_000] = values[0][:, 200_000:]
    features = output(tmp_path, values[0].reshape(30, 64, 50, 125), values[1], batch_size=8)
    tracemalloc.start()
    found = features.similarity()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.cka[0, 1] == pytest.approx(cka(*values), abs=1e-6)
    assert found.rsa[0, 1] == pytest.approx(rsa(*values), abs=1e-6)
    assert peak < 200_000_000


def test_unbiased_cka_of_unrelated_taps_is_near_zero_where_the_biased_one_is_not(tmp_path):
    values = [seeded(30, 400, seed=seed) for seed in (0, 1)]
    found = output(tmp_path, *values).similarity()
    centred = [flat(v) - flat(v).mean(axis=0) for v in values]
    biased = np.linalg.norm(centred[0].T @ centred[1]) ** 2
    biased /= np.linalg.norm(centred[0] @ centred[0].T) * np.linalg.norm(centred[1] @ centred[1].T)
    assert biased > 0.9
    assert abs(found.cka[0, 1]) < 0.1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_short_floats_and_another_sink_are_compared(tmp_path, dtype):
    features = output(tmp_path, *tables(20), dtype=dtype, sink="parquet")
    one, other = (np.asarray(features[tap]).astype(np.float64) for tap in ("tap0", "tap2"))
    found = features.similarity(taps=["tap2", "tap0"])
    assert found.names == ("tap0", "tap2")
    assert found.cka[0, 1] == pytest.approx(cka(one, other), abs=1e-6)


def test_outputs_are_joined_by_id(tmp_path):
    first, second = seeded(40, 9), seeded(40, 5, seed=1)
    one = output(tmp_path / "one", first, numbers=[*range(30, 4, -1)])
    other = output(tmp_path / "other", second, numbers=[*range(10, 40)])
    found = one.similarity(other)
    assert found.names == (f"{one.path}:tap0", f"{other.path}:tap0")
    assert (found.images, found.shared) == (21, 21)
    assert found.cka[0, 1] == pytest.approx(cka(first[10:31], second[10:31]), abs=1e-6)
    assert found.rsa[0, 1] == pytest.approx(rsa(first[10:31], second[10:31]), abs=1e-6)


def test_many_images_are_a_seeded_sample_that_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(looking, "MOST", 25)
    values = tables(60)
    features = output(tmp_path, *values)
    found = features.similarity()
    assert (found.images, found.shared) == (25, 60)
    drawn = np.sort(np.random.default_rng(0).choice(60, 25, replace=False))
    assert found.cka[0, 2] == pytest.approx(cka(values[0][drawn], values[2][drawn]), abs=1e-6)
    assert np.array_equal(found.rsa, features.similarity().rsa)


def test_fewer_images_are_compared_where_more_taps_are():
    assert looking.most(2) == 5_000
    assert 1_000 < looking.most(60) < looking.most(10) < 5_000


def test_images_that_are_not_finite_are_left_out_of_all_taps(tmp_path):
    values = tables(30)
    values[0][3, 2], values[2][9, 0, 0, 0] = np.nan, np.inf
    found = output(tmp_path, *values).similarity()
    kept = [row for row in range(30) if row not in (3, 9)]
    assert (found.images, found.shared, found.left_out) == (28, 30, 2)
    assert found.cka[0, 2] == pytest.approx(cka(values[0][kept], values[2][kept]), abs=1e-6)


def test_tap_that_is_the_same_for_all_images_has_no_similarity(tmp_path):
    found = output(tmp_path, np.full((10, 5), 3.3, np.float32), seeded(10, 5)).similarity()
    assert np.isnan(found.cka[0]).all()
    assert np.isnan(found.rsa[0]).all()
    assert found.cka[1, 1] == found.rsa[1, 1] == 1


def test_too_little_to_compare_is_refused(tmp_path):
    few = output(tmp_path / "few", seeded(3, 5), seeded(3, 5))
    with pytest.raises(layertap.ConfigError, match=r"3 images .* 4 are needed"):
        few.similarity()
    with pytest.raises(layertap.ConfigError, match="has one tap to compare"):
        few.similarity(taps="tap0")
    with pytest.raises(layertap.ConfigError, match="given twice"):
        few.similarity(few)
