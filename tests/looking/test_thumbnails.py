"""Pictures of an output's images: from the source as it is now, and never of something else."""

from __future__ import annotations

import io
import os
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import layertap
from layertap.looking.thumbnails import Thumbnail, thumbnails
from tests.conftest import TINY
from tests.looking.table import numbered
from tests.looking.tables import TABLE, output, seeded
from tests.pipeline.test_pipeline import run


def photos(folder: Path, count: int = 8, size: tuple[int, int] = (40, 30)) -> Path:
    """Images of which each has a grey of its own, older than any run."""
    folder.mkdir()
    for number in range(count):
        path = folder / f"{number}.png"
        Image.new("RGB", size, (number * 20, 0, 0)).save(path)
        os.utime(path, (1e9, 1e9))
    return folder


@pytest.fixture
def images(tmp_path) -> Path:
    return photos(tmp_path / "images")


def extracted(tmp_path: Path, images: Path, **changes):
    return output(tmp_path, seeded(8, 4), source={"type": "folder", "path": str(images)}, **changes)


def shown(found: Thumbnail) -> np.ndarray:
    assert found.data is not None, found.reason
    return np.asarray(Image.open(io.BytesIO(found.data)))


def reasons(found: list[Thumbnail]) -> list[str | None]:
    return [one.reason for one in found]


def test_thumbnails_are_of_their_rows_in_the_order_of_the_rows(tmp_path, images):
    features = extracted(tmp_path, images)
    found = list(thumbnails(features, [5, 2, 2, 7], side=20))
    assert [(one.row, one.id) for one in found] == [(2, "2.png"), (5, "5.png"), (7, "7.png")]
    for one in found:
        assert shown(one).shape == (15, 20, 3)
        assert abs(int(shown(one)[7, 10, 0]) - 20 * one.row) < 4
    assert not any(one.may_differ for one in found)


def test_images_that_are_gone_or_changed_say_so_and_the_others_are_shown(tmp_path, images):
    features = extracted(tmp_path, images)
    (images / "1.png").unlink()
    (images / "3.png").write_bytes((images / "4.png").read_bytes())
    (images / "new.png").write_bytes((images / "4.png").read_bytes())
    found = list(thumbnails(features, range(8)))
    assert reasons(found) == [None, "gone", None, "changed since the run", None, None, None, None]
    assert not any(one.may_differ for one in found)
    assert abs(int(shown(found[2])[0, 0, 0]) - 40) < 4


@pytest.mark.parametrize("kind", ["unreadable", "no image", "a folder", "a pipe"])
def test_image_that_became_something_else_has_a_reason(tmp_path, images, kind):
    features = extracted(tmp_path, images)
    (images / "1.png").unlink()
    if kind == "a folder":
        (images / "1.png").mkdir()
    elif kind == "a pipe":
        os.mkfifo(images / "1.png")
    else:
        (images / "1.png").write_bytes(b"no image")
        os.utime(images / "1.png", (1e9, 1e9))
        if kind == "unreadable":
            (images / "1.png").unlink()
            (images / "1.png").symlink_to(images / "nothing.png")
    found = list(thumbnails(features, range(8)))
    assert found[1].data is None
    assert found[1].reason
    assert reasons(found[:1] + found[2:]) == [None] * 7


def test_copied_folder_is_shown_with_a_doubt(tmp_path, images):
    features = extracted(tmp_path, images)
    shutil.copytree(images, tmp_path / "copy", copy_function=shutil.copyfile)
    shutil.rmtree(images)
    found = list(thumbnails(features, range(8), overrides={"source.path": str(tmp_path / "copy")}))
    assert reasons(found) == [None] * 8
    assert all(one.may_differ for one in found)


def test_image_that_an_older_file_replaced_raises_a_doubt(tmp_path, images):
    features = extracted(tmp_path, images)
    (images / "3.png").write_bytes((images / "4.png").read_bytes())
    os.utime(images / "3.png", (9e8, 9e8))
    assert all(one.may_differ for one in thumbnails(features, range(8)))


def test_shards_are_judged_one_by_one_also_where_images_failed(tmp_path, images):
    (images / "0.png").write_bytes(b"no image")
    features = extracted(tmp_path, images, batch_size=2, shard_rows=2)
    (images / "5.png").write_bytes((images / "4.png").read_bytes())
    found = list(thumbnails(features, range(7)))
    assert [one.id for one in found] == [f"{number}.png" for number in range(1, 8)]
    assert reasons(found) == [None, None, None, None, "changed since the run", None, None]


