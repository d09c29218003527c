"""Ids and metadata of every kind, from a stranger's source through every sink, export and reader."""

from __future__ import annotations

import datetime
import decimal
import enum
import io
from collections.abc import Collection
from functools import partial
from typing import Any, ClassVar

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import layertap
from layertap.images.plan import Plan
from tests.conftest import TINY

SINKS = ["npy", "parquet", "hdf5", "zarr", "lance", "safetensors"]
IDS = ["x\rgood.jpg", "good.jpg", "a\0b", 'say "z", twice', "two\nlines", " ", "\u2028", "\x85\x1b[31m", "日本", "é%FF"]
TEXTS = st.text(min_size=1) | st.text(st.sampled_from('\r\n\0,"\x85\u2028 a%\\'), min_size=1, max_size=5)


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 20), (number * 9 % 256, 3, 7)).save(file, "PNG")
    return file.getvalue()


class Given(layertap.Source):
    """The records of a test; the images with the ids in `bad` fail."""

    rows: ClassVar[list[tuple[str, dict[str, Any]]]] = []
    bad: ClassVar[Collection[str]] = ()

    def records(self) -> Any:
        # As a plugin, this file is a module of its own.
        from tests.outputs.test_metadata import Given

        for number, (name, meta) in enumerate(Given.rows):
            yield layertap.ImageRecord(name, (lambda: b"") if name in Given.bad else partial(png, number), meta)


@layertap.hookimpl
def register_sources(register: Any) -> None:
    register("given", Given)


OWN = [TINY, __file__]


def extracted(sink, out, rows, bad=(), **changes):
    Given.rows, Given.bad = rows, bad
    config = {
        "model": "tiny",
        "taps": ["classifier"],
        "source": "given",
        "sink": {"type": sink, "path": str(out)} if sink != "memory" else "memory",
        "batch_size": 2,
        "shard_rows": 4,
        "device": "cpu",
        "observers": [],
        **changes,
    }
    return layertap.run(config, plugins=OWN)


def metas():
    """Ten rows of every type, in an order in which the types of the first shard are not those of the second."""
    for number, name in enumerate(IDS):
        late = number >= 4
        yield (
            name,
            {
                "list": [number, [name]] if late else [],
                "numbers": [number, 0.5] if late else [],
                "dict": {"key": number, "\r": None} if number % 2 else {},
                "either": [1] if number == 7 else name,
                "text": ["", None, "\r", "\0", "NA", '""', " ", "\n", ",", "1"][number],
            },
        )


@pytest.mark.parametrize("sink", SINKS)
def test_every_sink_gives_ids_and_metadata_back(sink, tmp_path):
    rows = list(metas())
    report = extracted(sink, tmp_path / "out", rows, bad=["x\rgood.jpg"])
    assert (report.kept, report.failed) == (9, 1)
    with layertap.open(tmp_path / "out", plugins=OWN) as found:
        assert found.failures == [{"id": "x\rgood.jpg", "stage": "read", "reason": "empty"}]
        assert found.ids == IDS[1:]
        assert [{key: row[key] for key in rows[0][1]} for row in found.index] == [meta for _, meta in rows[1:]]
        assert found.meta == {"list": "json", "numbers": "json", "dict": "json", "either": "json", "text": "str"}
        frame, table = found.to_pandas(), found.to_arrow()
        assert list(frame["id"]) == table["id"].to_pylist() == IDS[1:]
        assert list(frame["list"]) == [meta["list"] for _, meta in rows[1:]]
        assert table["numbers"].to_pylist() == [meta["numbers"] for _, meta in rows[1:]]
        for other in SINKS:
            found.export(other, tmp_path / other)
            with layertap.open(tmp_path / other, plugins=OWN) as again:
                assert again.index == found.index
                assert again.failures == found.failures
        found.export("clip_retrieval", tmp_path / "clip")
        with pytest.raises(layertap.ConfigError, match="line break") as refused:
            found.export("thingsvision", tmp_path / "thingsvision")
        assert str(refused.value).isprintable()
    exported = pq.read_table(tmp_path / "clip/metadata/metadata_0.parquet")
    assert exported["image_path"].to_pylist() == IDS[1:]
    assert exported["numbers"].to_pylist()[-1] == "[9, 0.5]"


