"""Images in Parquet columns come row by row, whatever the row groups, and cost a few windows of memory."""

from __future__ import annotations

import datetime
import decimal
import json
import os
import random
import threading
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pydantic
import pytest

import layertap
from layertap_plugins.sources.parquet import ParquetSource
from tests.plugins.storing import refusal


def stored(path, columns, schema=None, **options):
    pq.write_table(pa.table(columns, schema=schema), path, **options)
    return path


def records(path, **params):
    return list(ParquetSource.of(path=str(path), **params).records())


def fault(path, **params):
    return refusal(lambda: records(path, **params))


def some(count, size=100, seed=0):
    draw = random.Random(seed)
    return [draw.randbytes(size) for _ in range(count)]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_bytes_may_be_bare_or_in_a_struct(tmp_path, kind):
    images = some(5)
    stored(tmp_path / "a.parquet", {"image": pa.array(images, kind)})
    packed = pa.array(
        [{"bytes": data, "path": None} for data in images], pa.struct([("bytes", kind), ("path", "string")])
    )
    stored(tmp_path / "b.parquet", {"image": packed})
    for name in ("a.parquet", "b.parquet"):
        found = records(tmp_path / name)
        assert [record.data() for record in found] == images
        assert [record.id for record in found] == [f"{name}#{number}" for number in range(5)]
        assert found[0].meta == {}


def test_folders_and_patterns_give_their_files_in_order(tmp_path):
    for number in (2, 0, 1):
        (tmp_path / f"d{number % 2}").mkdir(exist_ok=True)
        stored(tmp_path / f"d{number % 2}/p-{number}.parquet", {"image": some(2, seed=number)})
    (tmp_path / "readme.md").write_text("no table")
    assert [r.id for r in records(tmp_path)] == [f"p-{n}.parquet#{row}" for n in (0, 2, 1) for row in (0, 1)]
    assert [r.id for r in records(tmp_path / "d0/p-*.parquet")] == [
        f"p-{n}.parquet#{row}" for n in (0, 2) for row in (0, 1)
    ]


def test_other_plain_columns_are_metadata(tmp_path):
    columns = {
        "image": some(2),
        "id": [7, 8],
        "label": [1, None],
        "text": pa.array(["a", "b"]).dictionary_encode(),
        "score": pa.array([0.5, float("nan")], "float32"),
        "day": [datetime.date(2020, 1, 2), None],
        "price": [decimal.Decimal("1.50"), None],
        "boxes": [[1], [2]],
        "mask": [b"1", b"2"],
    }
    first, second = records(stored(tmp_path / "a.parquet", columns))
    day, price = "2020-01-02", "1.50"
    assert first.meta == {"id_": 7, "label": 1, "text": "a", "score": 0.5, "day": day, "price": price, "boxes": [1]}
    empty = dict.fromkeys(["label", "score", "day", "price"])
    assert second.meta == {**empty, "id_": 8, "text": "b", "boxes": [2]}
    assert [record.id for record in records(tmp_path / "a.parquet", id="id")] == ["7", "8"]


def test_labels_that_datasets_has_stored_as_numbers_come_by_their_names(tmp_path):
    features = {"label": {"_type": "ClassLabel", "names": ["cat", "dog"]}, "image": {"_type": "Image"}}
    schema = pa.schema([("image", "binary"), ("label", "int64")])
    schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path = stored(tmp_path / "a.parquet", {"image": some(4), "label": [1, 0, -1, 5]}, schema=schema)
    assert [record.meta["label"] for record in records(path)] == ["dog", "cat", None, 5]


