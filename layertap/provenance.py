"""What a run depends on: the fingerprint that a resume must meet, and the manifest's facts."""

from __future__ import annotations

import importlib.metadata
import platform
import socket
from collections.abc import Mapping
from typing import Any

import torch

from layertap.config import PARTS, RunConfig
from layertap.contracts import Preprocessor
from layertap.plan import Plan
from layertap.plugins import Plugins
from layertap.records import Column, RunInfo

_LIBRARIES = ("layertap", "torch", "torchvision", "pillow", "numpy")


def fingerprint(
    config: RunConfig, plugins: Plugins, run: RunInfo, plan: Plan, preprocessor: Preprocessor
) -> dict[str, Any]:
    """Everything that can change a value or the place of a row, by name; two runs with equal ones give equal bytes."""
    plain = config.plain()
    return {
        "model": plain["model"],
        "about": dict(run.about),
        "taps": plain["taps"],
        "columns": {name: [list(column.shape), column.dtype] for name, column in run.columns.items()},
        "preprocess": described(preprocessor),
        "source": plain["source"],
        "images": plan.count,
        "ids": plan.digest,
        "sink": plain["sink"]["type"],
        "batch_size": run.batch_size,
        "shard_rows": run.shard_rows,
        "device": run.device.partition(":")[0],
        "threads": torch.get_num_threads(),
        "tf32": torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32,
        **{f"version of {name}": version for name, version in _versions(config, plugins).items()},
    }


def manifest(config: RunConfig, run: RunInfo, prints: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of a run that is about to start."""
    return {
        "run": run.id,
        "config": config.plain(),
        "fingerprint": dict(prints),
        "model": dict(run.about),
        "taps": {name: _column(column) for name, column in run.columns.items()},
        "planned": run.planned,
        "batch_size": run.batch_size,
        "shard_rows": run.shard_rows,
        "device": run.device,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "host": {"name": socket.gethostname(), "system": platform.platform()},
    }


def _versions(config: RunConfig, plugins: Plugins) -> dict[str, str]:
    """The versions of the libraries that compute, and of every distribution whose plugins take part."""
    found = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    for key, kind in PARTS.items():
        registered = plugins.tables[kind].get(getattr(config, key).type)
        if registered is not None:
            found[registered.distribution] = registered.version
    return found


def described(preprocessor: Preprocessor) -> dict[str, Any]:
    """A preprocessor as data: its class and its parameters."""
    params = preprocessor.params
    return {"class": type(preprocessor).__name__, **(params.model_dump(mode="json") if params is not None else {})}


def _column(column: Column) -> dict[str, Any]:
    tap = column.tap
    return {
        "layer": tap.layer,
        "side": tap.side,
        "call": tap.call,
        "select": list(tap.select),
        "shape": list(column.shape),
        "dtype": column.dtype,
        "file": column.file,
        "raw": {"shape": list(tap.shape), "dtype": tap.dtype, "axes": tap.axes},
        "nonfinite": None,
    }
