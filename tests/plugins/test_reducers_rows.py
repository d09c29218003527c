"""Rows: length one, and short ones that keep the distances of long ones, the same on every machine."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import layertap
from layertap import ConfigError, TapError
from layertap_plugins.reducers.l2_normalise import L2Normalise
from layertap_plugins.reducers.random_projection import RandomProjection, Signs
from tests.models import DEVICES, chain, noise
from tests.plugins.reducing import bound, reduced


@pytest.mark.parametrize("cls", [L2Normalise, RandomProjection])
@pytest.mark.parametrize(("axes", "shape"), [("NCHW", (3, 4, 5)), ("NLC", (7, 3)), ("N", ()), ("NC", (0,))])
def test_anything_but_one_row_per_image_is_refused_with_a_way_out(cls, axes, shape):
    with pytest.raises(TapError) as error:
        reduced(cls, torch.zeros(2, *shape), axes)
    shown = ", ".join(["N", *map(str, shape)])
    for part in (cls.name, "'features.3'", f"({shown})", f"`reduce: [mean_pool, {cls.name}]`", "`flatten`"):
        assert part in str(error.value)


# --- l2_normalise


def test_l2_normalise_gives_rows_of_length_one():
    rows = noise(50, 100)
    value = reduced(L2Normalise, rows, "NC")
    torch.testing.assert_close(value, torch.nn.functional.normalize(rows))
    torch.testing.assert_close(value.norm(dim=1), torch.ones(50))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_l2_normalise_leaves_rows_of_zeros(dtype):
    rows = torch.tensor([[0, 0, 0], [0, -3, 4]], dtype=dtype)
    expected = torch.tensor([[0, 0, 0], [0, -0.6, 0.8]], dtype=dtype)
    torch.testing.assert_close(reduced(L2Normalise, rows, "NC"), expected)


@pytest.mark.parametrize(
    ("size", "dtype"), [(6e4, torch.float16), (6e-8, torch.float16), (3e38, torch.bfloat16), (1e-30, torch.float32)]
)
def test_l2_normalise_serves_what_overflows_or_vanishes_when_squared(size, dtype):
    rows = torch.full((2, 100), size).to(dtype)
    value = reduced(L2Normalise, rows, "NC", eps=1e-30)
    torch.testing.assert_close(value.float(), torch.full((2, 100), 0.1), rtol=1e-2, atol=0)


def test_l2_normalise_does_not_stretch_noise_below_eps():
    rows = torch.tensor([[3e-5, 4e-5], [3.0, 4.0]])
    torch.testing.assert_close(
        reduced(L2Normalise, rows, "NC", eps=1e-3), torch.tensor([[0.03, 0.04], [0.6, 0.8]]), rtol=1e-5, atol=0
    )


# --- random_projection: the matrix


def philox(key, blocks):
    """The words of Philox4x64-10 as Salmon et al. 2011 define it, in whole numbers of Python."""
    mask = 2**64 - 1
    for counter in range(1, blocks + 1):
        x, k0, k1 = [counter, 0, 0, 0], key, 0
        for _ in range(10):
            a, b = 0xD2E7470EE14C6C93 * x[0], 0xCA5A826395121157 * x[2]
            x = [(b >> 64) ^ x[1] ^ k0, b & mask, (a >> 64) ^ x[3] ^ k1, a & mask]
            k0, k1 = (k0 + 0x9E3779B97F4A7C15) & mask, (k1 + 0xBB67AE8584CAA73B) & mask
        yield from x


def by_hand(width, dim, seed):
    """The matrix of signs, entry by entry."""
    s, place, dense = math.isqrt(width), -1, np.zeros(width * dim, int)
    for word in philox(seed, width * dim):
        zeros, chance = 0, 1 << 127
        while word >> 1 < (chance := chance * (s - 1) // s) >> 64:
            zeros += 1
        place += zeros + 1
        if place >= width * dim:
            return dense.reshape(dim, width)
        dense[place] = 1 if word & 1 else -1
    raise AssertionError


def dense(signs):
    matrix = np.zeros((len(signs.starts), signs.width), int)
    rows = np.searchsorted(signs.starts, np.arange(len(signs.inputs)), side="right") - 1
    matrix[rows, signs.inputs] = signs.signs
    return matrix


@given(width=st.integers(1, 40), dim=st.integers(1, 8), seed=st.integers(0, 2**63 - 1))
def test_matrix_can_be_drawn_by_hand(width, dim, seed):
    assert np.array_equal(dense(Signs.drawn(width, dim, seed)), by_hand(width, dim, seed))


@given(width=st.integers(1, 400), dim=st.integers(1, 20), chunk=st.integers(1, 300))
def test_matrix_does_not_depend_on_the_chunks_it_is_drawn_in(width, dim, chunk):
    whole, chunked = Signs.drawn(width, dim, 7), Signs.drawn(width, dim, 7, chunk)
    for field in ("inputs", "starts", "signs"):
        assert np.array_equal(getattr(whole, field), getattr(chunked, field))


# Never change these: features that people keep were projected with them.
@pytest.mark.parametrize(
    ("width", "dim", "seed", "digest"),
    [
        (1000, 8, 0, "743077066424159c"),
        (9216, 512, 0, "900ce0128d1763b1"),
        (200704, 512, 0, "2feb966536c1af86"),
    ],
)
def test_matrix_is_the_same_on_every_machine(width, dim, seed, digest):
    signs = Signs.drawn(width, dim, seed)
    found = hashlib.sha256(signs.inputs.astype("<i4").tobytes() + signs.signs.tobytes())
    assert found.hexdigest()[:16] == digest


def test_matrix_is_as_sparse_and_as_balanced_as_the_paper_has_it():
    width, dim = 10_000, 500
    matrix = dense(Signs.drawn(width, dim, 3))
    cells, share = width * dim, 1 / 100
    filled = np.count_nonzero(matrix)
    assert abs(filled - cells * share) < 4 * math.sqrt(cells * share * (1 - share))
    assert abs(matrix.sum()) < 4 * math.sqrt(filled)
    for axis, length in ((0, dim), (1, width)):
        spread = np.count_nonzero(matrix, axis).var()
        assert spread == pytest.approx(length * share * (1 - share), rel=0.25)


def test_matrix_of_another_seed_is_another():
    one, other = dense(Signs.drawn(400, 50, 0)), dense(Signs.drawn(400, 50, 1))
    assert np.mean(one[one != 0] == other[one != 0]) < 0.1


def test_wide_rows_take_memory_only_for_nonzero_entries():
    signs = Signs.drawn(5_000_000, 64, 0)
    assert len(signs.inputs) == pytest.approx(64 * math.sqrt(5_000_000), rel=0.02)
    assert signs.inputs.max() < 5_000_000


# --- random_projection: the product


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_projection_is_the_product_with_the_matrix(dtype):
    rows = noise(6, 300).to(dtype)
    matrix = torch.from_numpy(dense(Signs.drawn(300, 20, 5))).double() * math.sqrt(math.isqrt(300) / 20)
    value = reduced(RandomProjection, rows, "NC", dim=20, seed=5)
    torch.testing.assert_close(value, (rows.double() @ matrix.T).to(dtype))


@pytest.mark.parametrize("device", DEVICES)
def test_projection_gives_the_same_values_on_every_machine(device):
    ramp = torch.arange(1000.0).repeat(3, 1)
    value = reduced(RandomProjection, ramp.to(device), "NC", dim=8).cpu()
    sums = torch.tensor([1961.0, -4944, 5222, 2832, 46, -562, -2185, -23])
    assert torch.equal(value, (sums * math.sqrt(31 / 8)).expand(3, 8))


def test_projection_of_a_row_does_not_depend_on_the_batch():
    rows = noise(19, 5000)
    reducer = bound(RandomProjection, rows, "NC", dim=100)
    assert torch.equal(torch.cat([reducer(row[None]) for row in rows]), reducer(rows))


def test_projection_does_not_depend_on_the_number_of_threads():
    rows, threads = noise(32, 20_000), torch.get_num_threads()
    values = []
    try:
        for number in (1, 2, 3, 8):
            torch.set_num_threads(number)
            values.append(reduced(RandomProjection, rows, "NC", dim=256))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(values[0], value) for value in values)


@pytest.mark.parametrize("spread", ["gaussian", "rectified"])
def test_projection_keeps_distances(spread):
    rows, dim = noise(40, 10_000), 1024
    rows = rows.relu() if spread == "rectified" else rows
    kept = torch.pdist(reduced(RandomProjection, rows, "NC", dim=dim)) / torch.pdist(rows)
    # 780 distances, each with a standard deviation of sqrt(1 / 2 / dim) = 0.022.
    assert kept.mean() == pytest.approx(1, abs=0.01)
    assert kept.min() > 0.9
    assert kept.max() < 1.1


def test_projections_of_one_width_and_seed_can_be_compared():
    rows = noise(4, 200)
    one, other = (bound(RandomProjection, rows, "NC", dim=16, seed=9) for _ in range(2))
    assert torch.equal(one(rows), other(rows))
    assert not torch.equal(one(rows), reduced(RandomProjection, rows, "NC", dim=16, seed=10))


def test_projection_refuses_to_make_a_row_longer():
    with pytest.raises(
        TapError, match=r"'features\.3' gives rows of 5 values, fewer than the requested 512; set a smaller dim"
    ):
        reduced(RandomProjection, noise(2, 5), "NC")
    assert reduced(RandomProjection, noise(2, 5), "NC", dim=5).shape == (2, 5)


def test_projection_refuses_rows_of_another_width_than_the_first():
    reducer = bound(RandomProjection, noise(2, 50), "NC", dim=8)
    reducer(noise(2, 50))
    with pytest.raises(TapError, match=r"'features\.3' gave rows of 50 values and now of 60"):
        reducer(noise(2, 60))


def test_projection_shows_an_infinite_value_only_where_it_takes_part():
    rows = noise(2, 400)
    rows[0, 17] = torch.inf
    value = reduced(RandomProjection, rows, "NC", dim=64)
    touched = torch.from_numpy(dense(Signs.drawn(400, 64, 0))[:, 17] != 0)
    assert touched.any()
    assert torch.equal(~value[0].isfinite(), touched)
    assert value[1].isfinite().all()


@pytest.mark.parametrize("params", [{"dim": 0}, {"dim": 1.5}, {"seed": -1}, {"seed": 2**63}, {"density": 0.1}])
def test_projection_refuses_wrong_parameters(params):
    with pytest.raises(ConfigError, match=r"^taps\[0\]\.reduce\[0\]\.\w+: "):
        layertap.tap(chain(), [{"layer": "0", "reduce": {"type": "random_projection", **params}}])
