"""`index.csv` and `failures.csv` give back every text, to layertap and to other programs."""

from __future__ import annotations

import csv
import io
import json

import pandas
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from layertap.store.commits import Commit, FailedImage, KeptRow, add_meta_types
from layertap.store.listings import FAILURES, INDEX, listed, listings

TEXTS = st.text() | st.text(st.sampled_from('\r\n\0,"\x85\u2028 a%\\'), max_size=6)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
VALUES = st.recursive(PLAIN, lambda part: st.lists(part, max_size=3) | st.dictionaries(TEXTS, part, max_size=3))


def commit(kept, failures=()):
    return Commit(
        layertap=1,
        shard=0,
        first=0,
        planned=len(kept) + len(failures),
        source="0" * 64,
        files={},
        values={},
        nonfinite={},
        notes={},
        kept=[KeptRow(id=name, meta=meta) for name, meta in kept],
        failures=[FailedImage(id=name, stage="read", reason="empty") for name in failures],
    )


def written(folder, record):
    types: dict[str, str] = {}
    add_meta_types(types, record.kept)
    with listings(folder, types) as add:
        add(record)
    return types


def rows(path):
    with path.open(encoding="utf-8", newline="\n") as file:
        return list(listed(file))


@given(st.lists(st.tuples(TEXTS.filter(bool), TEXTS | st.none())), TEXTS.filter(bool))
@example([("x\rgood.jpg", "\r"), ("a\0b", "\0"), ('"', '",'), ('a,"",b', "")], "key")
@settings(max_examples=200, deadline=None)
def test_every_text_comes_back(tmp_path_factory, pairs, key):
    folder = tmp_path_factory.mktemp("listings")
    key = f"m{key}"
    written(folder, commit([(name, {key: text}) for name, text in pairs], [name for name, _ in pairs]))
    found = rows(folder / INDEX)
    assert [row["id"] for row in found] == [name for name, _ in pairs]
    assert [row[key] for row in found if pairs] == [text for _, text in pairs]
    assert [row["id"] for row in rows(folder / FAILURES)] == [name for name, _ in pairs]
    for name in (INDEX, FAILURES):
        text = (folder / name).read_bytes().decode()
        by_others = list(csv.DictReader(io.StringIO(text, newline="")))
        assert [row["id"] for row in by_others] == [name for name, _ in pairs]


@given(st.lists(st.dictionaries(st.just("value"), VALUES, min_size=1), min_size=1, max_size=5))
@settings(max_examples=200, deadline=None)
def test_lists_and_dicts_are_json_text_that_says_the_same(tmp_path_factory, metas):
    folder = tmp_path_factory.mktemp("listings")
    types = written(folder, commit([(str(number), meta) for number, meta in enumerate(metas)]))
    if types["value"] == "json":
        found = [None if row["value"] is None else json.loads(row["value"]) for row in rows(folder / INDEX)]
        assert found == [meta["value"] for meta in metas]


def test_pandas_reads_line_breaks_and_quotes(tmp_path):
    names = ["a\rb", "c\nd", "e\r\nf", 'g"h,i', "j"]
    written(tmp_path, commit([(name, {}) for name in names]))
    assert list(pandas.read_csv(tmp_path / INDEX)["id"]) == names


def test_ordinary_rows_have_the_bytes_that_the_csv_module_writes(tmp_path):
    names = ["a b.jpg", "é%20.png", "100%.jpg", "x,y", 'say "z"', "two\nlines", " lead", "#", "'", "=1", "-"]
    values = [None, True, 1, 0.5, 1e300, -0.0, "None", "nan", 10**30, "é", "\t"]
    written(tmp_path, commit([(name, {"value": value}) for name, value in zip(names, values, strict=True)]))
    expected = io.StringIO()
    by_csv = csv.writer(expected, lineterminator="\n")
    by_csv.writerows([["row", "id", "value"], *([n, *pair] for n, pair in enumerate(zip(names, values, strict=True)))])
    assert (tmp_path / INDEX).read_bytes().decode() == expected.getvalue()


def test_an_empty_text_is_not_a_missing_value(tmp_path):
    written(tmp_path, commit([("a", {"text": ""}), ("b", {"text": None})]))
    assert (tmp_path / INDEX).read_text() == 'row,id,text\n0,a,""\n1,b,\n'
    assert [row["text"] for row in rows(tmp_path / INDEX)] == ["", None]


def test_what_an_older_version_has_written_is_read(tmp_path):
    (tmp_path / INDEX).write_bytes(b"row,id,text\n0,a\rb,\n1,c,x\n")
    assert rows(tmp_path / INDEX) == [{"row": "0", "id": "a\rb", "text": None}, {"row": "1", "id": "c", "text": "x"}]


def test_lines_that_a_program_on_windows_has_saved_are_read(tmp_path):
    (tmp_path / INDEX).write_bytes(b'row,id,text\r\n0,"a\rb",x\r\n1,c,\r\n')
    assert [row["text"] for row in rows(tmp_path / INDEX)] == ["x", None]


@pytest.mark.parametrize(
    "text", ["", "row,id\n0\n", 'row,id\n0,"a\n', 'row,id\n0,a"b"\n', 'row,id\n0,"a"b\n', "row,id\n0,a,b\n"]
)
def test_anything_else_is_refused(text):
    with pytest.raises(ValueError, match=r"quote|values|first line"):
        list(listed(io.StringIO(text)))
