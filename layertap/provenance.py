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
from layertap.finding import unfused
from layertap.plugins import Plugins
from layertap.prepared import Prepared
from layertap.records import Column

_LIBRARIES = ("layertap", "torch", "torchvision", "pillow", "numpy")


def manifest(this: Prepared) -> dict[str, Any]:
    """The manifest of a run that is about to start."""
    info = this.info
    return {
        "run": info.id,
        "config": dict(info.config),
        "fingerprint": _fingerprint(this),
        "model": dict(info.about),
        "taps": {name: _column(column) for name, column in info.columns.items()},
        "unfused": unfused(this.line.tapped.module, [column.tap.layer for column in info.columns.values()]),
        "planned": info.planned,
        "batch_size": info.batch_size,
        "shard_rows": info.shard_rows,
        "device": info.device,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "host": {"name": socket.gethostname(), "system": platform.platform()},
    }


def _fingerprint(this: Prepared) -> dict[str, Any]:
    """Everything that can change a value or the place of a row, by name; two runs with equal ones give equal bytes."""
    info, preprocessor = this.info, this.line.preprocessor
    return {
        "model": _without_place(info.config["model"], info.about),
        "about": _without_place(info.about, info.about),
        "taps": info.config["taps"],
        "columns": {name: [list(column.shape), column.dtype] for name, column in info.columns.items()},
        "preprocess": {"class": type(preprocessor).__name__, **_params(preprocessor)},
        "source": info.config["source"]["type"],
        "images": this.plan.count,
        "ids": this.plan.digest,
        "file sizes and times": this.plan.contents,
        "sink": info.config["sink"]["type"],
        "batch_size": info.batch_size,
        "shard_rows": info.shard_rows,
        "device": info.device.partition(":")[0],
        "threads": torch.get_num_threads(),
        "tf32": torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32,
        **{f"version of {name}": version for name, version in _versions(this.config, this.plugins).items()},
    }


def _without_place(facts: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """Facts about a model without where its weights lie, if their digest says what they are."""
    places = ("weights", "weights_file") if about.get("weights_sha256") else ()
    return {key: value for key, value in facts.items() if key not in places}


def _params(preprocessor: Preprocessor) -> dict[str, Any]:
    params = preprocessor.params
    return {} if params is None else dict(params.model_dump(mode="json"))


def _versions(config: RunConfig, plugins: Plugins) -> dict[str, str]:
    """The versions of the libraries that compute, and of every distribution whose plugins take part."""
    found = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    used = [(kind, getattr(config, key).type) for key, kind in PARTS.items()]
    used += [("reducer", spec.type) for tap in config.taps for spec in tap.reduce]
    for kind, type_name in used:
        registered = plugins.tables[kind].get(type_name)
        if registered is not None:
            found[registered.distribution] = registered.version
    return found


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
        "reduce": list(tap.reduce),
        "raw": {"shape": list(tap.shape), "dtype": tap.dtype, "axes": tap.axes},
        "nonfinite": None,
    }
