"""What a configuration or a Python call names -> the objects of the line."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import pydantic
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from layertap.config import MODEL_PREPROCESSOR, RunConfig, build_part, model_short
from layertap.contracts import ModelProvider, Plugin, Preprocessor, Source
from layertap.document import Document
from layertap.errors import ConfigError, PluginError, first_fault
from layertap.grammar import Spec
from layertap.plugins import Plugins, guard
from layertap.records import ImageRecord, LoadedModel

Item: TypeAlias = "ImageRecord | str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]"
ModelLike: TypeAlias = "nn.Module | LoadedModel | str | Mapping[str, Any]"
ImagesLike: TypeAlias = "str | os.PathLike[str] | Mapping[str, Any] | Source | Iterable[Item]"
PreprocessLike: TypeAlias = "Preprocessor | Callable[[Image.Image], Tensor] | str | Mapping[str, Any] | None"

_ARGUMENTS = Document("extract", {})


def load_model(provider: Plugin) -> LoadedModel:
    """What a model provider loads, checked to be a model."""
    assert isinstance(provider, ModelProvider)
    with guard(provider):
        loaded = provider.load()
    if not isinstance(loaded, LoadedModel) or not isinstance(loaded.module, nn.Module):
        raise PluginError(f"the model {type(provider).__name__} loads a {type(loaded).__name__}, not a LoadedModel")
    return loaded


def configured_model(config: RunConfig, plugins: Plugins) -> LoadedModel:
    """The model that a configuration names."""
    with config.at("model"):
        return load_model(config.build("model", plugins))


def configured_preprocessor(config: RunConfig, plugins: Plugins, loaded: LoadedModel) -> Preprocessor:
    """The preprocessor that a configuration names: the model's own, or a registered one."""
    if config.preprocess.type != MODEL_PREPROCESSOR:
        preprocessor = config.build("preprocess", plugins)
        assert isinstance(preprocessor, Preprocessor)
        return preprocessor
    with config.at("preprocess"):
        return _own(loaded, "set `preprocess: {type: imagenet}` or another type")


def given_model(model: ModelLike, plugins: Plugins) -> LoadedModel:
    """A module as it is, or the model behind `TYPE/NAME` or a mapping."""
    if isinstance(model, LoadedModel):
        return model
    if isinstance(model, nn.Module):
        return LoadedModel(_eager(model))
    return load_model(_part("model", model_short(model), plugins))


def given_preprocessor(preprocess: PreprocessLike, loaded: LoadedModel, plugins: Plugins) -> Preprocessor:
    """A preprocessor as it is, a registered one, a function of one RGB image, or by default the model's own."""
    if isinstance(preprocess, Preprocessor):
        return preprocess
    if preprocess is None or preprocess == MODEL_PREPROCESSOR:
        return _own(loaded, 'give extract() `preprocess=`, such as weights.transforms() or "imagenet"')
    if isinstance(preprocess, (str, Mapping)):
        preprocessor = _part("preprocessor", preprocess, plugins)
        assert isinstance(preprocessor, Preprocessor)
        return preprocessor
    return FunctionPreprocessor(preprocess)


def given_records(images: ImagesLike, plugins: Plugins) -> Iterator[ImageRecord]:
    """The records of a folder, one image file, a source, or an iterable of images, taken lazily."""
    if isinstance(images, (str, os.PathLike)):
        images = {"type": "folder", "path": os.fspath(images)}
    if isinstance(images, Mapping):
        source = _part("source", images, plugins)
        assert isinstance(source, Source)
        images = source
    if isinstance(images, Source):
        with guard(images):
            yield from images.records()
        return
    for number, item in enumerate(images):
        yield _record(item, number)


class FunctionPreprocessor(Preprocessor):
    """A function from one RGB image to a tensor, such as torchvision's `weights.transforms()`, as a preprocessor."""

    def __init__(self, function: Callable[[Image.Image], Tensor]) -> None:
        super().__init__()
        self._function = function

    def prepare(self, image: Image.Image) -> Tensor:
        return self._function(image.convert("RGB"))


def _eager(model: nn.Module) -> nn.Module:
    """The module behind `torch.compile`, whose compiled code would pass over new hooks."""
    eager = getattr(model, "_orig_mod", None)
    if eager is None:
        return model
    warnings.warn("the model is compiled; layertap taps and runs the eager module behind it", stacklevel=4)
    return cast(nn.Module, eager)


def _own(loaded: LoadedModel, cure: str) -> Preprocessor:
    if loaded.preprocessor is None:
        name = loaded.about.get("name") or type(loaded.module).__name__
        raise ConfigError(f"the model {name} comes without preprocessing; {cure}")
    return loaded.preprocessor


def _part(kind: str, value: Any, plugins: Plugins) -> Plugin:
    try:
        spec = Spec.model_validate(value)
    except pydantic.ValidationError as error:
        raise _ARGUMENTS.fault((kind,), first_fault(error)[1]) from error
    return build_part(kind, spec, plugins, _ARGUMENTS, (kind,))


def _record(item: Item, number: int) -> ImageRecord:
    if isinstance(item, ImageRecord):
        return item
    if isinstance(item, (str, os.PathLike)):
        return ImageRecord(os.fspath(item), Path(item))
    if isinstance(item, np.ndarray):
        return ImageRecord(str(number), Image.fromarray(item))
    return ImageRecord(str(number), item)
