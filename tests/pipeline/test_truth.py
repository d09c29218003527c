"""What layertap is for: the values are those of the plain loop, to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import layertap

BATCH = 32


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory):
    """AlexNet with seeded weights, and the file they are in."""
    from torchvision.models import alexnet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = alexnet(weights=None).eval()
    path = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    torch.save(model.state_dict(), path)
    return model, path


@pytest.fixture(scope="module")
def folder(tmp_path_factory, photographs) -> Path:
    """Ninety-six JPEGs of odd sizes."""
    root = tmp_path_factory.mktemp("ninety-six")
    for number in range(96):
        image = photographs[number % len(photographs)]
        width, height = 180 + 7 * (number % 31), 150 + 5 * (number % 29)
        image.crop((number, number // 2, number + width, number // 2 + height)).save(root / f"{number:03d}.jpeg")
    return root


def plain_loop(model: nn.Module, folder: Path) -> dict[str, torch.Tensor]:
    """What a careful user would write: no hooks, in-place operations off."""
    from torchvision.models import AlexNet_Weights

    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    transform = AlexNet_Weights.DEFAULT.transforms()
    found: dict[str, list[torch.Tensor]] = {"features.0": [], "classifier.5": []}
    paths = sorted(folder.iterdir())
    with torch.no_grad():
        for start in range(0, len(paths), BATCH):
            batch = torch.stack([transform(Image.open(p).convert("RGB")) for p in paths[start : start + BATCH]])
            found["features.0"].append(model.features[0](batch))
            flat = torch.flatten(model.avgpool(model.features(batch)), 1)
            found["classifier.5"].append(model.classifier[:6](flat))
    return {name: torch.cat(values) for name, values in found.items()}


def test_alexnet_equals_the_plain_loop_to_the_bit(alexnet, folder, tmp_path):
    model, weights = alexnet
    report = layertap.run(
        {
            "model": {"type": "torchvision", "name": "alexnet", "weights": str(weights)},
            "taps": ["features.0", "classifier.5"],
            "source": {"type": "folder", "path": str(folder)},
            "sink": {"type": "npy", "path": str(tmp_path / "features")},
            "batch_size": BATCH,
            "device": "cpu",
            "observers": [],
        }
    )
    assert (report.planned, report.kept, report.failed) == (96, 96, 0)
    features = layertap.open(tmp_path / "features")
    expected = plain_loop(model, folder)
    assert features.ids == [path.name for path in sorted(folder.iterdir())]
    for name, values in expected.items():
        stored = np.load(tmp_path / "features" / f"{name}.npy")
        assert stored.shape == tuple(values.shape)
        assert np.abs(stored - values.numpy()).max() == 0
        assert np.array_equal(np.asarray(features[name]), stored)
    assert expected["features.0"].min() < 0  # a kept reference would show the ReLU behind it
    assert features["classifier.5"].shape == (96, 4096)


def test_one_image_gives_one_row(alexnet, folder):
    model, _ = alexnet
    from torchvision.models import AlexNet_Weights

    image = sorted(folder.iterdir())[0]
    (batch,) = layertap.extract(
        model, image, ["classifier.5"], preprocess=AlexNet_Weights.DEFAULT.transforms(), device="cpu"
    )
    assert batch.values["classifier.5"].shape == (1, 4096)
    assert [record.id for record in batch.records] == [image.name]
