"""A complete run around the plugin under test: drawn images, a model of three layers, and real outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layertap.config.loading import load_config
from layertap.contracts import Engine, LoadedModel, ModelProvider, Plugin, Preprocessor, Source
from layertap.hookspecs import hookimpl
from layertap.pipeline.pipeline import run_loaded
from layertap.plugins import Plugins, Registered
from layertap.records import ImageRecord, Report, RunInfo

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor
    from torch.nn import Module

TESTED = "tested"
_KIT = "layertap.testing"
FAILS = f"{_KIT}.fails"
FAULT = "this model takes no images"

BATCH = 2
IMAGES = 11
# One among good images, and a whole shard, which then has no rows.
UNREADABLE = (2, 6, 7)

# A map, vectors in every dtype that a tap can request, and names that are difficult as file names.
TAPS = [
    {"layer": "pool", "name": "maps/of é"},
    {"layer": "flat", "name": "flat"},
    {"layer": "flat", "name": "FLAT", "dtype": "float16"},
    {"layer": "flat", "name": "aux", "dtype": "bfloat16"},
]


class Drawn(Source):
    """Eleven drawn images, of which three cannot be read."""

    def records(self) -> Iterator[ImageRecord]:
        for number in range(IMAGES):
            data = _unreadable if number in UNREADABLE else partial(_drawn, number)
            yield ImageRecord(f"drawn/{number:02d}", data, {"number": number, "half": number / 2, "note": None})


class Small(Preprocessor):
    """16 x 16 pixels."""

    def prepare(self, image: Image.Image) -> Tensor:
        import torch

        pixels = bytearray(image.convert("RGB").resize((16, 16)).tobytes())
        return torch.frombuffer(pixels, dtype=torch.uint8).reshape(16, 16, 3).permute(2, 0, 1)

    def finish(self, batch: Tensor) -> Tensor:
        return batch / 255 - 0.5


class Pools(ModelProvider):
    """A pool, an in-place ReLU and a flatten: no weights, and no linear algebra library that a fork could break."""

    def load(self) -> LoadedModel:
        from torch import nn

        module = nn.Sequential()
        module.add_module("pool", nn.AvgPool2d(4))
        module.add_module("relu", nn.ReLU(inplace=True))
        module.add_module("flat", nn.Flatten())
        return LoadedModel(module, Small(), {"name": "pools", "weights": "none", "layout": "NCHW"})


class Fails(Pools):
    """The same, but it raises for every drawn image. These are grey, as what a model is probed with is not."""

    def load(self) -> LoadedModel:
        loaded = super().load()
        loaded.module.register_forward_pre_hook(_fail)
        return loaded


@hookimpl
def register_models(register: Callable[[str, type[ModelProvider]], None]) -> None:
    """For the workers of an engine, which find this module by its name."""
    register(_KIT, Pools)
    register(FAILS, Fails)


@hookimpl
def register_sources(register: Callable[[str, type[Source]], None]) -> None:
    """For the workers of an engine, too."""
    register(_KIT, Drawn)


def tables(**tested: type[Plugin]) -> Plugins:
    """The installed plugins, this module's parts and the classes under test, which are named after their kind."""
    plugins = Plugins.load()
    own: list[tuple[str, str, type[Plugin]]]
    own = [("source", _KIT, Drawn), ("model", _KIT, Pools), *((kind, TESTED, cls) for kind, cls in tested.items())]
    for kind, name, cls in own:
        plugins.add(Registered(kind, name, cls, name, name, "0", "-"))
    return plugins


def tables_of_an_engine(engine: type[Engine]) -> Plugins:
    """The installed plugins, the engine under test and this module, which workers load by its name."""
    plugins = Plugins.load([__name__])
    plugins.add(Registered("engine", TESTED, engine, TESTED, TESTED, "0", "-"))
    return plugins


def spec(plugin: Plugin, **changes: Any) -> dict[str, Any]:
    """The plugin under test as a configuration names it."""
    given = {} if plugin.params is None else plugin.params.model_dump(mode="json", exclude_unset=True, by_alias=True)
    return {"type": TESTED, **given, **changes}


def run(plugins: Plugins, sink: str | Mapping[str, Any], **changes: Any) -> Report:
    """A run over the drawn images into `sink`: one row per readable image, in shards of one batch."""
    config = {
        "model": {"type": _KIT},
        "taps": TAPS,
        "source": {"type": _KIT},
        "sink": sink,
        "device": "cpu",
        "batch_size": BATCH,
        "shard_rows": BATCH,
        "max_failures": IMAGES,
        "observers": [],
        **changes,
    }
    return run_loaded(load_config(config, None, plugins), plugins)


def npy(path: Path) -> dict[str, Any]:
    """The sink with which others are compared."""
    return {"type": "npy", "path": str(path)}


def run_info(**changes: Any) -> RunInfo:
    """The facts that sinks and observers receive about a run of six images."""
    facts: dict[str, Any] = {"id": "0" * 32, "planned": 6, "columns": {}, "batch_size": BATCH, "shard_rows": BATCH}
    return RunInfo(
        **{**facts, "device": "cpu", "path": None, "config": {"model": {"type": _KIT}}, "about": {}, **changes}
    )


def _drawn(number: int) -> Image.Image:
    from PIL import Image

    return Image.linear_gradient("L").rotate(90 * (number % 4)).point(lambda value: value * (number + 1) % 256)


def _fail(module: Module, args: tuple[Tensor, ...]) -> None:
    pixels = args[0]
    if pixels.min() < pixels.max() and pixels[:, 0].equal(pixels[:, 1]):
        raise RuntimeError(FAULT)


def _unreadable() -> bytes:
    return b"no image"
