"""A table gives its rows in order, and reports the line of a mistake."""

from __future__ import annotations

import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pydantic
import pytest

import layertap
from layertap_plugins.sources.manifest import ManifestSource
from tests.plugins.storing import refusal


def records(path, **params):
    return list(ManifestSource.of(path=str(path), **params).records())


def rows(path, **params):
    return [(record.id, dict(record.meta)) for record in records(path, **params)]


def fault(path, **params):
    return refusal(lambda: records(path, **params))


def written(tmp_path, text, name="list.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_delimited_tables_keep_their_columns_as_text(tmp_path):
    expected = [("b.jpg", {"label": "1", "note": "x, y"}), ("a/ü.jpg", {"label": None, "note": 'say "z"'})]
    comma = 'path,label,note\nb.jpg,1,"x, y"\n\na/ü.jpg,,"say ""z"""\n'
    assert rows(written(tmp_path, comma)) == expected
    assert rows(written(tmp_path, comma.encode("utf-8-sig").replace(b"\n", b"\r\n"))) == expected
    tabs = 'path\tlabel\tnote\nb.jpg\t1\tx, y\na/ü.jpg\t\t"say ""z"""\n'
    assert rows(written(tmp_path, tabs, "list.tsv")) == expected
    assert rows(written(tmp_path, comma, "list.txt"), format="csv") == expected


def test_json_lines_keep_their_types_and_have_the_same_keys_everywhere(tmp_path):
    lines = [
        {"path": "a.jpg", "label": 3, "score": 0.5, "ok": True, "boxes": [1]},
        {"path": "b.jpg", "label": "three", "boxes": {"x": 1}, "late": None},
    ]
    path = written(tmp_path, "\n\n".join(map(json.dumps, lines)), "list.jsonl")
    assert rows(path) == [
        ("a.jpg", {"label": 3, "score": 0.5, "ok": True, "boxes": [1], "late": None}),
        ("b.jpg", {"label": "three", "score": None, "ok": None, "boxes": {"x": 1}, "late": None}),
    ]


def test_a_parquet_table_keeps_its_types(tmp_path):
    columns = {"file": ["a.jpg", "b.jpg"], "label": [1, None], "id": ["x", "y"], "box": [[1], [2]]}
    pq.write_table(pa.table(columns), tmp_path / "list.parquet", row_group_size=1)
    path = tmp_path / "list.parquet"
    assert rows(path, column="file") == [
        ("a.jpg", {"label": 1, "id_": "x", "box": [1]}),
        ("b.jpg", {"label": None, "id_": "y", "box": [2]}),
    ]
    assert rows(path, column="file", id="id") == [
        ("x", {"label": 1, "box": [1]}),
        ("y", {"label": None, "box": [2]}),
    ]


def test_paths_start_at_the_table_or_at_the_root(tmp_path):
    path = written(tmp_path, "path\na.jpg\n../b.jpg\n/c/d.jpg\nfile:///e.jpg\n")
    found = [record.data for record in records(path)]
    assert found == [tmp_path / "a.jpg", tmp_path / "../b.jpg", Path("/c/d.jpg"), Path("/e.jpg")]
    assert records(path, root="/data")[0].data == Path("/data/a.jpg")


def test_a_table_in_the_working_directory_needs_no_folder(tmp_path, monkeypatch):
    (tmp_path / "d").mkdir()
    (tmp_path / "out.jpg").symlink_to("/etc/passwd")
    (tmp_path / "in.jpg").symlink_to("d")
    written(tmp_path, "path\na.jpg\nd/b.jpg\nout.jpg\nin.jpg\n")
    monkeypatch.chdir(tmp_path)
    a, b, out, inside = (record.data for record in records("list.csv"))
    assert (a, b, inside) == (Path("a.jpg"), Path("d/b.jpg"), Path("in.jpg"))
    with pytest.raises(layertap.ImageError, match="outside_root"):
        out()


def test_links_out_of_the_root_are_refused_unless_they_are_to_be_followed(tmp_path):
    root, beside = tmp_path / "root", tmp_path / "root-2"
    (root / "sub").mkdir(parents=True)
    beside.mkdir()
    (beside / "c.jpg").touch()
    (root / "sub/b.jpg").touch()
    for name, target in {
        "inside.jpg": "sub/b.jpg",
        "around.jpg": "../root/sub/b.jpg",
        "dangling.jpg": "../nowhere",
        "beside.jpg": "../root-2/c.jpg",
        "password.jpg": "/etc/passwd",
        "folder": "../root-2",
    }.items():
        (root / name).symlink_to(target)
    names = [
        "inside.jpg",
        "around.jpg",
        "dangling.jpg",
        "beside.jpg",
        "password.jpg",
        "folder/c.jpg",
        "../root-2/c.jpg",
    ]
    path = written(root, "\n".join(["path", *names, str(root / "beside.jpg")]))
    refused = []
    for record in records(path):
        if callable(record.data):
            with pytest.raises(layertap.ImageError, match="outside_root"):
                record.data()
            refused.append(record.id)
    assert refused == ["beside.jpg", "password.jpg", "folder/c.jpg"]
    assert all(isinstance(record.data, Path) for record in records(path, links="follow"))


@pytest.fixture
def served(tmp_path):
    """A folder, and the URL at which it is served."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *said):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_urls_are_fetched_beside_files(served, tmp_path):
    folder, url = served
    (folder / "a.jpg").write_bytes(b"far")
    (tmp_path / "b.jpg").write_bytes(b"near")
    path = written(tmp_path, f"path,label\n{url}/a.jpg,x\nb.jpg,y\n{url}/missing.jpg,z\n")
    far, near, missing = records(path)
    assert (far.id, far.meta, far.data()) == (f"{url}/a.jpg", {"label": "x"}, b"far")
    assert near.data.read_bytes() == b"near"
    with pytest.raises(layertap.ImageError, match="not_found"):
        missing.data()


@pytest.mark.parametrize("url", ["nothing://a/b.jpg", "filecache://a/b.jpg"])
def test_urls_that_cannot_be_opened_are_reported_before_anything_is_read(tmp_path, url):
    with pytest.raises(layertap.ConfigError, match=url):
        records(written(tmp_path, f"path\n{url}\n"))


def test_ids_may_have_a_column_of_their_own(tmp_path):
    path = written(tmp_path, "path,name\na.jpg,1\na.jpg,2\n")
    assert rows(path, id="name") == [("1", {}), ("2", {})]


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        ("path,x\na.jpg,1\nb.jpg,2\n\na.jpg,3\n", "l.csv", "lists 'a.jpg' twice, in lines 2 and 5; leave one out"),
        ("pth,label\na.jpg,1\n", "l.csv", "has no column 'path'; did you mean 'pth'?"),
        ("a.jpg\nb.jpg\n", "l.csv", "has no column 'path' (it has a.jpg)"),
        ("", "l.csv", "has no column 'path' (it has none)"),
        ("path,label\na.jpg\n", "l.csv", "line 2 of"),
        ("path\na.jpg,b\n", "l.csv", "has 2 values, but the header has 1"),
        ("path,a,a\nx,1,2\n", "l.csv", "two columns named 'a'"),
        ("path,label\na.jpg,1\n,2\n", "l.csv", "line 3 of"),
        ('path\n"a.jpg\n', "l.csv", "after line 2: unexpected end of data"),
        (b"path\n\xff.jpg\n", "l.csv", "can't decode byte 0xff"),
        ("path\n" + "x" * 200_000, "l.csv", "field larger than"),
        ('{"path": "a"}\n{"path": \n', "l.jsonl", "line 2 of"),
        ('{"path": "a"}\n[]\n', "l.jsonl", "line 2 of"),
        ("[" * 100_000, "l.jsonl", "line 1 of"),
        ('{"path": "a"}\n{"pth": "b"}\n', "l.jsonl", "line 2 of"),
        ('{"path": "a"}\n{"path": "a"}\n', "l.jsonl", "twice, in lines 1 and 2"),
        ('{"path": 7}\n', "l.jsonl", "has 7 for 'path', not a path"),
        ("hello", "l.parquet", "as Parquet"),
        ("path\n", "l.txt", "set the format, as in `format: csv`"),
    ],
)
def test_mistakes_are_reported_with_their_line(tmp_path, text, name, said):
    assert said in fault(written(tmp_path, text, name))


def test_duplicates_in_a_parquet_table_are_reported_by_row(tmp_path):
    pq.write_table(pa.table({"path": ["a", "b", "a"]}), tmp_path / "l.parquet", row_group_size=2)
    assert "'a' twice, in rows 1 and 3" in fault(tmp_path / "l.parquet")


def test_missing_tables_and_wrong_parameters_are_reported(tmp_path):
    assert "No such file" in fault(tmp_path / "missing.csv")
    assert "not a regular file" in fault(tmp_path)
    assert "is a URL" in fault("s3://bucket/list.csv")
    assert "'pat'; did you mean 'path'?" in fault(written(tmp_path, "path\na\n"), id="pat")
    for params in ({}, {"path": "a", "format": "xls"}, {"path": "a", "links": "outside"}, {"path": "a", "roots": "."}):
        with pytest.raises(pydantic.ValidationError):
            ManifestSource.of(**params)


def test_a_long_table_is_taken_as_it_is_needed(tmp_path):
    path = written(tmp_path, "path\n" + "".join(f"{number}.jpg\n" for number in range(50_000)) + "last,one\n")
    found = ManifestSource.of(path=str(path)).records()
    assert [next(found).id for _ in range(2)] == ["0.jpg", "1.jpg"]


@pytest.mark.parametrize(
    "path", ["C:\\photos\\a.jpg", "photos\\a.jpg", "D:/photos/a.jpg", "\\\\server\\share\\a.jpg", "..\\a.jpg"]
)
def test_a_path_of_windows_fails_with_a_reason_that_says_so(tmp_path, path):
    (record,) = records(written(tmp_path, json.dumps({"path": path}), "list.jsonl"))
    with pytest.raises(layertap.ImageError) as caught:
        record.data()
    assert caught.value.reason == "windows_path"


def test_a_file_that_has_a_backslash_in_its_name_is_read(tmp_path):
    (tmp_path / "photos\\a.jpg").write_bytes(b"here")
    (record,) = records(written(tmp_path, "path\nphotos\\a.jpg\n"))
    assert record.data.read_bytes() == b"here"


def test_a_table_at_a_path_of_windows_is_refused_with_the_way_out():
    assert "it looks like a path of Windows: write / between its parts" in fault("C:\\photos\\list.csv")
