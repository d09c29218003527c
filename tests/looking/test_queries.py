"""A query image goes the whole way that the images of the output went: its size, its model, its reducers."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from PIL import Image

import layertap
from layertap.cli.main import app
from tests.conftest import TINY
from tests.pipeline.test_sizes import PLUGIN, SIZES, pictures

POOLED = [{"layer": "0", "reduce": ["mean_pool"]}, {"layer": "2", "reduce": ["mean_pool"], "dtype": "float16"}]
HALVES = [{"layer": "features.0", "reduce": ["flatten", {"type": "random_projection", "dim": 16}]}]


@pytest.fixture
def plugin(tmp_path) -> str:
    (tmp_path / "padded.py").write_text(PLUGIN)
    return str(tmp_path / "padded.py")


def saved(folder: Path, images: list[Image.Image]) -> Path:
    folder.mkdir()
    for number, image in enumerate(images):
        image.save(folder / f"{number}.png")
    return folder


def extracted(tmp_path: Path, folder: Path, plugin: str, taps: list, **changes):
    config = {
        "model": {"type": "convolutions"},
        "preprocess": {"type": "padded"},
        "source": {"type": "folder", "path": str(folder)},
        "sink": {"type": "npy", "path": str(tmp_path / "out")},
        "device": "cpu",
        "batch_size": 2,
        "observers": [],
        "taps": taps,
        **changes,
    }
    layertap.run(config, plugins=[plugin])
    return layertap.open(tmp_path / "out", plugins=[plugin])


@pytest.mark.parametrize("tap", ["0", "2"])
def test_images_of_any_size_are_searched_where_the_model_takes_them(tmp_path, plugin, tap):
    folder = saved(tmp_path / "images", pictures())
    features = extracted(tmp_path, folder, plugin, POOLED)
    for number in range(len(SIZES)):
        found = features.search(folder / f"{number}.png", tap=tap, k=3)
        assert found[0].row == number
        assert found[0].value == pytest.approx(1, abs=1e-6)
    found = features.search([folder], tap=tap, k=1)
    assert [one[0].row for one in found] == list(range(len(SIZES)))
    other = Image.open(folder / "0.png").resize((200, 150))
    assert len(features.search(other, tap=tap, k=3)) == 3


def test_image_of_another_size_than_a_map_takes_fails_alone(tmp_path, plugin, capsys):
    folder = saved(tmp_path / "images", pictures([(40, 30)] * 4))
    features = extracted(tmp_path, folder, plugin, ["0"])
    assert features.search(folder / "2.png", k=1)[0].row == 2
    other = saved(tmp_path / "other", pictures([(70, 20)]))
    with pytest.raises(layertap.ImageError, match=r"0\.png' cannot be used: shape \(prepare\)"):
        features.search(other / "0.png")
    arguments = ["search", str(tmp_path / "out"), str(other), "--plugin", plugin]
    assert typer.main.get_command(app).main(arguments, standalone_mode=False) == 3
    assert "'0.png' cannot be used: shape (prepare)" in capsys.readouterr().err


@pytest.mark.parametrize("taps", [HALVES, [{"layer": "features.3", "dtype": "float16"}], ["classifier"]])
def test_query_goes_through_the_reducers_of_its_tap(tmp_path, taps):
    folder = saved(tmp_path / "images", pictures([(30, 30)] * 9))
    config = {"model": {"type": "tiny"}, "preprocess": {"type": "model"}}
    features = extracted(tmp_path, folder, TINY, taps, **config)
    found = features.search(folder / "7.png", k=9)
    assert found[0].row == 7
    assert found[0].value == pytest.approx(1, abs=1e-6)
    assert [hit.row for hit in features.search("7.png", k=9)] == [hit.row for hit in found]


def test_other_preprocessing_or_reducer_is_refused(tmp_path):
    folder = saved(tmp_path / "images", pictures([(30, 30)] * 4))
    config = {"model": {"type": "tiny"}, "preprocess": {"type": "tiny_squash", "size": 16}}
    features = extracted(tmp_path, folder, TINY, ["classifier"], **config)
    for key, value in (
        ("model.seed", 1),
        ("preprocess.size", 17),
        ("taps", [{"layer": "features", "name": "classifier"}]),
    ):
        with pytest.raises(layertap.LayertapError) as caught:
            features.search(folder / "0.png", overrides={key: value})
        assert caught.value.code in (2, 6), key