@pytest.mark.parametrize("group", [1, 7, 50, 1000])
def test_rows_are_right_in_any_order_and_on_any_thread(tmp_path, group):
    images = some(300, 2000)
    found = records(stored(tmp_path / "a.parquet", {"image": images}, row_group_size=group))
    order = random.Random(1).sample(range(300), 60)
    assert [found[number].data() for number in order] == [images[number] for number in order]
    wrong = []

    def read(first):
        wrong.extend(number for number in range(first, 300, 4) if found[number].data() != images[number])

    threads = [threading.Thread(target=read, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_memory_is_a_few_windows_whatever_the_row_group(tmp_path):
    # 100 MiB in one group, in pages of 1 MiB. A dictionary is one page, whatever its size.
    options = {"compression": "none", "use_dictionary": False, "write_batch_size": 4}
    path = stored(tmp_path / "a.parquet", {"image": some(400, 2**18)}, **options)
    found = records(path)
    pool = pa.default_memory_pool()
    before, most = pool.bytes_allocated(), 0
    tracemalloc.start()
    for record in found:
        assert len(record.data()) == 2**18
        most = max(most, pool.bytes_allocated() - before)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 60 * 2**20
    assert peak < 10 * 2**20


def test_metadata_is_listed_without_reading_images(tmp_path):
    path = stored(tmp_path / "a.parquet", {"image": some(400, 2**16), "label": list(range(400))})
    pool = pa.default_memory_pool()
    before = pool.bytes_allocated()
    for record in ParquetSource.of(path=str(path)).records():
        assert pool.bytes_allocated() - before < 4 * 2**20, record


def test_missing_images_fail_alone(tmp_path):
    kind = pa.struct([("bytes", "binary"), ("path", "string")])
    images = pa.array([{"bytes": b"1", "path": None}, {"bytes": None, "path": "/etc/passwd"}, None], kind)
    first, *others = records(stored(tmp_path / "a.parquet", {"image": images}))
    assert first.data() == b"1"
    for record in others:
        with pytest.raises(layertap.ImageError, match="empty"):
            record.data()


def test_a_damaged_page_fails_its_images_and_no_others(tmp_path):
    path = stored(
        tmp_path / "a.parquet", {"image": some(40, 5000)}, row_group_size=10, compression="gzip", use_dictionary=False
    )
    start = pq.ParquetFile(path).metadata.row_group(2).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[start + 100 : start + 30_000] = bytes(29_900)
    path.write_bytes(data)
    failed = []
    for number, record in enumerate(records(path)):
        try:
            assert len(record.data()) == 5000
        except layertap.ImageError as error:
            failed.append((number, error.reason))
    assert failed == [(number, "corrupt") for number in range(20, 30)]


@pytest.mark.parametrize(
    ("columns", "params", "said"),
    [
        ({"picture": [b"1"]}, {"column": "pictures"}, "has no column 'pictures'; did you mean 'picture'?"),
        ({"data": [b"1"]}, {}, "has no column 'image' (it has data)"),
        ({"image": ["a.jpg"]}, {}, "for a table of paths, use the source `manifest`"),
        ({"image": [b"1"], "name": ["a"]}, {"id": "nam"}, "did you mean 'name'?"),
        ({"image": [b"1"], "name": [None]}, {"id": "name"}, "row 0 of"),
    ],
)
def test_columns_that_do_not_fit_are_reported_in_one_line(tmp_path, columns, params, said):
    assert said in fault(stored(tmp_path / "a.parquet", columns), **params)


def test_files_with_different_columns_are_reported(tmp_path):
    stored(tmp_path / "a.parquet", {"image": some(1), "label": [1]})
    stored(tmp_path / "b.parquet", {"image": some(1), "labels": [1]})
    assert "b.parquet' differ from those of" in fault(tmp_path)


@pytest.mark.parametrize("data", [b"", b"hello", b"PAR1" + bytes(100) + b"PAR1", b"PAR1\xff\xff\xff\xffPAR1"])
def test_files_other_than_parquet_are_reported_in_one_line(tmp_path, data):
    (tmp_path / "a.parquet").write_bytes(data)
    assert "as Parquet" in fault(tmp_path / "a.parquet")


def test_paths_that_lead_nowhere_are_reported(tmp_path):
    assert "No such file" in fault(tmp_path / "missing.parquet")
    assert "no file below" in fault(tmp_path)
    assert "is a URL" in fault("https://example.org/a.parquet")
    os.mkfifo(tmp_path / "pipe.parquet")
    assert "not a regular file" in fault(tmp_path / "pipe.parquet")
    with pytest.raises(pydantic.ValidationError):
        ParquetSource.of(path="a", columns=["image"])
