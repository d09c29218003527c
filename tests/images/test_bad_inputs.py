"""Everything that an image file can do wrong: each is kept or gets its reason, and none touches another's row."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import tempfile
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import layertap
from layertap.images.decoding.formats import OPTIONAL
from layertap.images.failure_codes import REASONS
from tests.conftest import TINY
from tests.images.bad_inputs import CASES, JPEG, KEPT, PHOTO, ROWS, encoded, good, scan_starts


@contextmanager
def nothing_printed():
    """Fails if Python or a library writes to stdout or stderr meanwhile."""
    said = io.StringIO()
    with tempfile.TemporaryFile() as file, redirect_stdout(said), redirect_stderr(said):
        kept = os.dup(1), os.dup(2)
        try:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            yield
        finally:
            for number, descriptor in enumerate(kept, start=1):
                os.dup2(descriptor, number)
                os.close(descriptor)
        file.seek(0)
        assert (said.getvalue(), file.read()) == ("", b"")


def extract(folder: Path, out: Path, **changes: Any) -> layertap.Features:
    source = {"type": "folder", "path": str(folder), "include": ["*"]}
    config = {
        "model": "tiny",
        "taps": ["features.0", "classifier"],
        "source": source | changes.pop("source", {}),
        "preprocess": {"type": "imagenet", "resize": 64, "crop": 16} | changes.pop("preprocess", {}),
        "sink": {"type": "npy", "path": str(out)},
        "device": "cpu",
        "batch_size": 8,
        "max_failures": 1_000,
        "observers": [],
        **changes,
    }
    report = layertap.run(config, plugins=[TINY])
    features = layertap.open(out)
    assert report.planned == report.kept + report.failed
    assert (report.kept, report.failed) == (len(features.ids), len(features.failures))
    return features


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """All cases in one folder, a good image behind those of each row."""
    folder = tmp_path_factory.mktemp("bad-inputs") / "images"
    folder.mkdir()
    for case in CASES:
        case.make(folder)
    for row in ROWS:
        (folder / f"{row:02d} ~ good.jpg").write_bytes(good(row))
    return folder


@pytest.fixture(scope="session")
def as_it_comes(corpus):
    """The run over it, where nothing was printed and no program started that reads EPS."""
    bait = corpus.parent / "bin"
    bait.mkdir()
    (bait / "gs").write_text(f"#!/bin/sh\ntouch {bait}/started\n")
    (bait / "gs").chmod(0o755)
    with pytest.MonkeyPatch.context() as patch, nothing_printed():
        patch.setenv("PATH", str(bait), prepend=os.pathsep)
        features = extract(corpus, corpus.parent / "features")
    assert not (bait / "started").exists()
    return features


@pytest.fixture(scope="session")
def with_all_formats(corpus):
    with nothing_printed():
        return extract(corpus, corpus.parent / "features of all formats", formats=list(OPTIONAL))


@pytest.fixture(scope="session")
def without(corpus):
    """The run over the same names with a good image in the place of each bad one."""
    folder = corpus.parent / "good images"
    folder.mkdir()
    for case in CASES:
        path = folder / case.path
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(good(0))
    for row in ROWS:
        shutil.copy(corpus / f"{row:02d} ~ good.jpg", folder)
    return extract(folder, corpus.parent / "good features")


def outcome(features, case):
    found = [failure["reason"] for failure in features.failures if failure["id"] == case.id]
    return [*found, *(KEPT for record in features.ids if record == case.id)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_bad_input_is_kept_or_gets_its_reason(as_it_comes, case):
    assert outcome(as_it_comes, case) == [case.outcome]
    assert case.outcome in (KEPT, *REASONS)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_optional_formats_give_it_another_one_only_where_they_should(with_all_formats, case):
    assert outcome(with_all_formats, case) == [case.asked_for or case.outcome]


def test_every_file_is_accounted_for_once(as_it_comes, with_all_formats):
    planned = sorted([*(case.id for case in CASES), *(f"{row:02d} ~ good.jpg" for row in ROWS)])
    for features in (as_it_comes, with_all_formats):
        assert sorted([*features.ids, *(failure["id"] for failure in features.failures)]) == planned


def test_good_rows_are_the_same_to_the_bit_without_the_bad_ones(as_it_comes, with_all_formats, without):
    names = [f"{row:02d} ~ good.jpg" for row in ROWS]
    for features in (as_it_comes, with_all_formats):
        for tap in ("features.0", "classifier"):
            mine = features[tap][:][[features.ids.index(name) for name in names]]
            theirs = without[tap][:][[without.ids.index(name) for name in names]]
            assert mine.tobytes() == theirs.tobytes()


def test_what_is_kept_is_what_a_plain_loop_sees(with_all_formats):
    """Pillow's own reading of the file and its own conversion, whatever it warns of."""
    cases = [case for case in CASES if isinstance(case.content, bytes) and (case.asked_for or case.outcome) == KEPT]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images = [Image.open(io.BytesIO(case.content)).convert("RGB") for case in cases]
    preprocess = {"type": "imagenet", "resize": 64, "crop": 16}
    batches = layertap.extract("tiny/tiny", images, ["classifier"], device="cpu", preprocess=preprocess, plugins=[TINY])
    expected = np.concatenate([batch.values["classifier"].numpy() for batch in batches])
    rows = [with_all_formats.ids.index(case.id) for case in cases]
    np.testing.assert_allclose(with_all_formats["classifier"][:][rows], expected, rtol=1e-5, atol=1e-5)


