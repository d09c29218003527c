"""A folder gives every image once, in byte order, under an id that says where it is."""

from __future__ import annotations

import inspect
import os
import shutil
import sys
from pathlib import Path

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import layertap
from layertap_plugins.sources.folder import FolderSource


def make(root, *names):
    """Files and, if the name ends in /, folders."""
    for name in names:
        path = os.path.join(os.fsencode(root), os.fsencode(name))
        if path.endswith(b"/"):
            os.makedirs(path, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(path)


def ids(root, **params):
    return [record.id for record in FolderSource.of(path=str(root), **params).records()]


def test_folder_is_walked_in_byte_order_of_the_whole_path(tmp_path):
    make(tmp_path, "a/z.jpg", "a-b.jpg", "a.jpg", "a0.jpg", "B.jpg", "é.jpg", "a/b/c.jpg", "a/b.jpg")
    expected = ["B.jpg", "a-b.jpg", "a.jpg", "a/b.jpg", "a/b/c.jpg", "a/z.jpg", "a0.jpg", "é.jpg"]
    assert ids(tmp_path) == expected == sorted(expected, key=os.fsencode)


def test_label_is_the_first_folder(tmp_path):
    make(tmp_path, "cats/big/a.jpg", "cats/b.jpg", "c.jpg")
    labels = {record.id: record.meta for record in FolderSource.of(path=str(tmp_path)).records()}
    assert labels == {
        "c.jpg": {"label": None},
        "cats/b.jpg": {"label": "cats"},
        "cats/big/a.jpg": {"label": "cats"},
    }


def test_data_is_a_path_that_opens_the_file(tmp_path):
    make(tmp_path, "a/b.jpg", b"\xff\xfe.jpg", "\n\x1b[31m -x.jpg")
    for record in FolderSource.of(path=str(tmp_path)).records():
        assert isinstance(record.data, Path)
        assert record.data.read_bytes() == os.fsencode(record.data)


def test_bytes_that_are_not_utf8_are_escaped_in_the_id(tmp_path):
    make(tmp_path, b"\xffx/a\xc3\x28.jpg", "ü.jpg", "100%.jpg")
    assert ids(tmp_path) == ["100%.jpg", "ü.jpg", "%FFx/a%C3(.jpg"]
    assert [r.meta["label"] for r in FolderSource.of(path=str(tmp_path)).records()] == [None, None, "%FFx"]
    assert [os.fsencode(i) for i in ids(tmp_path)]


CLASHING = [
    (b"\xff.jpg", b"%FF.jpg"),
    (b"d\xff/a.jpg", b"d%FF/a.jpg"),
    (b"\xff%FE.jpg", b"%FF\xfe.jpg"),
    (b"x/\xc3(.png", b"x/%C3(.png"),
]


@pytest.mark.parametrize("pair", CLASHING)
def test_names_that_would_get_one_id_get_two(tmp_path, pair):
    make(tmp_path, *pair, "a%20b.jpg", "%FE.jpg")
    found = {record.id: record.data.read_bytes() for record in FolderSource.of(path=str(tmp_path)).records()}
    assert len(found) == 4
    assert {"a%20b.jpg", "%FE.jpg"} < set(found)
    assert {data.rpartition(os.fsencode(tmp_path) + b"/")[2] for data in found.values()} >= set(pair)


def test_both_forms_of_one_name_and_both_cases_are_kept(tmp_path):
    make(tmp_path, "\u00e9.jpg", "e\u0301.jpg", "A.jpg", "a.jpg")
    assert ids(tmp_path) == ["A.jpg", "a.jpg", "e\u0301.jpg", "\u00e9.jpg"]


def test_records_can_be_asked_for_again(tmp_path):
    make(tmp_path, "a.jpg", "b/c.png")
    source = FolderSource.of(path=str(tmp_path))
    assert list(source.records()) == list(source.records())


def test_default_patterns_take_the_formats_that_are_decoded(tmp_path):
    make(tmp_path, "a.JPG", "b.jpeg", "c.png", "d.webp", "e.bmp", "f.GIF", "g.tif", "Thumbs.db", "h", "i.jpg.txt")
    assert ids(tmp_path) == ["a.JPG", "b.jpeg", "c.png", "d.webp", "e.bmp", "f.GIF"]


def test_patterns_match_names_or_paths(tmp_path):
    make(tmp_path, "a/x1.jpg", "a/b/X2.jpg", "b/x3.jpg", "x4.png")
    assert ids(tmp_path, include=["x[12].*"]) == ["a/b/X2.jpg", "a/x1.jpg"]
    assert ids(tmp_path, include=["A/*"]) == ["a/b/X2.jpg", "a/x1.jpg"]
    assert ids(tmp_path, include=["b/*", "*.png"]) == ["b/x3.jpg", "x4.png"]


def test_hidden_files_and_folders_are_skipped(tmp_path):
    make(tmp_path, "a.jpg", ".b.jpg", "._a.jpg", ".cache/c.jpg", "d/.e/f.jpg")
    assert ids(tmp_path) == ["a.jpg"]
    assert ids(tmp_path, include=["*"]) == ["a.jpg"]


def test_links_to_files_are_taken_and_links_to_folders_are_not(tmp_path):
    make(tmp_path, "real/a.jpg")
    (tmp_path / "file.jpg").symlink_to("real/a.jpg")
    (tmp_path / "folder.jpg").symlink_to("real")
    (tmp_path / "up").symlink_to("..")
    (tmp_path / "dangling.jpg").symlink_to("nowhere")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(tmp_path / "fifo.jpg")
    assert ids(tmp_path) == ["dangling.jpg", "fifo.jpg", "file.jpg", "loop.jpg", "real/a.jpg"]


def reasons(root, **params):
    """The messages of the records that fail when they are read."""
    found = {}
    for record in FolderSource.of(path=str(root), **params).records():
        if callable(record.data):
            with pytest.raises(layertap.ImageError) as refused:
                record.data()
            found[record.id] = refused.value.reason
    return found


def test_links_out_of_the_folder_are_refused_unless_they_are_to_be_followed(tmp_path):
    make(tmp_path, "root/a.jpg", "root/sub/b.jpg", "root-2/c.jpg", "d.jpg")
    root = tmp_path / "root"
    for name, target in {
        "inside.jpg": "sub/b.jpg",
        "around.jpg": "../root/a.jpg",
        "absolute.jpg": root / "a.jpg",
        "sub/up.jpg": "../a.jpg",
        "dangling.jpg": "../nowhere",
        "loop.jpg": "loop.jpg",
        "above.jpg": "../d.jpg",
        "beside.jpg": "../root-2/c.jpg",
        "password.jpg": "/etc/passwd",
        "endless.jpg": "/dev/zero",
        "twice.jpg": "above.jpg",
    }.items():
        (root / name).symlink_to(target)
    outside = ["above.jpg", "beside.jpg", "endless.jpg", "password.jpg", "twice.jpg"]
    assert reasons(root) == dict.fromkeys(outside, "outside_root")
    (tmp_path / "link").symlink_to("root")
    assert reasons(tmp_path / "link") == dict.fromkeys(outside, "outside_root")
    assert reasons(root, links="follow") == {}
    assert ids(root) == ids(root, links="follow") == sorted([*ids(root)])
    assert len(ids(root)) == 13
    found = {record.id: record.data for record in FolderSource.of(path=str(root), links="follow").records()}
    assert found["above.jpg"].read_bytes() == os.fsencode(tmp_path / "d.jpg")


def test_files_are_not_resolved_one_by_one(tmp_path, monkeypatch):
    make(tmp_path, *(f"{number}.jpg" for number in range(20)))
    asked = []
    real = os.path.realpath
    monkeypatch.setattr(os.path, "realpath", lambda path, **rest: asked.append(path) or real(path, **rest))
    assert len(ids(tmp_path)) == 20
    assert len(asked) == 1


def test_the_one_image_that_is_named_may_be_a_link_anywhere(tmp_path):
    make(tmp_path, "a.jpg", "root/")
    (tmp_path / "root/b.jpg").symlink_to("../a.jpg")
    (record,) = FolderSource.of(path=str(tmp_path / "root/b.jpg")).records()
    assert record.data.read_bytes() == os.fsencode(tmp_path / "a.jpg")


def test_a_root_that_is_a_link_or_begins_with_a_dot_is_entered(tmp_path):
    make(tmp_path, ".real/a.jpg")
    (tmp_path / "link").symlink_to(".real")
    assert ids(tmp_path / ".real") == ids(tmp_path / "link") == ids(f"{tmp_path}/link/") == ["a.jpg"]


def test_a_relative_path_starts_at_the_working_directory(tmp_path, monkeypatch):
    make(tmp_path, "images/a.jpg")
    monkeypatch.chdir(tmp_path)
    assert ids("images") == ["a.jpg"]


def test_one_image_is_taken_whatever_its_name(tmp_path):
    make(tmp_path, "folder/photo.tif")
    (record,) = FolderSource.of(path=str(tmp_path / "folder/photo.tif")).records()
    assert (record.id, record.meta) == ("photo.tif", {"label": None})
    assert record.data == tmp_path / "folder/photo.tif"


def test_a_tree_deeper_than_python_recurses_is_walked(tmp_path):
    path = "d/" * 150 + "a.jpg"
    make(tmp_path, path)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 100)
    try:
        assert ids(tmp_path) == [path]
    finally:
        sys.setrecursionlimit(limit)


