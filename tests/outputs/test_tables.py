"""Rows and metadata as other libraries hold them: pandas, Arrow, torch."""

from __future__ import annotations

import pickle
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.utils.data import DataLoader

import layertap
from tests.outputs.test_export import OWN, extracted, opened

KINDS = {
    "row": ("Int64", pa.int64()),
    "id": ("string", pa.string()),
    "count": ("Int64", pa.int64()),
    "share": ("Float64", pa.float64()),
    "even": ("boolean", pa.bool_()),
    "text": ("string", pa.string()),
    "mixed": ("string", pa.string()),
    "large": ("string", pa.string()),
    "none": ("object", pa.null()),
    "label": ("string", pa.string()),
}
TAPS = {
    "features.0": pa.fixed_shape_tensor(pa.float32(), (8, 14, 14)),
    "text_": pa.list_(pa.float32(), 10),
    "maps": pa.fixed_shape_tensor(pa.float16(), (8, 5, 5)),
}


@pytest.fixture(scope="module")
def features(tmp_path_factory) -> Any:
    out = tmp_path_factory.mktemp("tables") / "out"
    extracted(out)
    return opened(out)


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory) -> Any:
    """The same output with two of its shards, whose metadata stands in commits and not in an index."""
    out = tmp_path_factory.mktemp("tables") / "out"
    with pytest.raises(layertap.LayertapError):
        extracted(out, observers=[{"type": "stop", "after": 14}])
    found = opened(out)
    assert not found.is_complete
    return found


@pytest.fixture(params=["features", "unfinished"])
def either(request) -> Any:
    return request.getfixturevalue(request.param)


def wanted(features: Any, column: str) -> list[Any]:
    """A column's values: text where there are several types, or more than 64 bits."""
    values = [row[column] for row in features.index]
    if column in ("mixed", "large"):
        return [None if value is None else str(value) for value in values]
    return values


def test_pandas_has_typed_metadata_and_arrays(either):
    import pandas

    frame = either.to_pandas()
    assert list(frame) == [*KINDS, *TAPS]
    assert frame["row"].dtype == "int64"
    for column, (kind, _) in KINDS.items():
        assert column == "row" or str(frame[column].dtype) == kind
        assert [None if pandas.isna(value) else value for value in frame[column]] == wanted(either, column)
    for tap, column in zip(either.taps, TAPS, strict=True):
        cells = list(frame[column])
        assert {cell.dtype for cell in cells} == {either[tap].dtype}
        assert np.stack(cells).tobytes() == either[tap][:].tobytes()


def test_arrow_has_typed_metadata_and_tensors(either):
    table = either.to_arrow()
    assert table.column_names == [*KINDS, *TAPS]
    for column, (_, kind) in KINDS.items():
        assert table.schema.field(column).type == kind
        assert table[column].to_pylist() == wanted(either, column)
    for tap, column in zip(either.taps, TAPS, strict=True):
        assert table.schema.field(column).type == TAPS[column]
        found = [np.asarray(value).reshape(either[tap].shape[1:]) for value in table[column].to_numpy()]
        plain = np.float32 if tap == "text" else either[tap].dtype
        assert np.array_equal(np.stack(found), either[tap][:].astype(plain))


def test_taps_can_be_chosen(features):
    assert list(features.to_pandas("maps"))[-2:] == ["label", "maps"]
    assert features.to_arrow([]).column_names == list(KINDS)
    with pytest.raises(layertap.StoreError, match="did you mean 'maps'"):
        features.to_arrow("map")


def test_single_numbers_are_columns_of_numbers(tmp_path):
    plugin = tmp_path / "first.py"
    plugin.write_text(
        "import layertap\n"
        "class First(layertap.Reducer):\n"
        "    def __call__(self, activation): return activation[:, 0]\n"
        "@layertap.hookimpl\n"
        "def register_reducers(register): register('first', First)\n"
    )
    taps = [
        {"layer": "classifier", "name": "one", "reduce": "first"},
        {"layer": "classifier", "name": "bf16", "reduce": "first", "dtype": "bfloat16"},
    ]
    config = {"model": "tiny", "taps": taps, "source": "typed", "device": "cpu", "batch_size": 4, "observers": []}
    layertap.run({**config, "sink": {"type": "npy", "path": str(tmp_path / "out")}}, plugins=[*OWN, str(plugin)])
    features = opened(tmp_path / "out")
    values = features["one"][:]
    assert values.shape == (18,)
    frame, table = features.to_pandas(), features.to_arrow()
    assert (frame["one"].dtype, table.schema.field("one").type) == (np.float32, pa.float32())
    assert np.array_equal(frame["one"], values)
    assert np.array_equal(table["one"].to_numpy(), values)
    assert [float(value) for value in frame["bf16"]] == table["bf16"].to_pylist()
    assert features.to_torch("bf16")[3] == torch.tensor(values[3]).bfloat16()


