"""Common libraries read the files of the sinks, without layertap."""

from __future__ import annotations

import json

import numpy as np
import pytest

import layertap
from tests.pipeline.test_pipeline import run
from tests.plugins.sinking import TAPS, sink_run
from tests.plugins.test_sinks_files import merged, saved, sink_of

FLAT = [tap["name"] for tap in TAPS]


@pytest.fixture(scope="module")
def plain(photos, tmp_path_factory):
    """The same rows as written by the npy sink."""
    out = tmp_path_factory.mktemp("plain") / "out"
    run(photos, out, taps=TAPS)
    return layertap.open(out)


def written(kind, photos, tmp_path_factory):
    out = tmp_path_factory.mktemp(kind) / "out"
    sink_run(kind, photos, out)
    return out


@pytest.fixture(scope="module")
def parquet(photos, tmp_path_factory):
    return written("parquet", photos, tmp_path_factory)


def bits(plain, tap):
    """The rows of a tap, flat, and bfloat16 as uint16."""
    values = plain[tap][:].reshape(20, -1)
    return values.view(np.uint16) if values.dtype.name == "bfloat16" else values


@pytest.mark.parametrize("tap", FLAT)
def test_pandas_reads_the_folder_of_parquet_files(parquet, plain, tap):
    import pandas as pd

    frame = pd.read_parquet(str(parquet) + "/rows")
    assert frame["id"].tolist() == plain.ids
    assert frame["label"].tolist() == [row["label"] for row in plain.index]
    values = np.stack(frame[tap].to_list())
    assert values.dtype == bits(plain, tap).dtype
    assert values.tobytes() == bits(plain, tap).tobytes()


@pytest.mark.parametrize("tap", FLAT)
def test_polars_scans_the_folder_of_parquet_files(parquet, plain, tap):
    import polars as pl

    frame = pl.scan_parquet(parquet / "rows").select("id", "label", tap).collect()
    assert frame["id"].to_list() == plain.ids
    values = frame[tap].to_numpy()
    assert values.dtype == bits(plain, tap).dtype
    assert values.tobytes() == bits(plain, tap).tobytes()


@pytest.mark.parametrize("tap", FLAT)
def test_duckdb_queries_the_folder_of_parquet_files(parquet, plain, tap):
    import duckdb

    with duckdb.connect() as connection:
        rows = connection.execute(
            f"""select id, "{tap}" from read_parquet('{parquet}/rows/*.parquet') where label = 'cats' order by id"""
        ).fetchall()
    wanted = [row["row"] for row in plain.index if row["label"] == "cats"]
    assert [row[0] for row in rows] == [plain.ids[row] for row in wanted]
    assert np.array_equal(np.array([row[1] for row in rows]), bits(plain, tap)[wanted])


def test_parquet_keeps_the_shape_of_a_map_in_its_field(parquet):
    import pyarrow.parquet as pq

    schema = pq.read_schema(parquet / "rows/part-00000.parquet")
    about = schema.field("features.0/bfloat16").metadata
    assert json.loads(about[b"layertap.shape"]) == [8, 14, 14]
    assert about[b"layertap.dtype"] == b"bfloat16"
    assert str(schema.field("features.0/bfloat16").type) == "fixed_size_list<element: uint16 not null>[1568]"
    assert [path.name for path in sorted((parquet / "rows").iterdir())] == [f"part-{n:05d}.parquet" for n in range(5)]


def metadata(row):
    """Columns that hold one type, several, none, or too much, and not in every shard."""
    return {
        "n": row,
        "late": None if row < 4 else row / 2,
        "mixed": row if row < 4 else f"text {row}",
        "huge": 10**30 if row == 5 else row,
        "even": row % 2 == 0,
        "nothing": None,
    }


