"""open(): every output reads the same way, finished or not, in one part or in many."""

from __future__ import annotations

import gc
import os
import shutil
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import layertap
from layertap.outputs.rows import Rows
from tests.conftest import TINY
from tests.outputs.test_export import extracted, opened
from tests.pipeline.test_pipeline import run

LENGTHS = st.lists(st.integers(0, 5), min_size=1, max_size=4)


@settings(max_examples=200, deadline=None)
@given(lengths=LENGTHS, data=st.data())
def test_rows_in_parts_read_as_one_array(lengths, data):
    whole = np.arange(sum(lengths) * 6, dtype=np.float32).reshape(-1, 2, 3)
    cuts = np.cumsum(lengths)[:-1]
    rows = Rows(np.split(whole, cuts), (2, 3), whole.dtype)
    assert rows.shape == whole.shape
    assert np.array_equal(np.asarray(rows), whole)
    count = len(whole)
    index = st.integers(-count, count - 1) if count else st.nothing()
    keys: list[Any] = [
        data.draw(st.slices(count)),
        np.asarray(data.draw(st.lists(index, max_size=6)) if count else [], dtype=np.int64),
        np.asarray(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)), dtype=bool),
        (data.draw(st.slices(count)), 1),
        (Ellipsis, 0),
    ]
    keys += [data.draw(index), (data.draw(index), 1, 2)] if count else []
    for key in keys:
        assert np.array_equal(rows[key], whole[key]), key
    size = data.draw(st.integers(1, count + 1))
    chunks = list(rows.chunks(size))
    assert all(0 < len(chunk) <= size for chunk in chunks)
    assert np.array_equal(np.concatenate([*chunks, whole[:0]]), whole)


@pytest.mark.parametrize("key", [5, -6, [0, 9], np.ones(3, dtype=bool)])
def test_rows_out_of_range_raise_index_error(key):
    rows = Rows([np.zeros((2, 4)), np.zeros((3, 4))], (4,), np.dtype(np.float64))
    with pytest.raises(IndexError):
        rows[key]


def test_output_reads_back_with_its_metadata(photos, tmp_path):
    run(photos, tmp_path / "out")
    features = layertap.open(tmp_path / "out")
    assert features.is_complete
    assert features.taps == ["features.0", "classifier"]
    assert features.index[1] == {"row": 1, "id": "cats/03.jpg", "label": "cats"}
    assert features.failures == []
    assert features.manifest["counts"]["kept"] == 20
    assert features["features.0"].shape == (20, 8, 14, 14)
    assert np.array_equal(features["classifier"][[3, 1]], np.load(tmp_path / "out/classifier.npy")[[3, 1]])
    assert isinstance(features["classifier"][0], np.ndarray)


def test_metadata_keeps_its_types(tmp_path, photos):
    plugin = tmp_path / "typed.py"
    plugin.write_text(
        "import layertap\n"
        "from PIL import Image\n"
        "class Typed(layertap.Source):\n"
        "    def records(self):\n"
        "        for i in range(3):\n"
        "            meta = {'n': i, 'share': i / 4, 'even': i % 2 == 0, 'text': f'{i}, \"q\"\\n', 'none': None}\n"
        "            yield layertap.ImageRecord(f'id {i}', Image.new('RGB', (8, 8), (i, 0, 0)), meta)\n"
        "@layertap.hookimpl\n"
        "def register_sources(register): register('typed', Typed)\n"
    )
    layertap.run(
        {
            "model": "tiny",
            "taps": "classifier",
            "source": "typed",
            "sink": {"type": "npy", "path": str(tmp_path / "out")},
            "observers": [],
        },
        plugins=[TINY, str(plugin)],
    )
    row = layertap.open(tmp_path / "out").index[2]
    assert row == {"row": 2, "id": "id 2", "n": 2, "share": 0.5, "even": True, "text": '2, "q"\n', "none": None}


def test_unknown_tap_names_the_nearest(photos, tmp_path):
    run(photos, tmp_path / "out")
    with pytest.raises(layertap.StoreError, match="did you mean 'classifier'"):
        layertap.open(tmp_path / "out")["clasifier"]


def test_folder_without_an_output_is_told(tmp_path):
    with pytest.raises(layertap.StoreError, match="no layertap output"):
        layertap.open(tmp_path)


@pytest.mark.parametrize("stem", ["../secret", "/etc/passwd", "a/b", ""])
def test_manifest_cannot_lead_out_of_its_folder(photos, tmp_path, stem):
    run(photos, tmp_path / "out")
    manifest = tmp_path / "out/manifest.json"
    manifest.write_text(manifest.read_text().replace('"file": "classifier"', f'"file": "{stem}"'))
    with pytest.raises(layertap.StoreError, match="not a name that a run of layertap writes"):
        layertap.open(tmp_path / "out")


