"""Model input that is ready: tensors that a caller has prepared, taken as they are."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from layertap.contracts import Preprocessor
from layertap.errors import ConfigError
from layertap.records import INDEX_COLUMNS, Batch, ImageRecord, MetaValue

# A preprocessed image has a channel axis and two of space; a row of a data set may hold other tensors beside it.
_FEWEST_AXES = 2


@dataclass(frozen=True, slots=True)
class ReadyTensors:
    """Batches of model input, and the `shape` and `dtype` of one image in them."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    batches: Generator[Batch, None, None]


class AsTheyAre(Preprocessor):
    """Stands for the preprocessing of tensors that need none."""

    def prepare(self, image: Image.Image) -> Tensor:
        raise AssertionError("ready tensors are not prepared")


class Items(IterableDataset[Any]):
    """What an iterator gives, put together again after a look at its first item."""

    def __init__(self, items: Iterator[Any]) -> None:
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        return self._items


def ready_tensors(images: Any, batch_size: int) -> tuple[ReadyTensors | None, Any]:
    """The batches of `images` where these are float tensors, else None; and the images to use in that case.

    Takes a DataLoader, whose batches stay as they are; a Dataset, a list or an iterator of tensors, of pairs
    (tensor, label), or of mappings with one image among their values; one float tensor of shape (N, C, H, W). Nothing
    that an iterator gives is lost.
    """
    if isinstance(images, DataLoader):
        return _of_loader(images)
    if isinstance(images, Tensor):
        return (_of_items(iter(images), batch_size) if _is_float(images) and images.ndim == 4 else None), images
    if isinstance(images, (str, bytes, Mapping, np.ndarray)) or not isinstance(images, (Iterable, Dataset)):
        return None, images
    if isinstance(images, Dataset) and not isinstance(images, IterableDataset):
        length = len(images) if hasattr(images, "__len__") else 0
        items: Iterator[Any] = (images[number] for number in range(length))
        first = images[0] if length else None
    else:
        items = iter(images)
        first = next(items, None)
        images = images if _is_again(images, items) else Items(_chained(first, items))
        items = iter(images)
    return (_of_items(items, batch_size) if _is_float(image_of(first, "the first item")[0]) else None), images


def image_of(item: Any, where: str) -> tuple[Any, dict[str, MetaValue]]:
    """The image of an item, and its metadata: of a pair the second is the label; of a mapping, the other scalars.

    Raises `ConfigError` for a mapping in which not exactly one value can be an image.
    """
    if isinstance(item, tuple) and len(item) == 2:
        return item[0], {"label": _scalar(item[1])}
    if not isinstance(item, Mapping):
        return item, {}
    found = [key for key, value in item.items() if _is_image(value)]
    if len(found) != 1:
        keys = ", ".join(map(str, item))
        raise ConfigError(f"extract: {where} is a mapping with {len(found)} images among its values ({keys}), not one")
    others = {str(key): value for key, value in item.items() if key != found[0]}
    return item[found[0]], {key: _scalar(value) for key, value in others.items() if key not in INDEX_COLUMNS}


def _of_loader(loader: DataLoader[Any]) -> tuple[ReadyTensors | None, Any]:
    batches = iter(loader)
    try:
        first = next(batches, None)
    except TypeError as error:
        # torch's own collating knows no PIL images, and reports every type that it does know.
        raise ConfigError(f"extract: the DataLoader cannot batch its items ({error}); give its `.dataset`") from error
    if first is None:
        return None, []
    pixels, _ = _batch_of(first)
    chained = _chained(first, batches)
    if not _is_float(pixels):
        return None, Items(item for batch in chained for item in _unstacked(batch))
    return ReadyTensors(tuple(pixels.shape[1:]), pixels.dtype, _as_batches(chained, tuple(pixels.shape[1:]))), loader