@pytest.mark.parametrize("kind", ["parquet", "lance"])
def test_metadata_of_several_types_become_one_column(tmp_path, kind):
    sink = sink_of(kind, "tap")
    array = np.arange(16, dtype=np.float32).reshape(8, 2)
    whole = merged(tmp_path, sink, saved(tmp_path, sink, [0, 4, 4], {"tap": array}, metadata))
    if kind == "parquet":
        import pandas as pd
        import polars as pl

        frame = pd.read_parquet(whole / "rows")
        assert pl.read_parquet(whole / "rows").shape == frame.shape
    else:
        import lance

        frame = lance.dataset(str(whole / "table.lance")).to_table().to_pandas()
    rows = frame.astype(object).where(frame.notna(), None).to_dict("list")
    assert rows["n"] == list(range(8))
    assert rows["late"] == [None] * 4 + [2.0, 2.5, 3.0, 3.5]
    assert rows["mixed"] == ["0", "1", "2", "3", "text 4", "text 5", "text 6", "text 7"]
    assert rows["huge"] == ["0", "1", "2", "3", "4", str(10**30), "6", "7"]
    assert rows["even"] == [True, False] * 4
    assert rows["nothing"] == [None] * 8
    assert np.array_equal(sink.load(whole, "tap")[:], array)


def test_h5py_reads_the_file(photos, plain, tmp_path_factory):
    import h5py

    out = written("hdf5", photos, tmp_path_factory)
    with h5py.File(out / "features.h5") as file:
        assert file["id"].asstr()[:].tolist() == plain.ids
        for tap in plain.taps:
            dataset = file[plain.manifest["taps"][tap]["file"]]
            assert (dataset.attrs["tap"].decode(), dataset.shape) == (tap, plain[tap].shape)
            assert dataset.chunks[1:] == dataset.shape[1:]
            assert dataset[:].reshape(20, -1).tobytes() == bits(plain, tap).tobytes()


def test_zarr_reads_the_group(photos, plain, tmp_path_factory):
    import zarr

    out = written("zarr", photos, tmp_path_factory)
    group = zarr.open_group(out / "features.zarr", mode="r", zarr_format=3)
    assert group["id"][:].tolist() == plain.ids
    for tap in plain.taps:
        array = group[plain.manifest["taps"][tap]["file"]]
        assert array.attrs["tap"] == tap
        assert array.shards is not None
        assert array[:].reshape(20, -1).tobytes() == bits(plain, tap).tobytes()


def test_safetensors_reads_the_files_with_bfloat16_as_it_is(photos, plain, tmp_path_factory):
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file

    out = written("safetensors", photos, tmp_path_factory)
    files = sorted((out / "rows").iterdir())
    tensors = [load_file(file) for file in files]
    for tap, dtype in (("features.0/bfloat16", torch.bfloat16), ("classifier/float16", torch.float16)):
        whole = torch.cat([part[tap] for part in tensors])
        assert whole.dtype == dtype
        assert whole.view(torch.uint8).numpy().tobytes() == plain[tap][:].tobytes()
    with safe_open(files[1], framework="numpy") as file:
        about = json.loads(file.metadata()["layertap"])
    assert about == {"ids": plain.ids[4:8], "meta": {"label": ["cats"] * 4}}


@pytest.mark.parametrize("tap", ["classifier_float32", "classifier_float16"])
def test_lancedb_opens_the_table_and_finds_an_image_by_its_own_vector(photos, plain, tmp_path_factory, tap):
    import lancedb

    out = written("lance", photos, tmp_path_factory)
    table = lancedb.connect(out).open_table("table")
    assert table.to_arrow()["id"].to_pylist() == plain.ids
    vectors = plain[tap.replace("_", "/")][:]
    for row in (0, 7, 19):
        (found,) = table.search(vectors[row], vector_column_name=tap).limit(1).to_list()
        assert (found["id"], found["label"]) == (plain.ids[row], plain.index[row]["label"])
        nearest = np.linalg.norm(vectors.astype(np.float64) - vectors[row].astype(np.float64), axis=1).argsort()[:3]
        several = table.search(vectors[row], vector_column_name=tap).where("label = 'cats'").limit(20).to_list()
        assert {image["label"] for image in several} == {"cats"}
        assert plain.ids[nearest[0]] == found["id"]
