"""A tar gives its samples in place: nothing is unpacked, and any fault is reported in one line."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import tarfile

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import layertap
from layertap_plugins.sources.tar import TarSource
from tests.plugins.storing import add, refusal


def packed(path, members, mode="w", **options):
    with tarfile.open(path, mode, **options) as archive:
        for name, data in members.items():
            add(archive, name, data)
    return path


def records(path, **params):
    return list(TarSource.of(path=str(path), **params).records())


def given_by(path, **params):
    return {record.id: record.data() for record in records(path, **params)}


def fault(path, **params):
    return refusal(lambda: records(path, **params))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_images_are_read_in_place(tmp_path, form):
    long = "x" * 90 + "/" + "y" * 90
    members = {"b.jpg": b"bee", f"{long}.PNG": b"long", "d/é.tar.webp": b"e" * 5000, "a.txt": b"no image", "z.bmp": b""}
    path = packed(tmp_path / "a.tar", members, format=form)
    assert given_by(path) == {"b": b"bee", long: b"long", "d/é": b"e" * 5000, "z": b""}


def test_files_of_a_sample_are_its_metadata_with_the_same_keys_everywhere(tmp_path):
    facts = {"caption": "ü", "id": 7, "score": 0.5, "ok": True, "none": None, "nan": float("nan"), "boxes": [1, 2]}
    members = {
        "a.jpg": b"1",
        "a.json": json.dumps(facts).encode(),
        "b.cls": b"12\n",
        "b.jpg": b"2",
        "b.txt": "a dög".encode(),
        "c.jpg": b"3",
    }
    path = packed(tmp_path / "a.tar", members)
    a, b, c = (record.meta for record in records(path))
    keys = ["caption", "id_", "score", "ok", "none", "nan", "boxes", "cls", "txt"]
    assert a == {**dict.fromkeys(keys), "caption": "ü", "id_": 7, "score": 0.5, "ok": True, "boxes": [1, 2]}
    assert b == {**dict.fromkeys(keys), "cls": 12, "txt": "a dög"}
    assert c == dict.fromkeys(keys)
    assert [list(meta) for meta in (a, b, c)] == [keys] * 3
    assert [record.meta for record in records(path, metadata=False)] == [{}, {}, {}]


def test_shards_come_by_pattern_list_or_folder(tmp_path):
    for number in range(3):
        packed(tmp_path / f"s-{number:02d}.tar", {f"{number}.jpg": b"x"})
    for path in (tmp_path / "s-{00..02}.tar", tmp_path / "s-0{0,1,2}.tar", tmp_path / "s-*.tar", tmp_path):
        assert [record.id for record in records(path)] == ["0", "1", "2"]
    several = [str(tmp_path / "s-02.tar"), str(tmp_path / "s-{00..01}.tar")]
    assert [record.id for record in TarSource.of(path=several).records()] == ["2", "0", "1"]
    (tmp_path / "s-{00..01}.tar").write_bytes((tmp_path / "s-02.tar").read_bytes())
    assert [record.id for record in records(tmp_path / "s-{00..01}.tar")] == ["2"]


def test_ids_begin_with_the_shard_where_shards_share_a_key(tmp_path):
    packed(tmp_path / "a.tar", {"0.jpg": b"1", "1.jpg": b"2"})
    packed(tmp_path / "b.tar", {"1.jpg": b"3"})
    assert given_by(tmp_path) == {"a.tar/0": b"1", "a.tar/1": b"2", "b.tar/1": b"3"}
    (tmp_path / "c").mkdir()
    os.rename(tmp_path / "b.tar", tmp_path / "c/a.tar")
    assert given_by(tmp_path) == {
        f"{tmp_path}/a.tar/0": b"1",
        f"{tmp_path}/a.tar/1": b"2",
        f"{tmp_path}/c/a.tar/1": b"3",
    }


def test_the_image_of_a_sample_with_several_has_to_be_named(tmp_path):
    path = packed(tmp_path / "a.tar", {"0.left.jpg": b"l", "0.right.jpg": b"r", "1.left.jpg": b"L", "2.png": b"p"})
    assert "has several images (left.jpg, right.jpg); name one, as in [left.jpg]" in fault(path)
    assert given_by(path, images=["left.jpg"]) == {"0": b"l", "1": b"L"}
    assert given_by(path, images=["right.jpg", "png"]) == {"0": b"r", "2": b"p"}


def test_hidden_files_and_folders_are_passed_over(tmp_path):
    path = packed(tmp_path / "a.tar", {"._a.jpg": b"mac", ".jpg": b"x", "d/.b.jpg": b"x", "a.jpg": b"1"})
    with tarfile.open(path, "a") as archive:
        archive.addfile(tarfile.TarInfo("folder.jpg/"))
        folder = tarfile.TarInfo("other.jpg")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    assert given_by(path) == {"a": b"1"}


def test_hostile_members_are_a_name_and_nothing_else(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        add(archive, "../../up.jpg", b"up")
        add(archive, "/etc/root.jpg", b"root")
        for number, kind in enumerate(b"123456"):
            link = tarfile.TarInfo(f"{number}.jpg")
            link.type, link.linkname = bytes([kind]), "/etc/passwd"
            archive.addfile(link)
        add(archive, "last\x1b[31m.jpg", b"last")
    before = sorted(tmp_path.iterdir())
    found = {record.id: record.data for record in records(path)}
    readable = ("../../up", "/etc/root", "last\x1b[31m")
    assert {name: found[name]() for name in readable} == {
        readable[0]: b"up",
        readable[1]: b"root",
        readable[2]: b"last",
    }
    for name in found.keys() - {*readable}:
        with pytest.raises(layertap.ImageError, match="not_regular"):
            found[name]()
    assert len(found) == 8
    assert sorted(tmp_path.iterdir()) == before


def test_sparse_members_are_refused_and_those_after_them_read(tmp_path):
    path = tmp_path / "a.tar"
    old = tarfile.TarInfo("old.jpg")
    old.size = 512
    header = bytearray(old.tobuf(tarfile.GNU_FORMAT))
    header[156:157] = b"S"
    header[482] = 1  # one more block of its map follows
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    new = tarfile.TarInfo("new.jpg")
    new.size, new.pax_headers = 3, {"GNU.sparse.major": "1", "GNU.sparse.name": "other.jpg"}
    last = tarfile.TarInfo("last.jpg")
    last.size = 4
    path.write_bytes(
        bytes(header) + bytes(1024) + new.tobuf() + b"abc".ljust(512, b"\0") + last.tobuf() + b"last".ljust(1536, b"\0")
    )
    found = {record.id: record.data for record in records(path)}
    assert list(found) == ["old", "new", "last"]
    assert found["last"]() == b"last"
    for name in ("old", "new"):
        with pytest.raises(layertap.ImageError, match="not_regular"):
            found[name]()


def test_a_compressed_archive_is_refused_with_the_way_out(tmp_path):
    plain = packed(tmp_path / "plain.tar", {"a.jpg": b"1"}).read_bytes()
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(plain))
    assert "is compressed" in fault(tmp_path / "a.tar.gz")
    assert "gzip -d" in fault(tmp_path / "a.tar.gz")
    packed(tmp_path / "a.tar", {"a.jpg": b"1"}, "w:xz")
    assert "xz -d" in fault(tmp_path / "a.tar")


def test_a_cut_archive_is_refused_wherever_it_ends(tmp_path):
    whole = packed(tmp_path / "a.tar", {"a.jpg": b"x" * 700, "b.jpg": b"y" * 512}).read_bytes()
    end = 512 + 1024 + 512 + 512
    for length in (*range(1, 700, 37), 1024, 1536, 1540, 2048, 2049, end - 1, end):
        (tmp_path / "cut.tar").write_bytes(whole[:length])
        said = fault(tmp_path / "cut.tar")
        assert "cut short" in said or "damaged" in said
    (tmp_path / "cut.tar").write_bytes(whole[:end] + bytes(512))
    assert list(given_by(tmp_path / "cut.tar")) == ["a", "b"]


def test_an_archive_cut_after_it_was_planned_fails_only_what_is_gone(tmp_path):
    path = packed(tmp_path / "a.tar", {"a.jpg": b"x" * 700, "b.jpg": b"y"})
    facts = os.stat(path)
    a, b = (record.data for record in records(path))
    os.truncate(path, 1500)
    with open(path, "ab") as file:
        file.truncate(facts.st_size)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert (len(a()), b()) == (700, b"\0")
    path.unlink()
    with pytest.raises(FileNotFoundError):
        a()


def header(size_field=b"", **facts):
    info = tarfile.TarInfo("a.jpg")
    block = bytearray(info.tobuf())
    block[124:136] = size_field.ljust(12, b"\0")
    block[156:157] = facts.get("kind", b"0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not a tar archive"),
        (b"hello", "not a tar archive"),
        (b"\xff\xd8\xff" * 2000, "not a tar archive"),
        (b"a" * 512 * 4, "not a tar archive"),
        (header(b"77777777777"), "cut short"),
        (header(b"\x80" + b"\xff" * 11), "cut short"),
        (header(b"-1"), "damaged"),
        (header(b"9"), "damaged"),
        (header(b"\xff" * 12), "cut short"),
        (header(b"7777777", kind=b"L") + bytes(2**22), "damaged: a name or attributes of"),
        (header(b"4", kind=b"x") + b"boo\n".ljust(1024, b"\0"), "a malformed attribute"),
        (header(b"10", kind=b"x") + b"999 a=b\n".ljust(1024, b"\0"), None),
        (header(b"14", kind=b"x") + b"12 size=-5\n\0".ljust(512, b"\0") + header(b"0"), "damaged"),
        (bytes(1024), "no images"),
    ],
)
def test_bad_archives_are_reported_in_one_line(tmp_path, data, said):
    (tmp_path / "a.tar").write_bytes(data)
    assert (said or "path: ") in fault(tmp_path / "a.tar")


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"a.jpg": b"1", "a.json": b"{"}, "cannot read a.json in "),
        ({"a.jpg": b"1", "a.json": b"[1]"}, "not a JSON object"),
        ({"a.jpg": b"1", "a.json": b"[" * 100_000}, "cannot read a.json in "),
        ({"a.jpg": b"1", "a.cls": b"cat"}, "`metadata: false` skips it"),
        ({"a.jpg": b"1", "a.txt": b"x" * (2**20 + 1)}, "it is too large (1048577 bytes)"),
        ({"a.jpg": b"1", "b.jpg": b"2", "a.png": b"3"}, "holds the sample 'a' in two places"),
        ({"a.txt": b"1", "b.tif": b"2"}, "no images in "),
    ],
)
def test_invalid_samples_are_reported_in_one_line(tmp_path, members, said):
    assert said in fault(packed(tmp_path / "a.tar", members))


def test_a_duplicate_member_is_reported(tmp_path):
    path = packed(tmp_path / "a.tar", {"a.jpg": b"1"})
    packed(path, {"a.jpg": b"2"}, "a")
    assert "holds 'a.jpg' twice" in fault(path)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("missing.tar", "No such file"),
        ("missing-{0..3}.tar", "No such file"),
        ("missing-*.tar", "no file matches"),
        ("{a}.tar", "neither a range"),
        ("{9..1}.tar", "ends before it begins"),
        ("{0..999999999}{0..999999999}.tar", "more than 100,000 files"),
        ("s3://bucket/a.tar", "is a URL"),
        ("empty", "no file below"),
        ("pipe.tar", "not a regular file"),
    ],
)
def test_paths_that_lead_nowhere_are_reported_in_one_line(tmp_path, path, said, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.tar")
    assert said in fault(path)


def test_wrong_parameters_are_refused():
    for params in ({}, {"path": ""}, {"path": []}, {"path": "a", "images": []}, {"path": "a", "extract": True}):
        with pytest.raises(pydantic.ValidationError):
            TarSource.of(**params)


NAMES = st.text("ab./0é\n", min_size=1, max_size=6).map(lambda text: f"d{text}.jpg")


@given(st.dictionaries(NAMES, st.binary(max_size=1500), max_size=6), st.sampled_from([0, 1, 2]))
@settings(max_examples=60, deadline=None)
def test_members_are_those_that_the_standard_library_finds(tmp_path_factory, members, form):
    from layertap_plugins.sources import members as ours

    path = tmp_path_factory.mktemp("tar") / "a.tar"
    packed(path, members, format=form)
    with tarfile.open(path) as archive:
        expected = [(member.name.encode(), member.offset_data, member.size) for member in archive]
    with path.open("rb") as file:
        found = ours.Archive(file.fileno(), str(path)).members()
        assert [(member.name, member.offset, member.size) for member in found] == expected


@given(st.binary(max_size=40), st.integers(0, 3000))
@settings(max_examples=150, deadline=None)
def test_damage_is_a_config_error_or_nothing(tmp_path_factory, noise, at):
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    whole = bytearray(packed(path, {"a.jpg": b"1" * 600, "é" * 60 + ".png": b"2"}).read_bytes())
    whole[at : at + len(noise)] = noise
    path.write_bytes(whole)
    try:
        found = records(path)
    except layertap.ConfigError:
        return
    for record in found:
        with contextlib.suppress(layertap.ImageError):
            assert isinstance(record.data(), bytes)


def test_a_gigantic_archive_is_not_read_to_list_it(tmp_path):
    path = tmp_path / "a.tar"
    first, last = tarfile.TarInfo("a.jpg"), tarfile.TarInfo("b.jpg")
    first.size, last.size = 2**30, 2
    with path.open("wb") as file:
        file.write(first.tobuf(tarfile.GNU_FORMAT))
        file.seek(first.size, io.SEEK_CUR)
        file.write(last.tobuf() + b"hi".ljust(1536, b"\0"))
    a, b = records(path)
    assert b.data() == b"hi"
    with pytest.raises(layertap.ImageError, match="file_too_large"):
        a.data()


def test_members_that_are_not_adjacent_are_joined_by_key_and_counted(tmp_path):
    images = {f"{number}.jpg": b"x" for number in range(3)}
    labels = {f"{number}.cls": b"%d" % number for number in (2, 0, 1)}
    captions = {"1.txt": b"one", "0.json": b'{"boxes": [[1, 2]]}'}
    for order in (images | labels | captions, labels | images | captions, captions | labels | images):
        source = TarSource.of(path=str(packed(tmp_path / "a.tar", order)))
        found = {record.id: record.meta for record in source.records()}
        assert [found[str(number)]["cls"] for number in range(3)] == [0, 1, 2]
        assert found["1"]["txt"] == "one"
        assert found["0"]["boxes"] == [[1, 2]]
        (remark,) = source.remarks
        assert ": 5; they are joined by key" in remark or ": 4; they are joined by key" in remark


def test_compound_extensions_are_columns_of_that_name(tmp_path):
    members = {
        "a.jpg": b"1",
        "a.outputs.txt": b"said",
        "a.cls": b"1",
        "a.coarse.cls": b"2",
        "a.meta.v2.json": b'[1, {"x": null}]',
        "b.jpg": b"2",
    }
    a, b = (record.meta for record in records(packed(tmp_path / "a.tar", members)))
    assert a == {"cls": 1, "outputs.txt": "said", "coarse.cls": 2, "meta.v2.json": [1, {"x": None}]}
    assert b == dict.fromkeys(a)


def test_what_is_left_out_is_counted(tmp_path):
    members = {"a.jpg": b"1", "a.mp3": b"x", "a.emb.npy": b"x", "b.txt": b"no image", "c.cls": b"1", "d.jpg": b"2"}
    source = TarSource.of(path=str(packed(tmp_path / "a.tar", members | {"d.mp3": b"y"})))
    assert [record.id for record in source.records()] == ["a", "d"]
    assert list(source.remarks) == [
        "samples without an image, which are left out: 2",
        "members that metadata cannot hold, which are left out: .mp3 (2), .emb.npy (1)",
    ]


def test_hidden_files_between_the_members_of_a_sample_do_not_part_them(tmp_path):
    members = {"a.jpg": b"1", "._a.cls": b"junk", "a.cls": b"7"}
    source = TarSource.of(path=str(packed(tmp_path / "a.tar", members)))
    assert [record.meta for record in source.records()] == [{"cls": 7}]
    assert list(source.remarks) == []


def test_keys_and_shards_with_one_text_have_different_ids(tmp_path):
    raw, text = os.fsdecode(b"\xff"), "%FF"
    members = {f"{raw}.jpg": b"1", f"{text}.jpg": b"2", "%FE.jpg": b"3", "100%.jpg": b"4"}
    given = given_by(packed(tmp_path / "a.tar", members, errors="surrogateescape", encoding="utf-8"))
    assert list(given.values()) == [b"1", b"2", b"3", b"4"]
    assert list(given)[1:] == ["%FF", "%FE", "100%"]
    assert next(iter(given)).startswith("%FF~")
    (tmp_path / "b").mkdir()
    for name in (raw, text):
        packed(tmp_path / "b" / f"{name}.tar", {"0.jpg": name.encode("utf-8", "surrogateescape")})
    assert sorted(given_by(tmp_path / "b").values()) == [text.encode(), b"\xff"]