def test_tables_without_a_row_have_their_columns(tmp_path):
    extracted(tmp_path / "out", source={"type": "typed", "count": 6, "bad": True})
    features = opened(tmp_path / "out")
    assert features.to_pandas().shape == (0, 5)
    table = features.to_arrow()
    assert table.num_rows == 0
    assert [table.schema.field(tap).type for tap in features.taps] == list(TAPS.values())
    assert len(features.to_torch("maps")) == 0


@pytest.mark.parametrize(
    ("door", "package", "extra"), [("to_pandas", "pandas", "pandas"), ("to_arrow", "pyarrow", "parquet")]
)
def test_missing_package_is_named_with_its_extra(features, monkeypatch, door, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(layertap.ConfigError, match=rf"{package}.*pip install 'layertap\[{extra}\]'"):
        getattr(features, door)()


@pytest.mark.parametrize("tap", ["features.0", "text", "maps"])
def test_torch_dataset_gives_the_same_bits(either, tap):
    dataset = either.to_torch(tap)
    assert len(dataset) == len(either.ids)
    dtype = {"text": torch.bfloat16, "maps": torch.float16}.get(tap, torch.float32)
    for index in (0, 5, -1):
        assert dataset[index].dtype == dtype
        assert dataset[index].view(torch.uint8).numpy().tobytes() == either[tap][index].tobytes()
    with pytest.raises(IndexError):
        dataset[len(dataset)]
    assert dataset.classes is dataset.labels is None


@pytest.mark.parametrize("workers", [0, 2])
def test_torch_dataset_of_several_taps_has_a_dict_per_item(either, workers):
    dataset = either.to_torch(["maps", "features.0"], label="label")
    values, label = dataset[3]
    assert list(values) == ["maps", "features.0"]
    assert torch.equal(values["maps"], either.to_torch("maps")[3])
    assert label == dataset.labels[3]
    batches = list(DataLoader(dataset, batch_size=5, num_workers=workers))
    for name in values:
        joined = torch.cat([batch[name] for batch, _ in batches])
        assert joined.numpy().tobytes() == either[name][:].tobytes()
    (alone,) = either.to_torch(["maps"])[0].items()
    assert alone[0] == "maps"


def test_torch_dataset_of_no_tap_or_an_unknown_one_is_refused(features):
    with pytest.raises(layertap.StoreError, match="to_torch needs at least one tap"):
        features.to_torch([])
    with pytest.raises(layertap.StoreError, match="no tap is named 'map'; did you mean 'maps'"):
        features.to_torch(["text", "map"])


def test_column_of_a_frame_stacks_to_the_array(features):
    frame = features.to_pandas("maps")
    assert np.array_equal(np.stack(frame["maps"]), features["maps"][:])


def test_text_labels_become_codes_of_sorted_classes(features):
    dataset = features.to_torch("text", label="label")
    assert dataset.classes == ["cat", "dog", "owl"]
    assert [dataset.classes[dataset[at][1]] for at in range(len(dataset))] == [row["label"] for row in features.index]


def test_numbers_are_labels_as_they_are(features):
    dataset = features.to_torch("text", label="even")
    assert dataset.classes is None
    assert [dataset[at][1] for at in range(len(dataset))] == [row["even"] for row in features.index]


def test_label_that_is_missing_is_told(features):
    with pytest.raises(layertap.StoreError, match="1 rows have no 'count', such as that of 'ä/002'"):
        features.to_torch("text", label="count")
    with pytest.raises(layertap.StoreError, match=r"no metadata is named 'labl'; did you mean 'label'"):
        features.to_torch("text", label="labl")


@pytest.mark.parametrize("workers", [0, 2])
def test_data_loader_reads_batches_in_order(features, workers):
    dataset = features.to_torch("maps", label="label")
    assert torch.equal(dataset[0][0], torch.from_numpy(features["maps"][0].copy()))
    loaded = list(DataLoader(dataset, batch_size=4, num_workers=workers))
    assert torch.cat([values for values, _ in loaded]).numpy().tobytes() == features["maps"][:].tobytes()
    assert torch.cat([labels for _, labels in loaded]).tolist() == dataset.labels


def test_dataset_and_features_can_be_pickled(features):
    dataset = features.to_torch("text", label="label")
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again[7][0], dataset[7][0])
    assert (again.classes, again.labels, len(again)) == (dataset.classes, dataset.labels, len(dataset))
    assert len(pickle.dumps(dataset)) < 2_000
    assert np.array_equal(pickle.loads(pickle.dumps(features))["maps"][:], features["maps"][:])
