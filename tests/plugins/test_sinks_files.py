"""Every file sink gives back its values, bit for bit, whole or in parts, and reads no more than is requested."""

from __future__ import annotations

import gc
import os
import shutil
import sys

import ml_dtypes
import numpy as np
import pytest

import layertap
from tests.conftest import TINY
from tests.pipeline.test_pipeline import run
from tests.plugins.sinking import SINKS, TAPS, sink_config, sink_run, tree, values

ROWS = {"one": (), "vector": (5,), "map": (2, 3, 4)}


def sink_of(kind, *taps):
    sink = SINKS[kind].of(path="features")
    sink.stems = {tap: tap.replace("/", "%2F") for tap in taps}
    return sink


def shard(number, arrays, first=0, meta=None):
    rows = len(next(iter(arrays.values())))
    return layertap.Shard(
        number,
        [layertap.ImageRecord(f"{first + row}.jpg", b"", meta(first + row) if meta else {}) for row in range(rows)],
        arrays,
    )


def saved(root, sink, lengths, arrays, meta=None):
    """The folders of the parts of `arrays`, cut to these lengths."""
    parts, start = [], 0
    for number, length in enumerate(lengths):
        parts.append(root / f"{number:05d}")
        parts[-1].mkdir()
        piece = {tap: array[start : start + length] for tap, array in arrays.items()}
        sink.save(shard(number, piece, start, meta), parts[-1])
        start += length
    return parts


def merged(root, sink, parts):
    (root / "merged").mkdir()
    sink.merge(parts, root / "merged")
    return root / "merged"


def noise(dtype, shape):
    """Values of any bits, including NaNs of every kind."""
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return np.random.default_rng(0).integers(0, 2, shape).astype(bool)
    count = int(np.prod(shape)) * dtype.itemsize
    return np.random.default_rng(0).integers(0, 256, count, np.uint8).view(dtype).reshape(shape)


@pytest.mark.parametrize("kind", SINKS)
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_parts_and_their_merger_hold_the_bits_of_every_dtype(tmp_path, kind, row):
    dtypes = ("f2", "f4", "f8", "i1", "i8", "u1", "u2", "?", "c8", ml_dtypes.bfloat16)
    arrays = {f"t.{np.dtype(dtype).name}": noise(dtype, (9, *row)) for dtype in dtypes}
    arrays["t.zeros"] = np.array([0.0, -0.0, 0.0], np.float32).repeat(3 * int(np.prod(row))).reshape(9, *row)
    sink = sink_of(kind, *arrays)
    parts = saved(tmp_path, sink, [0, 4, 0, 5, 0], arrays)
    whole = merged(tmp_path, sink, parts)
    for tap, array in arrays.items():
        stored = array.view(np.uint16) if array.dtype.name == "bfloat16" and kind != "safetensors" else array
        for folder, expected in ((parts[1], stored[:4]), (parts[2], stored[:0]), (whole, stored)):
            rows = sink.load(folder, tap)
            assert (rows.shape, rows.dtype) == (expected.shape, expected.dtype)
            assert np.asarray(rows).tobytes() == expected.tobytes()
            assert rows[1:3].tobytes() == expected[1:3].tobytes()
        assert rows[np.array([7, 0, 3])].tobytes() == stored[[7, 0, 3]].tobytes()
        assert np.asarray(rows[8]).tobytes() == stored[8].tobytes()


@pytest.mark.parametrize("kind", SINKS)
@pytest.mark.parametrize(
    "array",
    [
        np.asfortranarray(np.arange(24.0).reshape(2, 3, 4)),
        np.arange(48.0).reshape(2, 3, 8)[:, :, ::2],
        np.broadcast_to(np.float32(1), (3, 5)),
    ],
    ids=["Fortran", "strided", "broadcast"],
)
def test_rows_are_c_ordered_whatever_came(tmp_path, kind, array):
    sink = sink_of(kind, "tap")
    (part,) = saved(tmp_path, sink, [len(array)], {"tap": array})
    np.testing.assert_array_equal(sink.load(part, "tap"), array)


@pytest.mark.parametrize("kind", SINKS)
def test_run_without_usable_images_is_finished(tmp_path, kind):
    sink = sink_of(kind, "tap")
    whole = merged(tmp_path, sink, saved(tmp_path, sink, [0, 0], {"tap": np.zeros((0, 2, 3), np.float16)}))
    rows = sink.load(whole, "tap")
    assert (rows.shape, rows.dtype) == ((0, 2, 3), np.float16)
    assert rows[:].shape == (0, 2, 3)