def test_output_without_its_source_has_a_reason_for_each_image(tmp_path, images):
    features = extracted(tmp_path, images)
    shutil.rmtree(images)
    found = list(thumbnails(features, [1, 4]))
    assert [one.id for one in found] == ["1.png", "4.png"]
    assert all(one.data is None and str(images) in (one.reason or "") for one in found)
    with pytest.raises(layertap.ConfigError, match="unknown key"):
        list(thumbnails(features, [1], overrides={"source.nothing": "x"}))


def test_nothing_is_fetched_from_a_machine_that_is_not_named(tmp_path, images):
    features = extracted(tmp_path, images)
    features.manifest["config"]["source"] = {"type": "manifest", "path": str(tmp_path / "list.csv"), "column": "url"}
    (tmp_path / "list.csv").write_text("url\nhttps://example.invalid/0.png\n")
    found = list(thumbnails(features, [0]))
    assert reasons(found) == ["not fetched from example.invalid"]


def test_limits_of_a_manifest_do_not_hold_here(tmp_path, images):
    features = extracted(tmp_path, images)
    features.manifest["config"] |= {"max_pixels": 10**12, "image_memory": 10**6}
    data = (images / "1.png").read_bytes()
    header = b"IHDR" + (50_000).to_bytes(4, "big") * 2 + data[24:29]
    (images / "1.png").write_bytes(data[:12] + header + zlib.crc32(header).to_bytes(4, "big") + data[33:])
    os.utime(images / "1.png", (1e9, 1e9))
    assert reasons(list(thumbnails(features, [1]))) == ["cannot be read: too_large"]
    assert reasons(list(thumbnails(features, [2], overrides={"max_pixels": 10}))) == ["cannot be read: too_large"]


def test_photographs_are_upright_and_any_mode_is_drawn(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    half = Image.new("RGB", (64, 32))
    half.paste((255, 255, 255), (0, 0, 32, 32))
    half.save(images / "a.jpg", exif=exif)
    for number, mode in enumerate(["1", "L", "LA", "P", "RGBA", "I;16"]):
        Image.new(mode, (30, 20)).save(images / f"b{number}.png")
    Image.new("CMYK", (30, 20)).save(images / "c.jpg")
    Image.new("L", (4000, 1)).save(images / "d.png")
    features = output(tmp_path, seeded(9, 4), source={"type": "folder", "path": str(images)})
    found = list(thumbnails(features, range(9)))
    assert reasons(found) == [None] * 9
    turned = shown(found[0])
    assert turned.shape == (64, 32, 3)
    assert turned[5].mean() > 200 > 50 > turned[-5].mean()


def test_images_of_a_source_without_files_are_shown(tmp_path):
    features = output(tmp_path, seeded(40, 4))
    found = list(thumbnails(features, [39, 3], plugins=[TABLE]))
    assert [one.id for one in found] == ["0003.png", "0039.png"]
    assert abs(shown(found[1])[0, 0].astype(int) - np.asarray(numbered(39))[0, 0]).max() < 6
    assert reasons(list(thumbnails(features, [3])))[0] is not None  # without the plugin


def test_source_of_another_order_gives_each_row_its_own_picture(tmp_path):
    features = output(tmp_path, seeded(8, 4), numbers=list(range(8)))
    found = list(thumbnails(features, range(8), overrides={"source.numbers": [7, 1, 0, 3, 2]}, plugins=[TABLE]))
    assert reasons(found) == [None, None, None, None, "gone", "gone", "gone", None]
    assert [one.row for one in found] == list(range(8))


@pytest.mark.parametrize("config", [{"later": 1}, {"source": 5}, {"source": {"type": "folder", "path": 3}}, {}])
def test_configuration_that_cannot_be_loaded_is_a_reason(tmp_path, images, config):
    features = extracted(tmp_path, images)
    features.manifest["config"] = {**features.manifest["config"], **config} if config else {}
    (found,) = thumbnails(features, [2])
    assert (found.id, found.data) == ("2.png", None)
    assert found.reason
    assert features._repr_html_()


def test_images_of_an_unfinished_output_are_shown(photos, tmp_path):
    with pytest.raises(layertap.PluginError):
        run(photos, tmp_path / "out", shard_rows=4, observers=[{"type": "stop", "after": 12}])
    features = layertap.open(tmp_path / "out", plugins=[TINY])
    found = list(thumbnails(features, range(len(features.ids))))
    assert [one.id for one in found] == features.ids
    assert reasons(found) == [None] * len(found)
    assert not any(one.may_differ for one in found)
