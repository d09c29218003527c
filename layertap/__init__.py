"""layertap: point it at images, name layers, get their activations."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layertap.config.model import RunConfig
    from layertap.contracts import (
        Engine,
        FileSink,
        LoadedModel,
        ModelProvider,
        Observer,
        Params,
        Preprocessor,
        Reducer,
        Sink,
        Source,
    )
    from layertap.errors import (
        ConfigError,
        ImageError,
        LayertapError,
        PluginError,
        StoreError,
        TapError,
        UnsafeError,
        WeightsError,
        missing_extra,
    )
    from layertap.hookspecs import hookimpl
    from layertap.images.exif import exif_orientation
    from layertap.images.files import file_stamp, open_regular
    from layertap.images.limits import MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS
    from layertap.images.metadata import plain_value
    from layertap.looking.features import open_features as open
    from layertap.pipeline.crew import Crew
    from layertap.pipeline.crew_engine import CrewEngine
    from layertap.pipeline.pipeline import extract, run
    from layertap.pipeline.worker import Worker
    from layertap.records import (
        Activations,
        Batch,
        Failure,
        ImageRecord,
        Job,
        Receipt,
        Report,
        RunInfo,
        Shard,
        TapInfo,
        WorkerReport,
    )
    from layertap.taps.grammar import Tap
    from layertap.taps.survey import survey as layers
    from layertap.taps.tapped import TappedModel, tap

# Where each public name lives: nothing is imported before it is asked for, so that `import layertap` stays instant.
_HOMES = {
    "pipeline.pipeline": ("extract", "run"),
    "pipeline.crew": ("Crew",),
    "pipeline.crew_engine": ("CrewEngine",),
    "pipeline.worker": ("Worker",),
    "taps.tapped": ("TappedModel", "tap"),
    "taps.grammar": ("Tap",),
    "config.model": ("RunConfig",),
    "contracts": (
        "Engine",
        "FileSink",
        "LoadedModel",
        "ModelProvider",
        "Observer",
        "Params",
        "Preprocessor",
        "Reducer",
        "Sink",
        "Source",
    ),
    "records": (
        "Activations",
        "Batch",
        "Failure",
        "ImageRecord",
        "Job",
        "Receipt",
        "Report",
        "RunInfo",
        "Shard",
        "TapInfo",
        "WorkerReport",
    ),
    "hookspecs": ("hookimpl",),
    "errors": (
        "ConfigError",
        "ImageError",
        "LayertapError",
        "PluginError",
        "StoreError",
        "TapError",
        "UnsafeError",
        "WeightsError",
        "missing_extra",
    ),
    "images.exif": ("exif_orientation",),
    "images.files": ("file_stamp", "open_regular"),
    "images.limits": ("MAX_IMAGE_BYTES", "MAX_IMAGE_PIXELS"),
    "images.metadata": ("plain_value",),
}
_PUBLIC = {name: (home, name) for home, names in _HOMES.items() for name in names}
_PUBLIC |= {"open": ("looking.features", "open_features"), "layers": ("taps.survey", "survey")}

__all__ = [
    "MAX_IMAGE_BYTES",
    "MAX_IMAGE_PIXELS",
    "Activations",
    "Batch",
    "ConfigError",
    "Crew",
    "CrewEngine",
    "Engine",
    "Failure",
    "FileSink",
    "ImageError",
    "ImageRecord",
    "Job",
    "LayertapError",
    "LoadedModel",
    "ModelProvider",
    "Observer",
    "Params",
    "PluginError",
    "Preprocessor",
    "Receipt",
    "Reducer",
    "Report",
    "RunConfig",
    "RunInfo",
    "Shard",
    "Sink",
    "Source",
    "StoreError",
    "Tap",
    "TapError",
    "TapInfo",
    "TappedModel",
    "UnsafeError",
    "WeightsError",
    "Worker",
    "WorkerReport",
    "exif_orientation",
    "extract",
    "file_stamp",
    "hookimpl",
    "layers",
    "missing_extra",
    "open",
    "open_regular",
    "plain_value",
    "run",
    "tap",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("layertap")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'layertap' has no attribute {name!r}")
    home, attribute = _PUBLIC[name]
    value = getattr(importlib.import_module(f"layertap.{home}"), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
