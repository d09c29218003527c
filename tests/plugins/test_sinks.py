"""The sinks write the same as numpy would, whole or in parts."""

from __future__ import annotations

import os
import shutil
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import layertap
from layertap_plugins.sinks.discard import DiscardSink
from layertap_plugins.sinks.memory import MemorySink
from layertap_plugins.sinks.npy import NpySink


def shard(number, first=0, **values):
    rows = len(next(iter(values.values())))
    records = [layertap.ImageRecord(f"{first + row}.jpg", b"") for row in range(rows)]
    return layertap.Shard(number, records, values)


def npy_sink(*taps):
    sink = NpySink.of(path="features")
    sink.stems = {tap: f"stem-{tap}" for tap in taps}
    return sink


def saved(folder, sink, number=0, **values):
    folder.mkdir()
    sink.save(shard(number, **values), folder)
    return folder


def np_saved(path, array):
    np.save(path, array)
    return path.read_bytes()


DTYPES = ["f2", "f4", "f8", ">f4", "i1", "i8", "u1", "u2", "?", "c8"]


@st.composite
def partitions(draw):
    """An array of any dtype, row shape and memory order, and the number of rows in each of its parts."""
    row = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    parts = draw(st.lists(st.integers(0, 6), min_size=1, max_size=5))
    shape = (sum(parts), *row)
    values = np.random.default_rng(draw(st.integers(0, 9))).integers(0, 128, shape)
    array = values.astype(draw(st.sampled_from(DTYPES)), order=draw(st.sampled_from("CF")))
    return array, parts


@given(partitions())
@settings(max_examples=200, deadline=None)
def test_npy_parts_merge_to_the_bytes_of_np_save(tmp_path_factory, case):
    array, parts = case
    root = tmp_path_factory.mktemp("npy")
    try:
        sink, start, folders = npy_sink("tap"), 0, []
        for number, rows in enumerate(parts):
            folders.append(saved(root / str(number), sink, number, tap=array[start : start + rows]))
            start += rows
        merged = root / "merged"
        merged.mkdir()
        sink.merge(folders, merged)
        expected = np_saved(root / "expected.npy", np.ascontiguousarray(array))
        assert [path.name for path in merged.iterdir()] == ["stem-tap.npy"]
        assert (merged / "stem-tap.npy").read_bytes() == expected
        loaded = sink.load(merged, "tap")
        assert (loaded.dtype, loaded.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(loaded, array)
    finally:
        shutil.rmtree(root)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24.0).reshape(2, 3, 4),
        np.asfortranarray(np.arange(24.0).reshape(2, 3, 4)),
        np.arange(48.0).reshape(2, 3, 8)[:, :, ::2],
        np.arange(24.0).reshape(4, 3, 2).T,
        np.broadcast_to(np.float32(1), (3, 5)),
        np.zeros((0, 4096), np.float32),
        np.zeros((3, 0), np.float32),
        np.arange(3, dtype=np.int64),
    ],
    ids=["C", "Fortran", "strided", "transposed", "broadcast", "no rows", "empty rows", "scalars"],
)
def test_npy_is_c_ordered_whatever_came(tmp_path, array):
    sink = npy_sink("tap")
    folder = saved(tmp_path / "part", sink, tap=array)
    assert (folder / "stem-tap.npy").read_bytes() == np_saved(tmp_path / "expected.npy", np.array(array, order="C"))
    np.testing.assert_array_equal(sink.load(folder, "tap"), array)


def test_npy_stores_bfloat16_as_its_bits(tmp_path):
    array = np.arange(12, dtype=np.float32).reshape(3, 4).astype(ml_dtypes.bfloat16)
    sink = npy_sink("tap")
    parts = [
        saved(tmp_path / "0", sink, tap=np.asfortranarray(array[:2])),
        saved(tmp_path / "1", sink, tap=array[2:]),
        saved(tmp_path / "2", sink, tap=array[:0]),
    ]
    (tmp_path / "merged").mkdir()
    sink.merge(parts, tmp_path / "merged")
    loaded = sink.load(tmp_path / "merged", "tap")
    assert loaded.dtype == np.uint16
    assert np.array_equal(loaded.view(ml_dtypes.bfloat16), array)
    assert np.array_equal(np.load(tmp_path / "merged" / "stem-tap.npy"), loaded)


