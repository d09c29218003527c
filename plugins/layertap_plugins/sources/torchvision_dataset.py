"""One of torchvision's data sets, by name."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

import layertap
from layertap_plugins.models import weights
from layertap_plugins.sources import files, tables

if TYPE_CHECKING:
    from PIL import Image

# These are functions, which plain data cannot express; changing pixels is the preprocessor's job.
_FUNCTIONS = frozenset({"transform", "target_transform", "transforms", "loader", "is_valid_file"})

# These unpickle a file in the working directory.
_UNSAFE = frozenset({"LSUN", "LSUNClass"})

# This one draws each image from torch's global random state.
_ONE_AT_A_TIME = frozenset({"FakeData"})
_TURN = threading.Lock()


class TorchvisionDatasetSource(layertap.Source):
    """Yields one record per image of the data set; nothing is downloaded unless `args` ask for it.

    The id is the number in eight digits or, for ImageFolder, the path below its root. `label` is the name of the class
    if the data set has names, else its number, and None if it is not known before the image is read.
    """

    class Params(layertap.Params):
        name: str = Field(
            min_length=1, description="a data set in torchvision.datasets, such as CIFAR10 or ImageFolder"
        )
        args: dict[str, Any] = Field(
            default_factory=dict,
            description="its arguments, such as {root: data/, train: false, download: true}, but no transforms",
        )

    params: Params
    _remarks: Sequence[str] = ()

    @property
    def remarks(self) -> Sequence[str]:
        return self._remarks

    @property
    def hosts(self) -> frozenset[str]:
        """Where it is to be downloaded, `torchvision`, for wherever that library finds it."""
        return super().hosts | {"torchvision"} if self.params.args.get("download") else super().hosts

    def records(self) -> Iterator[layertap.ImageRecord]:
        dataset = self._dataset
        count, labels, names = len(dataset), _labels(dataset), getattr(dataset, "classes", None)
        if labels is None:
            self._remarks = [
                f"{self.params.name} has no labels that are known before its images are read: `label` is empty"
            ]
        paths = _paths(dataset)
        ids = None if paths is None else files.texts_of([os.fsencode(os.path.relpath(p, dataset.root)) for p in paths])
        for number in range(count):
            label = None if labels is None else _label(labels[number], names)
            data: Path | Item = Item(dataset, number, self.params.name)
            record_id = f"{number:08d}"
            if paths is not None and ids is not None:
                data, record_id = Path(paths[number]), ids[number]
            yield layertap.ImageRecord(record_id, data, {"label": label})

    def __getstate__(self) -> dict[str, Any]:
        return {"params": self.params}

    @functools.cached_property
    def _dataset(self) -> Any:
        datasets: Any = importlib.import_module("torchvision.datasets")
        name, args = self.params.name, dict(self.params.args)
        known = [name for name in datasets.__all__ if _is_dataset(getattr(datasets, name), datasets)]
        if name not in known:
            near = weights.nearest(name, known)
            raise layertap.ConfigError(f"torchvision has no data set {name!r}{near}", where=("name",))
        if name in _UNSAFE:
            raise layertap.UnsafeError(
                f"{name} would load a pickle from the working directory, which can run code", where=("name",)
            )
        parameters = inspect.signature(getattr(datasets, name)).parameters
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        for key in args:
            if key in _FUNCTIONS:
                raise layertap.ConfigError(f"{key} is a function; images are prepared by `preprocess`", where=("args",))
            if key not in parameters and not takes_all:
                near = weights.nearest(key, parameters) or f" (it has {', '.join({*parameters} - _FUNCTIONS)})"
                raise layertap.ConfigError(f"{name} has no {key!r}{near}", where=("args",))
        if "download" in parameters:
            args.setdefault("download", False)
        try:
            dataset = getattr(datasets, name)(**args)
            # Some give videos or pairs; it is better to report that before the run than for each image.
            first = dataset[0] if len(dataset) and _paths(dataset) is None else None
        except Exception as error:
            said = weights.brief(error)
            raise layertap.ConfigError(f"{self.params.args} does not suit {name}: {said}", where=("args",)) from error
        if not len(dataset):
            raise layertap.ConfigError(f"{name} has no images", where=("args",))
        if first is not None:
            _image_of(first, name)
        return dataset


@dataclass(frozen=True, slots=True)
class Item:
    """An image's place in a data set."""

    dataset: Any
    number: int
    name: str

    def __call__(self) -> Image.Image:
        """The image, as the data set decodes it."""
        with _TURN if self.name in _ONE_AT_A_TIME else nullcontext():
            return _image_of(self.dataset[self.number], self.name)


def _is_dataset(found: Any, datasets: Any) -> bool:
    return isinstance(found, type) and issubclass(found, datasets.VisionDataset) and found is not datasets.VisionDataset


def _image_of(item: Any, name: str) -> Image.Image:
    from PIL import Image

    image = item[0] if isinstance(item, tuple) else item
    if not isinstance(image, Image.Image):
        raise layertap.ConfigError(f"{name} gives a {type(image).__name__} per item, not one image", where=("name",))
    return image


def _paths(dataset: Any) -> list[str] | None:
    """The files of a data set that is a folder; its images are read like any other files."""
    datasets: Any = importlib.import_module("torchvision.datasets")
    return [path for path, _ in dataset.samples] if isinstance(dataset, datasets.DatasetFolder) else None


def _labels(dataset: Any) -> Sequence[Any] | None:
    """The labels, or lists of labels, if they are known without reading the images."""
    for attribute in ("targets", "labels", "_labels"):
        found: Any = getattr(dataset, attribute, None)
        if hasattr(found, "__getitem__") and getattr(found, "ndim", None) != 0 and len(found) == len(dataset):
            labels: Sequence[Any] = found
            return labels
    return None


def _label(value: Any, names: Any) -> Any:
    number = value.tolist() if hasattr(value, "tolist") else value
    names = names if isinstance(names, (list, tuple)) else []
    # ImageNet has several names for a class.
    texts = [name[0] if isinstance(name, tuple) else name for name in names]
    return tables.plain(tables.named(number, {"_type": "ClassLabel", "names": texts}))


@layertap.hookimpl
def register_sources(register: Callable[[str, type[layertap.Source]], None]) -> None:
    register("torchvision_dataset", TorchvisionDatasetSource)