@pytest.fixture(scope="module")
def holed(photos, tmp_path_factory):
    """The photographs, of which a first and a middle shard of four cannot be used."""
    folder = tmp_path_factory.mktemp("holed") / "photos"
    shutil.copytree(photos, folder)
    paths = sorted(folder.rglob("*.jpg"))
    for path in (*paths[:4], *paths[8:12]):
        path.write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def plain(holed, tmp_path_factory):
    """The npy sink's output for them."""
    out = tmp_path_factory.mktemp("plain") / "out"
    run(holed, out, taps=TAPS)
    return out


@pytest.mark.parametrize("kind", SINKS)
def test_output_equals_that_of_npy_also_where_whole_shards_are_empty(holed, plain, tmp_path, kind):
    report = sink_run(kind, holed, tmp_path / "out")
    assert (report.kept, report.failed, report.shards) == (12, 8, 5)
    assert values(tmp_path / "out") == values(plain)
    assert layertap.open(tmp_path / "out").index == layertap.open(plain).index
    features, expected = layertap.open(tmp_path / "out"), layertap.open(plain)
    for tap in features.taps:
        assert features[tap][[9, 0, 3]].tobytes() == expected[tap][[9, 0, 3]].tobytes()
        assert features[tap][-1].tobytes() == expected[tap][-1].tobytes()
    assert not (tmp_path / "out/parts").exists()


@pytest.mark.parametrize("kind", ["safetensors", "parquet", "hdf5", "zarr"])
def test_same_rows_give_the_same_bytes(photos, tmp_path, kind):
    sink_run(kind, photos, tmp_path / "one")
    sink_run(kind, photos, tmp_path / "other", workers=1)
    assert tree(tmp_path / "one") == tree(tmp_path / "other")


@pytest.mark.parametrize("kind", ["hdf5", "zarr"])
def test_merged_bytes_depend_on_the_rows_and_not_on_their_shards(tmp_path, kind):
    sink, arrays = sink_of(kind, "a"), {"a": noise("f4", (50, 20_000))}
    trees = []
    for name, lengths in (("one", [50]), ("many", [7, 0, 13, 30])):
        (tmp_path / name).mkdir()
        trees.append(tree(merged(tmp_path / name, sink, saved(tmp_path / name, sink, lengths, arrays))))
    assert trees[0] == trees[1]


@pytest.mark.parametrize("kind", ["parquet", "hdf5", "zarr"])
def test_rows_that_are_not_asked_for_are_not_read(tmp_path, kind):
    sink, array = sink_of(kind, "tap"), noise("f4", (3, 9 * 2**18))
    (part,) = saved(tmp_path, sink, [3], {"tap": array})
    file = max((path for path in part.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[data.index(array[2, 5000:5064].tobytes())] ^= 1
    file.write_bytes(data)
    rows = sink.load(part, "tap")
    assert rows[0].tobytes() == array[0].tobytes()
    assert rows[[0]].tobytes() == array[[0]].tobytes()
    with pytest.raises(layertap.StoreError):
        rows[1:]


@pytest.mark.parametrize("kind", SINKS)
def test_reading_leaves_no_file_open(photos, tmp_path, kind):
    sink_run(kind, photos, tmp_path / "out")
    descriptors = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    values(tmp_path / "out")
    gc.collect()
    before = len(os.listdir(descriptors))
    for _ in range(3):
        values(tmp_path / "out")
    gc.collect()
    assert len(os.listdir(descriptors)) <= before


@pytest.mark.parametrize("kind", SINKS)
def test_tap_may_have_the_name_of_another_column(photos, tmp_path, kind):
    taps = [{"layer": "classifier", "name": name} for name in ("id", "label", "a.b", "a_b")]
    sink_run(kind, photos, tmp_path / "out", taps=taps)
    found = values(tmp_path / "out")
    assert len({bits for _, _, bits in found.values()}) == 1
    assert found["id"][1] == (20, 10)


@pytest.mark.parametrize(
    ("kind", "package", "extra"),
    [
        ("parquet", "pyarrow", "parquet"),
        ("hdf5", "h5py", "hdf5"),
        ("zarr", "zarr", "zarr"),
        ("lance", "lance", "lance"),
    ],
)
def test_missing_package_is_reported_before_anything_is_written(photos, tmp_path, monkeypatch, kind, package, extra):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        layertap.PluginError, match=rf"needs the package .*: pip install 'layertap\[{extra}\]'"
    ) as caught:
        layertap.run(sink_config(kind, photos, tmp_path / "out"), plugins=[TINY])
    assert caught.value.code == 2
    assert not (tmp_path / "out").exists()