def _as_batches(batches: Iterator[Any], shape: tuple[int, ...]) -> Generator[Batch, None, None]:
    number = 0
    for batch in batches:
        pixels, meta = _batch_of(batch)
        _check_shape(tuple(pixels.shape[1:]), shape, f"a batch from item {number} on")
        records = [
            ImageRecord(str(number + at), b"", {key: values[at] for key, values in meta.items()})
            for at in range(len(pixels))
        ]
        number += len(pixels)
        yield Batch(records, pixels.detach().cpu())


def _batch_of(batch: Any) -> tuple[Tensor, dict[str, list[MetaValue]]]:
    """The pixels of a batch and the metadata of its items."""
    pixels, rest = batch, {}
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        pixels, rest = batch[0], {"label": batch[1]}
    elif isinstance(batch, Mapping):
        found = [key for key, value in batch.items() if isinstance(value, Tensor) and value.ndim > _FEWEST_AXES]
        if len(found) != 1:
            keys = ", ".join(map(str, batch))
            raise ConfigError(f"extract: a batch of the DataLoader has {len(found)} images per item ({keys}), not one")
        pixels, rest = batch[found[0]], {str(key): batch[key] for key in batch if key != found[0]}
    elif isinstance(batch, (tuple, list)) and len(batch) == 1:
        pixels = batch[0]
    if not isinstance(pixels, Tensor):
        raise ConfigError(
            f"extract: the DataLoader gives batches of type {type(pixels).__name__}, not tensors; give its `.dataset`"
        )
    meta = {key: [_scalar(value) for value in values] for key, values in rest.items() if _has(values, len(pixels))}
    return pixels, {key: values for key, values in meta.items() if key not in INDEX_COLUMNS}


def _unstacked(batch: Any) -> Iterator[Any]:
    pixels, meta = _batch_of(batch)
    for at, image in enumerate(pixels):
        yield (image, meta["label"][at]) if "label" in meta else image


def _of_items(items: Iterator[Any], batch_size: int) -> ReadyTensors | None:
    first = next(items, None)
    if first is None:
        return None
    example = image_of(first, "the first item")[0]
    shape, dtype = tuple(example.shape), example.dtype

    def batches() -> Generator[Batch, None, None]:
        numbered = enumerate(_chained(first, items))
        while group := list(itertools.islice(numbered, batch_size)):
            records, pixels = [], []
            for number, item in group:
                image, meta = image_of(item, f"item {number}")
                if not _is_float(image):
                    raise ConfigError(f"extract: item {number} is not a float tensor, and the first item is")
                _check_shape(tuple(image.shape), shape, f"item {number}")
                records.append(ImageRecord(str(number), b"", meta))
                pixels.append(image.detach().cpu())
            yield Batch(records, torch.stack(pixels))

    return ReadyTensors(shape, dtype, batches())


def _check_shape(found: tuple[int, ...], shape: tuple[int, ...], where: str) -> None:
    if found != shape:
        raise ConfigError(
            f"extract: {where} has the shape {found} per image, and the first has {shape}; tensors that are taken as "
            "they are must have one shape"
        )


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _is_image(value: Any) -> bool:
    return isinstance(value, Image.Image) or (
        isinstance(value, (Tensor, np.ndarray)) and value.ndim >= _FEWEST_AXES and min(value.shape) > 0
    )


def _is_again(images: Any, items: Iterator[Any]) -> bool:
    """Whether it can be walked once more from the start: an iterator is its own."""
    return items is not images and not isinstance(images, IterableDataset)


def _chained(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    return itertools.chain([] if first is None else [first], rest)


def _has(values: Any, count: int) -> bool:
    return isinstance(values, (Tensor, np.ndarray, list, tuple)) and len(values) == count


def _scalar(value: Any) -> MetaValue:
    if isinstance(value, (np.generic, np.ndarray, Tensor)) and np.prod(value.shape) == 1:
        value = value.item()
    return value if isinstance(value, (str, int, float, bool)) else None
