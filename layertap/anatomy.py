"""A model's layers for looking at: one survey, and which of the configuration's taps lie where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layertap import parts
from layertap.config import RunConfig, load_config
from layertap.errors import ConfigError, LayertapError, PluginError, TapError, WeightsError
from layertap.finding import find_layers
from layertap.grammar import Spec, Tap
from layertap.line import ready
from layertap.plugins import Plugins, guard
from layertap.records import LoadedModel
from layertap.stream import Slot
from layertap.survey import LayerInfo, survey

_CONFIGS = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Every layer of a model as a forward on `images` zeros shows it, and the taps by layer.

    `unmatched` are the reasons why taps of the configuration lie nowhere.
    """

    layers: Sequence[LayerInfo]
    images: int
    taps: Mapping[str, Sequence[str]]
    unmatched: Sequence[str]


def look_at(target: str, overrides: Mapping[str, Any] | None = None, plugins: Sequence[str] = ()) -> Anatomy:
    """The anatomy of the model in a configuration file, or of `TYPE/NAME`.

    Its weights are not loaded, where its provider knows `weights: random`: shapes do not depend on them.
    """
    known = Plugins.load(plugins)
    is_file = Path(target).suffix in _CONFIGS or Path(target).is_file()
    if is_file:
        config = load_config(target, overrides, known)
    else:
        # The source and the sink are neither checked nor built: they only make the configuration whole.
        whole = {"model": target, "source": "none", "sink": "none"}
        config = load_config(whole, overrides, known, of=("model", "preprocess", "taps"))
    loaded = _loaded(config, known)
    preprocessor = parts.configured_preprocessor(config, known, loaded)
    slot = Slot.of(preprocessor)
    images = 2
    with guard(preprocessor):
        inputs = preprocessor.finish(torch.zeros((images, *slot.shape), dtype=slot.dtype))
    with ready(loaded.module, torch.device("cpu")):
        layers = _survey(loaded, inputs)
    # A model's name alone asks for no taps, unless the overrides do.
    asked = is_file or "taps" in (overrides or {})
    taps, unmatched = _marks(config.taps if asked else (), loaded)
    return Anatomy(layers, images, taps, unmatched)


def _loaded(config: RunConfig, plugins: Plugins) -> LoadedModel:
    if "weights" in plugins.find("model", config.model.type).cls.Params.model_fields:
        spec = Spec(type=config.model.type, params={**config.model.params, "weights": "random"})
        # A stranger's provider may mean something else by `weights`; then what is configured is loaded.
        with suppress(ConfigError, WeightsError):
            return parts.configured_model(config.model_copy(update={"model": spec}), plugins)
    return parts.configured_model(config, plugins)


def _survey(loaded: LoadedModel, inputs: Tensor) -> list[LayerInfo]:
    try:
        return survey(loaded.module, inputs)
    except LayertapError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())
        raise PluginError(
            f"the model raised {type(error).__name__} on an input of shape {tuple(inputs.shape)}: {said}"
        ) from error


def _marks(taps: Sequence[Tap], loaded: LoadedModel) -> tuple[dict[str, list[str]], list[str]]:
    marks: dict[str, list[str]] = {}
    unmatched: list[str] = []
    for tap in taps:
        try:
            for layer, _ in find_layers(loaded.module, tap):
                marks.setdefault(layer, []).append(tap.label)
        except TapError as error:
            unmatched.append(str(error))
    return marks, unmatched
