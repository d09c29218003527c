"""What a run depends on: the fingerprint that a resumed run must match, and the manifest's facts."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, cast

import torch

from layertap.config.model import PARTS, RunConfig
from layertap.contracts import Preprocessor
from layertap.errors import PluginError
from layertap.images.decoding import decode
from layertap.images.plan import Plan
from layertap.pipeline.prepare import Prepared
from layertap.pipeline.processor import processor
from layertap.plugins import Plugins
from layertap.records import Column
from layertap.store.manifest import FILES, Manifest, RawFacts, TapFacts
from layertap.taps.layers import unfused

_LIBRARIES = ("layertap", "torch", "torchvision", "pillow", "numpy")

# What changes no more than last bits.
_SOFT = ("device", "processor", "threads", "tf32", "shard_rows", FILES)

OF_IMAGES = ("source", "images", "ids", FILES, "sink", "batch_size")
"""The keys of a fingerprint that say which images there are and where their rows go, not what computes them."""


def manifest(this: Prepared) -> Manifest:
    """The manifest of a run that is about to start."""
    info = this.info
    return Manifest(
        layertap=1,
        run=info.id,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        config=dict(info.config),
        fingerprint=_plain(_fingerprint(this)),
        model=_plain(info.about),
        versions=_versions(this.config, this.plugins),
        taps={name: _tap_facts(column) for name, column in info.columns.items()},
        unfused=unfused(
            this.forward.tapped.module,
            [column.tap.layer for column in info.columns.values()],
            [column.tap.layer for column in info.columns.values() if column.tap.op is not None],
        ),
        planned=info.planned,
        batch_size=info.batch_size,
        shard_rows=info.shard_rows,
        device=info.device,
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        host={"name": socket.gethostname(), "system": platform.platform()},
    )


def soft(*written: Manifest) -> tuple[str, ...]:
    """The keys of fingerprints whose change can change last bits and no more."""
    return (*_SOFT, *(key for one in written for key in one.fingerprint if key.startswith("version of ")))


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts as they will be read back. Raises `PluginError` for what JSON cannot hold."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(facts), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise PluginError(
            f"the facts about the model or a plugin's parameters cannot be written as JSON: {error}"
        ) from error
    return plain


def _fingerprint(this: Prepared) -> dict[str, Any]:
    """Everything that can change a value or the place of a row, by name; two runs with equal ones give equal bytes."""
    info, preprocessor = this.info, this.forward.preprocessor
    # Not the limits (image_timeout, image_memory, max_pixels): they decide which images fail, and change no good row.
    return {
        "model": _named(info.config["model"], info.about),
        "about": _without_place(info.about, info.about),
        **before_the_model(this.config, this.plugins, this.plan, this.forward.device),
        "columns": {name: [list(column.shape), column.dtype] for name, column in info.columns.items()},
        "preprocess": {"class": type(preprocessor).__name__, **_params(preprocessor)},
        "profile": {**this.config.profile.model_dump(), "decode": "scaled" if this.enough else "whole"},
        "batch_size": info.batch_size,
        "shard_rows": info.shard_rows,
        **_computing(this.config, {"processor": processor(this.forward.device)}),
        "threads": torch.get_num_threads(),
        "tf32": torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32,
    }


def before_the_model(config: RunConfig, plugins: Plugins, plan: Plan, device: torch.device) -> dict[str, Any]:
    """The part of the fingerprint that is known before a model is loaded."""
    written = config.plain()
    known = {
        "taps": written["taps"],
        "formats": sorted(config.formats),
        "decoders": decode.decoders(config.formats),
        "autocast": config.autocast,
        **_seeding(config),
        "source": written["source"]["type"],
        "images": plan.count,
        "ids": plan.digest,
        FILES: plan.contents,
        "sink": written["sink"]["type"],
        **({"batch_size": config.batch_size} if isinstance(config.batch_size, int) else {}),
        **({"shard_rows": config.shard_rows} if config.shard_rows else {}),
        **_computing(config, {"device": device.type}),
        **{f"version of {name}": version for name, version in _versions(config, plugins).items()},
    }
    return _plain(known)


def _computing(config: RunConfig, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts about the processor that computes; none yet where an engine's workers do."""
    if config.processors == "any":
        return dict.fromkeys(facts, "any")
    return {} if config.engine else dict(facts)


def _seeding(config: RunConfig) -> dict[str, str]:
    """Nothing where a model is not seeded: outputs from before this could be configured have no such entry."""
    return {} if config.nondeterministic == "refuse" else {"nondeterministic": config.nondeterministic}


def _without_place(facts: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """Facts about a model without the location of its weights, if their digest identifies them."""
    places = ("weights", "weights_file") if about.get("weights_sha256") else ()
    return {key: value for key, value in facts.items() if key not in places}


def _named(model: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """The model as configured; whether its digest was also required makes no difference."""
    return {key: value for key, value in _without_place(model, about).items() if key != "weights_sha256"}


def _params(preprocessor: Preprocessor) -> dict[str, Any]:
    params = preprocessor.params
    return {} if params is None else dict(params.model_dump(mode="json"))


def _versions(config: RunConfig, plugins: Plugins) -> dict[str, str]:
    """The versions of the libraries that compute, and of every distribution whose plugins take part."""
    found = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    used = [(kind, getattr(config, key).type) for key, kind in PARTS.items() if key != "engine"]
    used += [("reducer", spec.type) for tap in config.taps for spec in tap.reduce]
    for kind, type_name in used:
        registered = plugins.get(kind, type_name)
        if registered is not None:
            found[registered.distribution] = registered.version
    return found


def _tap_facts(column: Column) -> TapFacts:
    tap = column.tap
    return TapFacts(
        layer=tap.layer,
        side=tap.side,
        call=tap.call,
        select=list(tap.select),
        shape=list(column.shape),
        dtype=cast(Any, column.dtype),
        file=column.file,
        reduce=list(tap.reduce),
        raw=RawFacts(shape=list(tap.shape), dtype=tap.dtype, axes=tap.axes),
        nonfinite=None,
        op=tap.op,
        index=tap.index,
        derived=tap.derived,
        batch_axis=tap.batch_axis,
    )


def computed_by(this: Prepared) -> dict[str, Any]:
    """What computes the shards of a run, as the fingerprint has it."""
    return _plain(processor(this.forward.device))