def test_twins_have_two_rows_alike(as_it_comes):
    names = ("55 twins.jpg", "55 twins, again.jpg", "57 link within the folder.jpg")
    first, *others = (as_it_comes["classifier"][as_it_comes.ids.index(name)] for name in names)
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-6)


def test_what_was_left_out_is_noted_in_the_manifest(as_it_comes):
    notes = json.loads((as_it_comes.path / "manifest.json").read_text())["notes"]
    assert set(notes) == {"alpha", "cmyk", "depth16", "exif_orientation", "frames", "icc_profile"}
    assert notes["cmyk"] == 2
    assert notes["depth16"] == 3


def test_all_orientations_give_one_feature_where_they_are_applied(tmp_path):
    stored = [None, *(Image.Transpose(method) for method in (0, 3, 1, 5, 2, 6, 4))]
    for orientation, method in enumerate(stored, start=1):
        block = Image.Exif()
        block[0x0112] = orientation
        image = PHOTO if method is None else PHOTO.transpose(method)
        folder = tmp_path / "images"
        folder.mkdir(exist_ok=True)
        (folder / f"{orientation}.png").write_bytes(encoded("PNG", image, exif=block))
    for case in (case for case in CASES if case.row == 33):
        case.make(folder)
    applied = extract(folder, tmp_path / "applied", preprocess={"exif": "apply"})
    ignored = extract(folder, tmp_path / "ignored")
    rows = sorted(range(len(applied.ids)), key=lambda row: len(applied.ids[row]))
    applied, ignored = applied["classifier"][:][rows], ignored["classifier"][:][rows]
    np.testing.assert_allclose(applied[:8], np.broadcast_to(applied[0], applied[:8].shape), rtol=1e-5, atol=1e-6)
    assert np.abs(ignored[1:8] - ignored[0]).max(axis=1).min() > 1e-3
    np.testing.assert_allclose(applied[8:], ignored[8:], rtol=1e-5, atol=1e-6)


def test_odd_names_reach_the_terminal_in_no_form_that_moves_it(tmp_path, capsys):
    for case in (case for case in CASES if case.row == 49):
        case.make(tmp_path)
    extract(tmp_path, tmp_path.parent / f"{tmp_path.name} out", observers=["progress"])
    said = capsys.readouterr().err
    assert "not_image" in said
    assert not [character for character in said if not character.isprintable() and character != "\n"]
    with pytest.raises(layertap.ImageError) as stopped:
        extract(tmp_path, tmp_path.parent / f"{tmp_path.name} out 2", on_error="fail")
    assert str(stopped.value).isprintable()


def test_patterns_pass_over_what_is_no_image_by_its_name(tmp_path):
    for name in ("a.jpg", "b", "c.xyz", ".DS_Store", "._a.jpg", "Thumbs.db", "d.tif"):
        (tmp_path / name).write_bytes(JPEG)
    default = layertap.RunConfig.model_validate({"source": {"type": "folder", "path": "x"}, "sink": "memory"})
    assert "include" not in default.source.params
    features = extract(tmp_path, tmp_path.parent / f"{tmp_path.name} out", source={"include": ["*.jpg"]})
    assert features.ids == ["a.jpg"]
    features = extract(tmp_path, tmp_path.parent / f"{tmp_path.name} out 2")
    assert features.ids == ["Thumbs.db", "a.jpg", "b", "c.xyz", "d.tif"]


def test_a_path_longer_than_the_system_allows_fails_alone(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.jpg").write_bytes(JPEG)
    here, depth = os.open(tmp_path / "images", os.O_RDONLY), len(os.fsencode(tmp_path / "images"))
    try:
        while depth < 3_900:
            os.mkdir("d" * 100, dir_fd=here)
            below = os.open("d" * 100, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here, depth = below, depth + 101
        name = "x" * 240 + ".jpg"
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=here))
        features = extract(tmp_path / "images", tmp_path / "out")
        assert features.ids == ["a.jpg"]
        assert [failure["reason"] for failure in features.failures] == ["path_too_long"]
        os.unlink(name, dir_fd=here)
    finally:
        os.close(here)


