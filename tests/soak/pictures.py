"""The images of a trial, and the required result of a run over them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from PIL import Image

COUNT = 26
BATCH = 2
SHARD = 4
SHARDS = -(-COUNT // SHARD)
BAD = (5, 12, 13, 14, 15)
"""The numbers of the files that are not images: one, and all of a shard."""


def draw(folder: Path) -> Path:
    """26 small JPEGs in two folders, five of them not JPEGs at all."""
    for number in range(COUNT):
        path = folder / ("cats" if number < 11 else "dogs") / f"{number:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number in BAD:
            path.write_bytes(b"no image at all")
        else:
            Image.effect_noise((24, 20), 40 + 5 * number).convert("RGB").save(path)
    return folder


def config(pictures: Path, out: Path, sink: str = "npy", **changes: Any) -> dict[str, Any]:
    """A run over them: seven shards, two taps, one of them in bfloat16 if the sink can store it."""
    second: Any = {"layer": "classifier", "name": "classifier"}
    if sink == "npy":
        second["dtype"] = "bfloat16"
    return {
        "model": "tiny",
        "taps": ["features.0", second],
        "source": {"type": "folder", "path": str(pictures)},
        "preprocess": "shrunk",
        "sink": {"type": sink, "path": str(out)},
        "device": "cpu",
        "batch_size": BATCH,
        "shard_rows": SHARD,
        "workers": 2,
        "observers": ["diary"],
        **changes,
    }


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file of an output; only the names of folders, and of manifest and commit records, which contain times."""
    found: dict[str, bytes | None] = {}
    for root, folders, files in os.walk(folder):
        below = Path(root).relative_to(folder)
        found |= {f"{below / name}/": None for name in folders}
        for name in files:
            has_times = name == "manifest.json" or below.name == "commits"
            found[str(below / name)] = None if has_times else (folder / below / name).read_bytes()
    return found


def whole_shards() -> set[int]:
    """The number of rows after each number of shards."""
    return {sum(number not in BAD for number in range(end)) for end in (*range(0, COUNT, SHARD), COUNT)}


def shards_seen(seen: dict[str, Any]) -> int:
    """The number of shards that a reader has seen."""
    return -(-(seen["rows"] + seen["failed"]) // SHARD) if seen["rows"] is not None else 0
