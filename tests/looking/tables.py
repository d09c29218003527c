"""Outputs that hold given values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

import layertap
from layertap.looking.features import Features

TABLE = str(Path(__file__).with_name("table.py"))


def output(
    folder: Path,
    *tables: np.ndarray,
    dtype: str | None = None,
    meta: dict[str, list[Any]] | None = None,
    numbers: list[int] | None = None,
    sink: str = "npy",
    **changes: Any,
) -> Features:
    """An output whose taps `tap0`, `tap1` ... hold the rows of these tables, extracted by a model that holds them."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "weights.npz", **{f"tap{number}": table for number, table in enumerate(tables)})
    source: dict[str, Any] = {"type": "numbered", "numbers": numbers or list(range(len(tables[0])))}
    if meta is not None:
        (folder / "meta.json").write_text(json.dumps(meta))
        source["meta"] = str(folder / "meta.json")
    config = {
        "model": {"type": "table", "weights": str(folder / "weights.npz")},
        "taps": [{"layer": f"tap{n}", **({"dtype": dtype} if dtype else {})} for n in range(len(tables))],
        "source": source,
        "sink": {"type": sink, "path": str(folder / "out")},
        "device": "cpu",
        "batch_size": 16,
        "observers": [],
        **changes,
    }
    layertap.run(config, plugins=[TABLE])
    return opened(folder)


def opened(folder: Path) -> Features:
    found = layertap.open(folder / "out", plugins=[TABLE])
    assert isinstance(found, Features)
    return found


def seeded(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