def test_array_with_objects_is_not_unpickled(photos, tmp_path: Path):
    run(photos, tmp_path / "out")
    np.save(tmp_path / "out/classifier.npy", np.array([{"a": 1}], dtype=object))
    with pytest.raises(layertap.LayertapError):
        np.asarray(layertap.open(tmp_path / "out")["classifier"])


class Made:
    """Rows that are made when they are read: more of them than there is memory for."""

    shape = (2_000_000, 64)
    dtype = np.dtype(np.float32)

    def __getitem__(self, key):
        return np.ones((len(range(self.shape[0])[key]), 64), np.float32)

    def __array__(self):
        return self[:]


@pytest.mark.parametrize(("rows", "most"), [(10_000, 10_000 * 256), (None, 16_000_000)])
def test_chunks_are_of_bounded_size(rows, most):
    whole = Rows([Made(), Made()], (64,), Made.dtype)
    seen = 0
    tracemalloc.start()
    for chunk in whole.chunks(rows):
        assert chunk.nbytes <= most
        seen += len(chunk)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == 4_000_000
    assert peak < 3.1 * most


def test_chunk_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one row, not 0"):
        Rows([Made()], (64,), Made.dtype).chunks(0)


@pytest.fixture
def parts(tmp_path):
    """An output in ten parts, by a sink that says how many of them are in memory."""
    extracted(tmp_path / "out", sink={"type": "parts", "path": str(tmp_path / "out")}, shard_rows=2)
    return tmp_path / "out"


def alive() -> int:
    gc.collect()
    return len(next(m for n, m in sys.modules.items() if n.endswith("_typed")).Kept.alive)


def test_few_parts_are_open_at_once_and_none_after_close(parts):
    with opened(parts) as features:
        rows = features["maps"]
        assert alive() == 0
        whole = np.asarray(rows)
        assert np.array_equal(rows[::-1], whole[::-1])
        assert [len(chunk) for chunk in features["features.0"].chunks(5)] == [5, 5, 5, 3]
        assert 0 < alive() <= 4
    assert alive() == 0
    assert np.array_equal(rows[3], whole[3])


def test_part_with_other_rows_than_its_record_is_told(parts):
    file = parts / "parts/00001/rows/maps.npy"
    np.save(file, np.load(file)[:1])
    with pytest.raises(layertap.StoreError, match="a part holds 1 rows, and its record says 2"):
        opened(parts)["maps"][:]


def test_rows_of_another_dtype_are_told(photos, tmp_path):
    run(photos, tmp_path / "out")
    np.save(tmp_path / "out/classifier.npy", np.zeros((20, 10), np.float64))
    with pytest.raises(layertap.StoreError, match="rows of float32 are stored as float64"):
        layertap.open(tmp_path / "out")["classifier"][0]


@pytest.mark.parametrize("place", ["parts/00001/rows/maps.npy", "parts/00001/rows/extra", "parts/00001/rows", "parts"])
def test_no_link_is_followed_whether_the_manifest_names_it_or_not(parts, tmp_path, place):
    there = parts / place
    if there.exists():
        shutil.move(there, tmp_path / "elsewhere")
    else:
        (tmp_path / "elsewhere").write_bytes(b"")
    os.symlink(tmp_path / "elsewhere", there)
    with pytest.raises(layertap.StoreError, match="is a link"):
        opened(parts)["maps"]


def test_links_beside_the_files_are_the_users_own(photos, tmp_path):
    run(photos, tmp_path / "out")
    os.symlink(tmp_path, tmp_path / "out/mine")
    assert len(layertap.open(tmp_path / "out")["classifier"]) == 20


def test_metadata_columns_have_types(parts):
    assert opened(parts).meta == {
        "count": "int",
        "share": "float",
        "even": "bool",
        "text": "str",
        "mixed": "str",
        "large": "int",
        "none": "null",
        "label": "str",
    }


def test_metadata_may_be_long(tmp_path):
    plugin = tmp_path / "long.py"
    plugin.write_text(
        "import layertap\n"
        "from PIL import Image\n"
        "class Long(layertap.Source):\n"
        "    def records(self):\n"
        "        yield layertap.ImageRecord('a', Image.new('RGB', (8, 8)), {'text': 'word ' * 40_000})\n"
        "@layertap.hookimpl\n"
        "def register_sources(register): register('long', Long)\n"
    )
    sink = {"type": "npy", "path": str(tmp_path / "out")}
    config = {"model": "tiny", "taps": "classifier", "source": "long", "sink": sink, "observers": []}
    layertap.run(config, plugins=[TINY, str(plugin)])
    assert layertap.open(tmp_path / "out").index[0]["text"] == "word " * 40_000