@pytest.mark.parametrize("sink", ["parquet", "lance"])
def test_tables_hold_real_lists(sink, tmp_path):
    rows = list(metas())
    extracted(sink, tmp_path / "out", rows)
    if sink == "parquet":
        table = pq.read_table(tmp_path / "out/rows")
    else:
        import lance

        table = lance.dataset(str(tmp_path / "out/table.lance")).to_table()
    assert table["id"].to_pylist() == IDS
    assert table["numbers"].to_pylist() == [meta["numbers"] for _, meta in rows]
    assert table["either"].to_pylist()[6:8] == ['"\u2028"', "[1]"]


@given(st.lists(TEXTS, min_size=1, max_size=6, unique=True), st.lists(TEXTS | st.none(), min_size=6, max_size=6))
@settings(max_examples=8, deadline=None)
@pytest.mark.parametrize("sink", SINKS)
def test_any_text_comes_back(sink, tmp_path_factory, names, texts):
    out = tmp_path_factory.mktemp("any") / "out"
    extracted(sink, out, [(name, {"text": text}) for name, text in zip(names, texts, strict=False)])
    with layertap.open(out, plugins=OWN) as found:
        assert found.ids == names
        assert [row["text"] for row in found.index] == texts[: len(names)]


def test_hdf5_writes_a_nul_as_a_name_would(tmp_path):
    extracted("hdf5", tmp_path / "out", [("a\0b", {})])
    with h5py.File(tmp_path / "out/features.h5") as file:
        assert file["id"].asstr()[0] == "a%00b"


class Colour(enum.StrEnum):
    RED = "red"


PLAIN = [
    (np.int64(3), 3),
    (np.float32(0.5), 0.5),
    (np.bool_(True), True),
    (np.str_("ü"), "ü"),
    (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
    (torch.tensor([0.5, 1.0]), [0.5, 1.0]),
    (torch.tensor(7), 7),
    (np.datetime64("2020-01-02T03:04:05.000000006"), "2020-01-02T03:04:05.000000006"),
    (np.timedelta64(1500, "ms"), 1.5),
    (datetime.datetime(2020, 1, 2, 3, 4, 5), "2020-01-02T03:04:05"),
    (datetime.time(3, 4), "03:04:00"),
    (datetime.timedelta(days=1, milliseconds=5), 86400.005),
    (decimal.Decimal("1.50"), "1.50"),
    (10**30, 10**30),
    ((1, (2,)), [1, [2]]),
    ({"a": {"b": [np.int8(1)]}}, {"a": {"b": [1]}}),
    (Colour.RED, "red"),
    (None, None),
    ("", ""),
]


def test_a_source_may_give_what_its_libraries_give(tmp_path):
    extracted("npy", tmp_path / "out", [(str(number), {"value": value}) for number, (value, _) in enumerate(PLAIN)])
    with layertap.open(tmp_path / "out", plugins=OWN) as found:
        assert [row["value"] for row in found.index] == [wanted for _, wanted in PLAIN]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b"x", "type bytes"),
        ({1: 2}, "key of type int"),
        ({1, 2}, "type set"),
        ([float("nan")], "nan; give None instead"),
        (float("inf"), "inf; give None instead"),
        ("\udcff", "not UTF-8"),
        (1 + 2j, "type complex"),
    ],
)
def test_what_metadata_cannot_hold_is_refused(value, said):
    Given.rows = [("a", {"value": value})]
    with pytest.raises(layertap.PluginError, match=said) as refused:
        Plan(Given())
    assert str(refused.value).isprintable()


def test_metadata_nested_too_deep_is_refused():
    deep: list[Any] = []
    for _ in range(500):
        deep = [deep]
    Given.rows = [("a", {"value": deep})]
    with pytest.raises(layertap.PluginError, match="nested more than 64 deep"):
        Plan(Given())


def test_an_unfinished_output_without_metadata_that_is_kept_now_is_extracted_again(tmp_path):
    rows = [(str(number), {"label": "a"}) for number in range(8)]
    with pytest.raises(layertap.LayertapError):
        extracted("npy", tmp_path / "out", rows, observers=[{"type": "stop", "after": 6}])
    extracted("npy", tmp_path / "out", [(name, {**meta, "boxes": [1]}) for name, meta in rows])
    with layertap.open(tmp_path / "out", plugins=OWN) as found:
        assert [row["boxes"] for row in found.index] == [[1]] * 8


def test_a_forged_line_never_reaches_the_screen(tmp_path, capsys, monkeypatch):
    from layertap.cli.main import main

    config = tmp_path / "c\rfailed: good.jpg.yaml"
    config.write_text("nonsense: 1\nsource: samples\nsink: memory\n")
    monkeypatch.setattr("sys.argv", ["layertap", "run", str(config)])
    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr().err
    assert said
    assert all(line.startswith(str(tmp_path)) for line in said.splitlines())
