"""open(): every output reads the same way, finished or not, in one part or in many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import layertap
from layertap.features import Rows
from tests.test_pipeline import run

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
    from tests.conftest import TINY

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
    with pytest.raises(layertap.StoreError, match="no run of layertap writes"):
        layertap.open(tmp_path / "out")


def test_array_with_objects_is_not_unpickled(photos, tmp_path: Path):
    run(photos, tmp_path / "out")
    np.save(tmp_path / "out/classifier.npy", np.array([{"a": 1}], dtype=object))
    with pytest.raises(layertap.LayertapError):
        np.asarray(layertap.open(tmp_path / "out")["classifier"])