@pytest.mark.parametrize("name", ["d" * 100, "d" * 255, "\u00e4" * 60])
def test_a_folder_deeper_than_the_system_allows_is_one_failed_entry(tmp_path, name):
    root = tmp_path / "images"
    root.mkdir()
    for beside in ("a.jpg", "z.jpg"):
        (root / beside).write_bytes(JPEG)
    here, depth = os.open(root, os.O_RDONLY), len(os.fsencode(root))
    folders = [here]
    try:
        while depth < 5_000:
            os.mkdir(name, dir_fd=here)
            (here, depth) = os.open(name, os.O_RDONLY, dir_fd=here), depth + len(os.fsencode(name)) + 1
            folders.append(here)
            os.close(os.open("x.jpg", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        features = extract(root, tmp_path / "out")
        assert features.ids == ["a.jpg", "z.jpg"]
        reasons = [failure["reason"] for failure in features.failures]
        deep = [failure["id"] for failure in features.failures if failure["id"].endswith("/")]
        assert len(deep) == 1
        assert set(deep[0].split("/")) == {name, ""}
        assert sorted(set(reasons)) in (["empty", "path_too_long"], ["path_too_long"])
    finally:
        for folder in reversed(folders[:-1]):
            below = os.open(name, os.O_RDONLY, dir_fd=folder)
            os.unlink("x.jpg", dir_fd=below)
            os.close(below)
            os.rmdir(name, dir_fd=folder)
        for folder in folders:
            os.close(folder)


def test_two_files_that_would_get_one_id_get_two(tmp_path):
    for name in (b"\xff.jpg", b"%FF.jpg"):
        Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))).write_bytes(JPEG)
    features = extract(tmp_path, tmp_path.parent / f"{tmp_path.name} out")
    assert len(set(features.ids)) == 2
    assert sum(re.fullmatch(r"%FF(~[0-9a-f]{8})?\.jpg", record_id) is not None for record_id in features.ids) == 2


def test_links_that_are_to_be_followed_are(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "a.jpg").write_bytes(JPEG)
    for name, target in {"a": "../a.jpg", "b": "/etc/passwd", "c": "/dev/zero", "d": "nowhere"}.items():
        (tmp_path / f"images/{name}.jpg").symlink_to(target)
    features = extract(tmp_path / "images", tmp_path / "out", source={"links": "follow"})
    assert features.ids == ["a.jpg"]
    assert [failure["reason"] for failure in features.failures] == ["not_image", "not_regular", "not_found"]


SABOTEUR = """
import os
from pathlib import Path
import layertap

class Saboteur(layertap.Observer):
    class Params(layertap.Params):
        path: str

    def run_started(self, run):
        folder = Path(self.params.path)
        (folder / "deleted.jpg").unlink()
        (folder / "replaced.jpg").write_bytes(b"another image altogether")
        os.truncate(folder / "truncated.jpg", 100)
        os.utime(folder / "touched.jpg")
        (folder / "swapped.jpg").unlink()
        (folder / "swapped.jpg").symlink_to("/etc/passwd")

@layertap.hookimpl
def register_observers(register):
    register("saboteur", Saboteur)
"""


def test_a_file_that_changes_after_planning_fails_and_no_other(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("deleted", "good", "replaced", "swapped", "touched", "truncated"):
        (folder / f"{name}.jpg").write_bytes(JPEG)
        os.utime(folder / f"{name}.jpg", (1, 1))
    (tmp_path / "saboteur.py").write_text(SABOTEUR)
    config = {
        "model": "tiny",
        "taps": ["classifier"],
        "source": {"type": "folder", "path": str(folder)},
        "sink": {"type": "npy", "path": str(tmp_path / "out")},
        "device": "cpu",
        "observers": [{"type": "saboteur", "path": str(folder)}],
    }
    layertap.run(config, plugins=[TINY, str(tmp_path / "saboteur.py")])
    features = layertap.open(tmp_path / "out")
    assert features.ids == ["good.jpg"]
    assert {failure["id"].removesuffix(".jpg"): failure["reason"] for failure in features.failures} == {
        "deleted": "vanished",
        "replaced": "changed",
        "swapped": "outside_root",
        "touched": "changed",
        "truncated": "changed",
    }


def test_an_output_inside_the_folder_of_images_is_refused(tmp_path):
    (tmp_path / "a.jpg").write_bytes(JPEG)
    with pytest.raises(layertap.ConfigError, match="is inside the folder of the images"):
        extract(tmp_path, tmp_path / "features")
    assert os.listdir(tmp_path) == ["a.jpg"]


def test_a_jpeg_of_thousands_of_scans_ends_with_its_time(tmp_path):
    """Half a minute's work in 70 kB, in a process that is ended when its second is over."""
    folder = tmp_path / "images"
    folder.mkdir()
    slow = encoded("JPEG", Image.new("L", (4_000, 4_000), 90), progressive=True)
    last = slow[scan_starts(slow)[-1] : -2]
    (folder / "a.jpg").write_bytes(JPEG)
    (folder / "b.jpg").write_bytes(slow[:-2] + last * 5_000 + b"\xff\xd9")
    (folder / "c.jpg").write_bytes(JPEG)
    features = extract(folder, tmp_path / "out", isolation="process", image_timeout=1.5)
    assert features.ids == ["a.jpg", "c.jpg"]
    assert features.failures == [{"id": "b.jpg", "stage": "decode", "reason": "timeout"}]
