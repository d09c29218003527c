"""A model's layers as `layertap layers` shows them: one survey, and the configuration's taps on each layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from layertap.config.loading import load_config
from layertap.config.model import RunConfig
from layertap.contracts import LoadedModel
from layertap.errors import ConfigError, TapError, WeightsError
from layertap.images.batches import Slot
from layertap.pipeline import inputs
from layertap.pipeline.device import ready
from layertap.pipeline.forward import model_guard
from layertap.plugins import Plugins, guard
from layertap.store.dtypes import numpy_dtype
from layertap.store.paths import user_path
from layertap.taps.grammar import Spec
from layertap.taps.layers import find_layers, why_silent
from layertap.taps.operations.survey import OperationInfo, survey_operations
from layertap.taps.survey import LayerInfo, survey

T = TypeVar("T")

_CONFIGS = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Every layer of a model as a forward shows it.

    `shapes` are the layers' output shapes by selector, an axis that grows with the number of images written as `N` (or
    `4N`, for windows or frames), `sizes` the bytes of one image's output, `taps` the configuration's taps by layer,
    `silent` why a layer never ran, if that is known. `unmatched` are the reasons why taps match no layer.
    """

    layers: Sequence[LayerInfo]
    shapes: Mapping[str, Mapping[str, list[int | str]]]
    sizes: Mapping[str, int]
    taps: Mapping[str, Sequence[str]]
    silent: Mapping[str, str]
    unmatched: Sequence[str]


@dataclass(frozen=True, slots=True)
class OperationRow:
    """An operation of a layer: the tap on it, and what it makes, by selector; `shapes` are as those of `Anatomy`."""

    tap: str
    shapes: Mapping[str, list[int | str]]
    dtypes: Mapping[str, str]


def look_at(target: str, overrides: Mapping[str, Any] | None = None, plugins: Sequence[str] = ()) -> Anatomy:
    """The anatomy of the model in a configuration file, or of `TYPE/NAME`.

    Its weights are not loaded if its provider knows `weights: random`: shapes do not depend on them.
    """
    config, loaded, is_file, forward = _target(target, overrides, plugins)
    few, more = (forward(survey, images) for images in (2, 3))
    # A model's name alone has no taps, unless the overrides name some.
    asked = is_file or "taps" in (overrides or {})
    taps, unmatched = _marks(config, loaded) if asked else ({}, [])
    silent = {layer.name: why_silent(loaded.module, layer.name) for layer in few if not layer.calls}
    return Anatomy(
        layers=few,
        shapes={a.name: _by_images(a, b) for a, b in zip(few, more, strict=True)},
        sizes={layer.name: _bytes(layer) // 2 for layer in few},
        taps=taps,
        silent={name: reason for name, reason in silent.items() if reason is not None},
        unmatched=unmatched,
    )


def operations_in(
    target: str, layer: str, overrides: Mapping[str, Any] | None = None, plugins: Sequence[str] = ()
) -> list[OperationRow]:
    """The operations that a layer, or each layer of a pattern, runs itself, in the model of `look_at`."""
    *_, forward = _target(target, overrides, plugins)
    few, more = (forward(lambda module, pixels: survey_operations(module, layer, pixels), images) for images in (2, 3))
    if [each.tap for each in few] != [each.tap for each in more]:
        raise TapError(f"layer {layer!r} runs other operations for 2 images than for 3, so that none can be tapped")
    return [OperationRow(a.tap, _by_images(a, b), a.dtypes) for a, b in zip(few, more, strict=True)]


def _loaded(config: RunConfig, plugins: Plugins) -> LoadedModel:
    if "weights" in plugins.find("model", config.model.type).cls.Params.model_fields:
        spec = Spec(type=config.model.type, params={**config.model.params, "weights": "random"})
        # Another author's provider may mean something else by `weights`; then the configured model is loaded.
        with suppress(ConfigError, WeightsError):
            return inputs.configured_model(config.model_copy(update={"model": spec}), plugins)
    return inputs.configured_model(config, plugins)


def _target(
    target: str, overrides: Mapping[str, Any] | None, plugins: Sequence[str]
) -> tuple[RunConfig, LoadedModel, bool, Callable[[Callable[..., T], int], T]]:
    """The configuration, its model, whether it is a file's, and a function that runs a survey on some black images."""
    known = Plugins.load(plugins)
    path = user_path(target)
    is_file = path.suffix in _CONFIGS or path.is_file()
    if is_file:
        config = load_config(target, overrides, known)
    else:
        # The source and the sink are neither checked nor built: they only complete the configuration.
        whole = {"model": target, "source": "none", "sink": "none"}
        config = load_config(whole, overrides, known, of=("model", "preprocess", "taps"))
    loaded = _loaded(config, known)
    preprocessor = inputs.configured_preprocessor(config, known, loaded)
    with config.at():
        slot = Slot.of(preprocessor, torch.device("cpu"))

    def forward(look: Callable[..., T], images: int) -> T:
        with guard(preprocessor):
            finished = preprocessor.finish(slot.zeros(images))
        with ready(loaded.module, torch.device("cpu")), model_guard(finished):
            return look(loaded.module, finished)

    return config, loaded, is_file, forward


def _by_images(few: LayerInfo | OperationInfo, more: LayerInfo | OperationInfo) -> dict[str, list[int | str]]:
    pairs = ((path, zip(shape, more.shapes[path], strict=True)) for path, shape in few.shapes.items())
    return {path: [_axis(of_two, of_three) for of_two, of_three in axes] for path, axes in pairs}


def _axis(of_two: int, of_three: int) -> int | str:
    if of_two == of_three:
        return of_two
    each = of_three - of_two
    return f"{each if each > 1 else ''}N" if 2 * each == of_two else "?"


def _bytes(layer: LayerInfo) -> int:
    return sum(math.prod(shape) * numpy_dtype(layer.dtypes[path]).itemsize for path, shape in layer.shapes.items())


def _marks(config: RunConfig, loaded: LoadedModel) -> tuple[dict[str, list[str]], list[str]]:
    marks: dict[str, list[str]] = {}
    unmatched: list[str] = []
    for number, tap in enumerate(config.taps):
        try:
            with config.at("taps", number):
                found = find_layers(loaded.module, tap)
            for layer, _ in found:
                marks.setdefault(layer, []).append(tap.label)
        except TapError as error:
            unmatched.append(str(error))
    return marks, unmatched
