"""What a configuration or a Python call names -> the objects of the line."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any, TypeAlias, cast

import numpy as np
import pydantic
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from layertap.config.document import Document
from layertap.config.model import MODEL_PREPROCESSOR, RunConfig, build_part
from layertap.config.values import model_short
from layertap.contracts import LoadedModel, ModelProvider, Plugin, Preprocessor, Source
from layertap.errors import ConfigError, PluginError, faults_of, within
from layertap.pipeline import malloc
from layertap.pipeline.tensors import image_of
from layertap.plugins import Plugins, guard
from layertap.records import ImageRecord, dtype_name
from layertap.store.paths import user_path
from layertap.taps.grammar import Spec

Item: TypeAlias = "ImageRecord | str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8] | Tensor"
ModelLike: TypeAlias = "nn.Module | LoadedModel | str | Mapping[str, Any]"
ImagesLike: TypeAlias = "str | os.PathLike[str] | Mapping[str, Any] | Source | Item | Iterable[Item] | Dataset[Any]"
PreprocessLike: TypeAlias = "Preprocessor | Callable[[Image.Image], Tensor] | str | Mapping[str, Any] | None"

_ARGUMENTS = Document("extract", {})

_CHANNELS = (1, 3, 4)

_NO_LABEL = {"label": None}


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
    with config.at("model"), malloc.uncollected():
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
    """A module unchanged, or the model that `TYPE/NAME` or a mapping names."""
    if isinstance(model, LoadedModel):
        return model
    if isinstance(model, nn.Module):
        return LoadedModel(_eager(model))
    with within("model"):
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
    """The records of a folder, one image, a source, an iterable of images or a torch Dataset, taken lazily.

    A Dataset is asked for its items in this thread, because few can serve several; of an item `(image, label)` the
    label is metadata. Raises `ConfigError` for anything that is not an image.
    """
    if isinstance(images, (str, os.PathLike)):
        images = {"type": "folder", "path": os.fspath(images)}
    if isinstance(images, Mapping):
        source = _part("source", images, plugins)
        assert isinstance(source, Source)
        images = source
    if isinstance(images, Source):
        with within("source"), guard(images):
            yield from images.records()
        return
    if isinstance(images, (ImageRecord, bytes, Image.Image)):
        images = [images]
    if isinstance(images, Dataset):
        yield from _of_dataset(images)
        return
    if isinstance(images, (np.ndarray, Tensor)) and images.ndim != 4:
        raise ConfigError(
            f"extract: images is one array of shape {tuple(images.shape)}, but only (N, H, W, C) or (N, C, H, W) are "
            "certain to be several images; put it into a list"
        )
    if not isinstance(images, Iterable):
        raise ConfigError(
            f"extract: images is of type {type(images).__name__}, not a folder, a source or a list of images"
        )
    for number, item in enumerate(images):
        yield _record(item, number)


class FunctionPreprocessor(Preprocessor):
    """A function from one RGB image to a tensor, such as torchvision's `weights.transforms()`, as a preprocessor."""

    label = "the function given as `preprocess`"

    def __init__(self, function: Callable[[Image.Image], Tensor]) -> None:
        super().__init__()
        self._function = function

    def prepare(self, image: Image.Image) -> Tensor:
        return self._function(image.convert("RGB"))


def _eager(model: nn.Module) -> nn.Module:
    """The module inside `torch.compile`, whose compiled code would ignore new hooks."""
    eager = getattr(model, "_orig_mod", None)
    if eager is None:
        return model
    warnings.warn("the model is compiled; layertap taps and runs the underlying eager module", stacklevel=4)
    return cast(nn.Module, eager)


def _own(loaded: LoadedModel, cure: str) -> Preprocessor:
    if loaded.preprocessor is None:
        name = loaded.about.get("name") or type(loaded.module).__name__
        raise ConfigError(f"the model {name} comes without preprocessing; {loaded.advice or cure}")
    return loaded.preprocessor


def _part(kind: str, value: Any, plugins: Plugins) -> Plugin:
    try:
        spec = Spec.model_validate(value)
    except pydantic.ValidationError as error:
        raise _ARGUMENTS.fault((kind,), faults_of(error, value)[0].what) from error
    return build_part(kind, spec, plugins, _ARGUMENTS, (kind,))


def _record(item: Item, number: int) -> ImageRecord:
    if isinstance(item, ImageRecord):
        return item
    if isinstance(item, (str, os.PathLike)):
        return ImageRecord(os.fspath(item), user_path(item))
    image, meta = image_of(item, f"images[{number}]") if isinstance(item, Mapping) else (item, {})
    return ImageRecord(str(number), _in_memory(image, f"images[{number}]"), meta)


def _of_dataset(dataset: Dataset[Any]) -> Iterator[ImageRecord]:
    items = dataset if isinstance(dataset, IterableDataset) else (dataset[number] for number in range(_length(dataset)))
    for number, item in enumerate(items):
        image, meta = image_of(item, f"item {number}")
        yield ImageRecord(
            str(number), _in_memory(image, f"item {number} of {type(dataset).__name__}"), meta or _NO_LABEL
        )


def _length(dataset: Dataset[Any]) -> int:
    if not isinstance(dataset, Sized):
        raise ConfigError(f"extract: the Dataset {type(dataset).__name__} has no length; give it a __len__")
    return len(dataset)


def _in_memory(item: object, where: str) -> bytes | Image.Image:
    if isinstance(item, (bytes, Image.Image)):
        return item
    if isinstance(item, Tensor):
        _check_bytes(dtype_name(item), where)
        return _image(item.detach().cpu().numpy(), where, channels_first=True)
    if isinstance(item, np.ndarray):
        _check_bytes(str(item.dtype), where)
        return _image(item, where, channels_first=False)
    raise ConfigError(
        f"extract: {where} is of type {type(item).__name__}, not an image: a path, bytes, a PIL image or a uint8 array"
    )


def _check_bytes(dtype: str, where: str) -> None:
    if dtype != "uint8":
        raise ConfigError(
            f"extract: {where} is {dtype}, not uint8: leave `preprocess` out to have float tensors taken as they are; "
            "or give the image as it was before any transform, or, for values from 0 to 1, (x * 255).round() as uint8"
        )


def _image(pixels: NDArray[np.uint8], where: str, *, channels_first: bool) -> Image.Image:
    """An array of two axes is grey; of three, the one of 1, 3 or 4 is the channels.

    Where both ends could be, it is the first of a tensor and the last of an array, as their libraries have it.
    """
    if 0 in pixels.shape:
        raise ConfigError(f"extract: {where} has the shape {pixels.shape}, without any pixels")
    if pixels.ndim == 3:
        first, last = pixels.shape[0] in _CHANNELS, pixels.shape[2] in _CHANNELS
        if first and (channels_first or not last):
            pixels = pixels.transpose(1, 2, 0)
        if first or last:
            pixels = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
            return Image.fromarray(np.ascontiguousarray(pixels))
    if pixels.ndim != 2:
        raise ConfigError(f"extract: {where} has the shape {pixels.shape}; an image is (H, W), (H, W, C) or (C, H, W)")
    return Image.fromarray(np.ascontiguousarray(pixels))
