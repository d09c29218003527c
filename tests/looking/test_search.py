"""Search is exact: what it finds is what float64 finds over all rows, ties in the order of the rows."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import layertap
from layertap.looking import neighbours as looking
from layertap.looking.metrics import METRICS
from layertap.looking.neighbours import Query, nearest
from tests.conftest import TINY
from tests.looking.table import numbered
from tests.looking.tables import TABLE, opened, output, seeded
from tests.pipeline.test_pipeline import run

PLANTED = [20, 40, 60, 80, 120, 140, 160, 180, 190, 199]


class Held:
    """An output of one tap in memory."""

    path = "held"

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.ids = [f"{row}" for row in range(len(values))]

    def __getitem__(self, tap: str) -> np.ndarray:
        return self.values


def reference(values: np.ndarray, query: np.ndarray, metric: str) -> np.ndarray:
    """Every row's value, in float64."""
    rows, one = values.reshape(len(values), -1).astype(np.float64), query.reshape(-1).astype(np.float64)
    if metric == "euclidean":
        return np.sqrt(((rows - one) ** 2).sum(axis=1))
    dots = (rows * one).sum(axis=1)
    return dots if metric == "dot" else dots / np.sqrt((rows**2).sum(axis=1) * (one**2).sum())


def order(values: np.ndarray, metric: str) -> np.ndarray:
    return np.argsort(values if metric == "euclidean" else -values, kind="stable")


@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_nearest_rows_are_those_of_a_float64_reference_with_ties_by_row(metric, data):
    count, length = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 40))
    # Few different values: many rows are equal, or nearly so.
    kind = data.draw(st.sampled_from([np.float32, np.float64, np.float16, np.int32, np.uint8]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    values = (rng.integers(1, 4, (count, length)) * data.draw(st.sampled_from([1, 7]))).astype(kind)
    if data.draw(st.booleans()) and kind is not np.uint8:
        values[:, 0] += rng.integers(0, 2, count).astype(kind)
    asked = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=6))
    k = data.draw(st.integers(1, count + 3))
    held = Held(values)
    queries = [Query(str(row), values[row].astype(np.float64 if kind in (np.float64, np.int32) else np.float32))
               for row in asked]  # fmt: skip
    for row, found in zip(asked, nearest(held, queries, "tap", k, metric), strict=True):
        expected = reference(values, values[row], metric)
        wanted = order(expected, metric)[:k]
        assert [hit.row for hit in found] == wanted.tolist()
        assert [hit.value for hit in found] == pytest.approx(expected[wanted], rel=1e-12, abs=1e-12)
        assert found[0].value == pytest.approx(expected.min() if metric == "euclidean" else expected.max())


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("count", [1, 5])
def test_nearest_rows_are_right_in_any_blocks_and_for_long_vectors(metric, count, monkeypatch):
    monkeypatch.setattr(looking, "_PAIRS", 37)
    values = np.maximum(seeded(200, 9000), 0)
    values[150:] = values[:50] * (1 + 1e-7 * seeded(50, 1))
    queries = [Query(str(row), values[row]) for row in range(count)]
    for row, found in enumerate(nearest(Held(values), queries, "tap", 20, metric)):
        expected = reference(values, values[row], metric)
        assert [hit.row for hit in found] == order(expected, metric)[:20].tolist()


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e18, 1e30])
@pytest.mark.parametrize("metric", METRICS)
def test_values_beyond_the_range_of_float32_products_are_searched_exactly(scale, metric):
    values = seeded(50, 20) * np.float32(scale)
    values[10] = values[3]
    (found,) = nearest(Held(values), [Query("3", values[3])], "tap", 50, metric)
    assert [hit.row for hit in found] == order(reference(values, values[3], metric), metric).tolist()


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """200 rows, of which ten are nearly row 100, one is zero, and two are not finite."""
    values = seeded(200, 64)
    values[PLANTED[:9]] = values[100] + 1e-3 * seeded(9, 64, seed=1)
    values[PLANTED[9]] = values[100]
    values[7] = 0
    values[8, 3], values[9, 3] = np.nan, np.inf
    folder = tmp_path_factory.mktemp("planted")
    output(folder, values)
    return folder, values


def test_search_by_an_id_finds_it_first_with_similarity_1_and_its_near_duplicates(planted):
    folder, _ = planted
    found = opened(folder).search("0100.png", k=11)
    assert found[0] == (100, "0100.png", 1.0)
    assert {hit.row for hit in found} == {100, *PLANTED}
    assert found[1].row == 199
    assert found[1].value == 1.0
    assert found.left_out == {"nonfinite": 2, "zero": 1}
    assert found.rows == 200


def test_search_by_an_image_goes_through_the_outputs_own_model(planted, tmp_path):
    folder, _ = planted
    numbered(30).save(tmp_path / "query.png")
    features = opened(folder)
    for query in (tmp_path / "query.png", str(tmp_path / "query.png"), numbered(30), np.asarray(numbered(30))):
        found = features.search(query, k=1)
        assert (found[0].row, found[0].value) == (30, pytest.approx(1, abs=1e-12))