@pytest.mark.parametrize("path", ["missing", "missing/below", "file.txt/below", "a\0b"])
def test_a_path_that_is_not_there_is_an_error(tmp_path, path):
    make(tmp_path, "file.txt")
    with pytest.raises(layertap.ConfigError, match="cannot use") as caught:
        ids(tmp_path / path)
    assert repr(str(tmp_path / path)) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_images_is_an_error_that_counts_what_it_saw(tmp_path):
    make(tmp_path, "a.tif", "b/c.txt", "b/.d.jpg")
    with pytest.raises(layertap.ConfigError, match=r"no images in .* match \*\.jpg, .* \(3 other files"):
        ids(tmp_path)
    with pytest.raises(layertap.ConfigError, match=r"match \*\.xyz \(3 other files"):
        ids(tmp_path, include=["*.xyz"])


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path, monkeypatch):
    make(tmp_path, "a.jpg", "closed/b.jpg")
    scandir = os.scandir

    def refuse(path):
        if path.endswith(b"closed/"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(layertap.ConfigError, match=r"cannot list '.*/closed/': Permission denied"):
        ids(tmp_path)


@pytest.mark.parametrize(
    "params",
    [{}, {"path": ""}, {"path": "x", "include": []}, {"path": "x", "depth": 1}, {"path": "x", "links": "outside"}],
)
def test_wrong_parameters_are_refused(params):
    with pytest.raises(pydantic.ValidationError):
        FolderSource.of(**params)


def test_the_walk_reads_a_folder_only_when_it_gets_there(tmp_path):
    make(tmp_path, "a/1.jpg", "b/2.jpg")
    records = FolderSource.of(path=str(tmp_path)).records()
    assert next(records).id == "a/1.jpg"
    make(tmp_path, "b/3.jpg")
    assert [record.id for record in records] == ["b/2.jpg", "b/3.jpg"]


NAMES = st.one_of(
    st.sampled_from(["a", "a.jpg", "a-b", "a0", "A", "ab", "\u00e9", "e\u0301", "\U0001f600", "z", "%FF", "a b"]),
    st.text("ab.-0\u00e9\u0301 \n", min_size=1, max_size=4),
    st.binary(min_size=1, max_size=3).map(lambda raw: os.fsdecode(raw.translate(None, b"/\0"))),
).filter(lambda name: name and not name.startswith("."))


@given(st.lists(st.lists(NAMES, min_size=1, max_size=4), max_size=12))
@settings(max_examples=300, deadline=None)
def test_the_order_is_that_of_all_paths_sorted_by_their_bytes(tmp_path_factory, paths):
    root = tmp_path_factory.mktemp("tree")
    try:
        for path in [*paths, ["always"]]:
            try:
                make(root, os.path.join(*path))
            except OSError:
                continue  # a file where this path needs a folder, or the other way round
        files = [os.path.join(os.fsencode(at), name) for at, _, names in os.walk(os.fsencode(root)) for name in names]
        found = [os.fsencode(r.data) for r in FolderSource.of(path=str(root), include=["*"]).records()]
        assert found == sorted(files)
    finally:
        shutil.rmtree(root)