def test_npy_writes_one_file_a_tap_and_maps_it_read_only(tmp_path):
    sink = npy_sink("a", "b")
    values = {"a": np.arange(6.0).reshape(2, 3), "b": np.arange(2, dtype=np.int32)}
    folder = saved(tmp_path / "part", sink, **values)
    assert sorted(path.name for path in folder.iterdir()) == ["stem-a.npy", "stem-b.npy"]
    loaded = sink.load(folder, "a")
    assert type(loaded) is np.ndarray
    assert not loaded.flags.writeable
    (tmp_path / "merged").mkdir()
    sink.merge([folder], tmp_path / "merged")
    for name in ("stem-a.npy", "stem-b.npy"):
        assert (tmp_path / "merged" / name).read_bytes() == (folder / name).read_bytes()


def test_npy_never_stores_or_loads_objects(tmp_path):
    np.save(tmp_path / "stem-tap.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"(?i)object"):
        npy_sink("tap").load(tmp_path, "tap")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a disk that is always full")
def test_npy_on_a_full_disk_is_an_error(tmp_path):
    sink = npy_sink("tap")
    part = saved(tmp_path / "part", sink, tap=np.zeros((64, 64)))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "stem-tap.npy").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        sink.save(shard(0, tap=np.zeros((64, 64))), tmp_path / "full")
    with pytest.raises(OSError, match="No space left"):
        sink.merge([part], tmp_path / "full")


@pytest.mark.parametrize("other", [np.zeros((2, 4), "f4"), np.zeros((2, 3), "f8")])
def test_npy_refuses_to_merge_parts_that_differ(tmp_path, other):
    sink = npy_sink("tap")
    parts = [saved(tmp_path / "0", sink, tap=np.zeros((2, 3), "f4")), saved(tmp_path / "1", sink, tap=other)]
    (tmp_path / "merged").mkdir()
    with pytest.raises(layertap.StoreError, match="differ in shape or dtype"):
        sink.merge(parts, tmp_path / "merged")


@pytest.mark.parametrize("change", [-1, 1])
def test_npy_refuses_to_merge_a_part_of_another_length(tmp_path, change):
    sink = npy_sink("tap")
    part = saved(tmp_path / "0", sink, tap=np.zeros((2, 3), "f4"))
    data = (part / "stem-tap.npy").read_bytes()
    (part / "stem-tap.npy").write_bytes(data[:change] if change < 0 else data + bytes(change))
    (tmp_path / "merged").mkdir()
    with pytest.raises(layertap.StoreError, match="does not hold the 2 rows"):
        sink.merge([part], tmp_path / "merged")


def test_npy_merges_in_little_memory(tmp_path):
    sink = npy_sink("tap")
    parts = [saved(tmp_path / str(i), sink, tap=np.full((64, 2**17), i, np.float32)) for i in range(3)]
    (tmp_path / "merged").mkdir()
    tracemalloc.start()
    try:
        sink.merge(parts, tmp_path / "merged")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 * 2**20
    assert sink.load(tmp_path / "merged", "tap")[::64, 0].tolist() == [0, 1, 2]


def test_memory_gives_back_all_shards_in_order():
    sink = MemorySink.of()
    sink.write(shard(1, first=2, a=np.full((1, 3), 1.0), b=np.ones(1, ml_dtypes.bfloat16)))
    sink.write(shard(0, first=0, a=np.full((2, 3), 7.0), b=np.zeros(2, ml_dtypes.bfloat16)))
    sink.write(shard(0, first=0, a=np.full((2, 3), 0.0), b=np.zeros(2, ml_dtypes.bfloat16)))
    ids, values = sink.result()
    assert ids == ["0.jpg", "1.jpg", "2.jpg"]
    assert values["a"].tolist() == [[0.0] * 3, [0.0] * 3, [1.0] * 3]
    assert values["b"].dtype == ml_dtypes.bfloat16
    assert list(values) == ["a", "b"]


def test_memory_of_nothing_is_empty():
    assert MemorySink.of().result() == ([], {})
    sink = MemorySink.of()
    sink.write(shard(0, a=np.zeros((0, 3))))
    assert sink.result()[1]["a"].shape == (0, 3)


def test_two_memory_sinks_share_nothing():
    one, other = MemorySink.of(), MemorySink.of()
    one.write(shard(0, a=np.zeros((1, 3))))
    assert other.result() == ([], {})


def test_discard_keeps_nothing():
    sink = DiscardSink.of()
    sink.write(shard(0, a=np.zeros((1, 3))))
    assert sink.result() is None
    assert vars(sink) == {"params": sink.params}