def test_search_by_a_list_or_a_folder_gives_a_list(planted, tmp_path):
    folder, _ = planted
    for number in (5, 3):
        numbered(number).save(tmp_path / f"{number}.png")
    features = opened(folder)
    assert [one[0].row for one in features.search(["0005.png", "0003.png", "0005.png"])] == [5, 3, 5]
    assert [(one.query, one[0].row) for one in features.search([tmp_path])] == [("3.png", 3), ("5.png", 5)]
    with pytest.raises(layertap.ConfigError, match="is a folder; give it in a list"):
        features.search(tmp_path)
    assert [one[0].row for one in features.search([numbered(5), numbered(3)])] == [5, 3]


@pytest.mark.parametrize(("query", "said"), [("0007.png", "vector of zeros"), ("0008.png", "not all finite")])
def test_query_that_has_no_cosine_is_refused(planted, query, said):
    with pytest.raises(layertap.ConfigError, match=said):
        opened(planted[0]).search(query)


def test_vector_of_zeros_has_a_distance(planted):
    found = opened(planted[0]).search("0007.png", metric="euclidean")
    assert found[0] == (7, "0007.png", 0.0)
    assert found.left_out == {"nonfinite": 2, "zero": 0}


def test_unknown_metric_and_id_name_the_nearest(planted):
    with pytest.raises(layertap.ConfigError, match="did you mean 'cosine'"):
        opened(planted[0]).search("0001.png", metric="cosin")
    with pytest.raises(layertap.ConfigError, match=r"neither an id of .* nor a file; did you mean '0001.png'"):
        opened(planted[0]).search("0001.pn")


def test_image_that_cannot_be_used_is_an_image_error(planted, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(layertap.ImageError, match=r"bad\.png' cannot be used"):
        opened(planted[0]).search(tmp_path / "bad.png")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("sink", ["npy", "parquet"])
def test_every_dtype_and_sink_is_searched(tmp_path, dtype, sink):
    features = output(tmp_path, seeded(40, 30), dtype=dtype, sink=sink)
    values = np.asarray(features["tap0"]).astype(np.float64)
    found = features.search("0011.png", k=40)
    assert [hit.row for hit in found] == order(reference(values, values[11], "cosine"), "cosine").tolist()
    assert features.search(numbered(11), k=1)[0][:2] == (11, "0011.png")


def test_maps_are_flattened_and_several_taps_are_named(tmp_path):
    features = output(tmp_path, seeded(20, 4, 3, 3), seeded(20, 5))
    values = np.asarray(features["tap0"])
    found = features.search("0002.png", tap="tap0", k=20)
    assert [hit.row for hit in found] == order(reference(values, values[2], "cosine"), "cosine").tolist()
    with pytest.raises(layertap.ConfigError, match="has 2 taps; choose one with --tap or tap=: tap0, tap1"):
        features.search("0002.png")


def test_other_weights_than_those_of_the_output_are_refused(tmp_path):
    features = output(tmp_path, seeded(20, 5))
    np.savez(tmp_path / "weights.npz", tap0=seeded(20, 5, seed=1))
    with pytest.raises(layertap.StoreError, match="its model cannot be used for other images: about was") as caught:
        features.search(numbered(1))
    assert caught.value.code == 6
    assert features.search("0001.png", k=1)[0].row == 1


def test_weights_that_have_moved_can_be_named(tmp_path):
    features = output(tmp_path, seeded(20, 5))
    (tmp_path / "weights.npz").rename(tmp_path / "moved.npz")
    found = features.search(numbered(1), k=1, overrides={"model.weights": str(tmp_path / "moved.npz")})
    assert found[0].row == 1


def test_unfinished_output_is_searched_as_far_as_it_is_committed(photos, tmp_path):
    with pytest.raises(layertap.PluginError):
        run(photos, tmp_path / "out", shard_rows=4, observers=[{"type": "stop", "after": 12}])
    features = layertap.open(tmp_path / "out", plugins=[TINY])
    count = len(features.ids)
    assert 0 < count < 20
    for query in (features.ids[1], photos / features.ids[1]):
        found = features.search(query, k=100, tap="classifier")
        assert len(found) == count
        assert found[0][:2] == (1, features.ids[1])
        assert found[0].value == pytest.approx(1, abs=1e-9)


def test_output_without_rows_is_searched_by_an_image(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "bad.png").write_bytes(b"no image")
    run(folder, tmp_path / "out")
    features = layertap.open(tmp_path / "out", plugins=[TINY])
    assert list(features.search(numbered(1), tap="classifier")) == []
    assert list(features.pairs(tap="classifier")) == []


def test_complex_numbers_are_refused(tmp_path):
    features = output(tmp_path, seeded(5, 3).astype(np.complex64))
    with pytest.raises(layertap.ConfigError, match="complex numbers"):
        features.search("0001.png")


def test_hostile_manifest_is_refused_as_open_refuses_it(planted, tmp_path):
    shutil.copytree(planted[0] / "out", tmp_path / "out")
    manifest = tmp_path / "out/manifest.json"
    facts = json.loads(manifest.read_text())
    facts["taps"]["tap0"]["shape"] = [2**40]
    manifest.write_text(json.dumps(facts))
    with pytest.raises(layertap.StoreError, match="its manifest says"):
        layertap.open(tmp_path / "out", plugins=[TABLE]).search("0001.png")
    facts["taps"]["tap0"]["file"] = "../secret"
    manifest.write_text(json.dumps(facts))
    with pytest.raises(layertap.StoreError, match="is not a name that a run"):
        layertap.open(tmp_path / "out", plugins=[TABLE])
