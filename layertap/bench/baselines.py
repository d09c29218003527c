"""Two ways to get the same features without layertap, to measure it against.

`tutorial` is the script in most tutorials: open all images, stack them, run one forward pass with a hook, save.
`careful` is a script that an expert writes in an afternoon: a DataLoader with one process per core, one forward pass
per batch, every value copied, the arrays saved and made durable at the end. Both run the whole model, open images with
plain Pillow and preprocess each one separately, as the model's authors do. The model, taps and reducers are the line's.
"""

from __future__ import annotations

import copy
import io
import multiprocessing
import os
import pickle
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from layertap.contracts import Preprocessor
from layertap.pipeline.forward import ForwardPass, model_guard
from layertap.pipeline.prepare import Prepared
from layertap.pipeline.shards import to_numpy
from layertap.plugins import Plugins
from layertap.records import PROFILES, ImageRecord

# It holds all its images, and the model's outputs for them, at once.
MOST_IN_TUTORIAL = 256


class Images(Dataset[Tensor]):
    """Records as model input, one at a time; `own` are the user's plugin files, which a new process must load."""

    def __init__(self, records: Sequence[ImageRecord], preprocessor: Preprocessor, own: Sequence[str] = ()) -> None:
        self.records = records
        self.preprocessor = copy.copy(preprocessor)
        self.preprocessor.profile = PROFILES["exact"]
        self._own = tuple(own)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Tensor:
        prepared = self.preprocessor.prepare(_opened(self.records[index]))
        return self.preprocessor.finish(prepared.unsqueeze(0)).squeeze(0)

    def __getstate__(self) -> tuple[tuple[str, ...], bytes]:
        return self._own, pickle.dumps((self.records, self.preprocessor))

    def __setstate__(self, state: tuple[tuple[str, ...], bytes]) -> None:
        self._own, data = state
        if self._own:
            Plugins.load(self._own)
        self.records, self.preprocessor = pickle.loads(data)

    def why_not_sent(self) -> str | None:
        """Why they cannot be sent to another process, None if they can."""
        try:
            pickle.dumps(self)
        except Exception as error:
            return f"the source's records cannot be sent to other processes ({type(error).__name__})"
        return None


class Tutorial:
    """Loads all images, runs one forward pass, saves."""

    workers = 0

    def __init__(self, this: Prepared, images: Images) -> None:
        self._forward = this.forward
        self._names = list(this.info.columns)
        few = images.records[:MOST_IN_TUTORIAL]
        self._images = Images(few, images.preprocessor)
        self.count = len(few)

    def once(self, folder: Path) -> float:
        """The seconds that one run took. Raises `OutOfMemory`."""
        started = time.perf_counter()
        inputs = torch.stack([self._images[index] for index in range(self.count)])
        values = _whole_forward(self._forward, inputs, self._names)
        for number, value in enumerate(values.values()):
            np.save(folder / f"{number}.npy", _array(value))
        return time.perf_counter() - started


class Careful:
    """Uses a DataLoader, a hook and a copy.

    Its processes are forked from a new process that has imported torch, not from this one, which has already run a
    model, so that a fork of it may hang. They are started once and kept (`persistent_workers`). `started` is the time
    from the request for the first batch to its arrival, including that import. It is not part of any run's time.
    """

    def __init__(self, this: Prepared, images: Images, workers: int) -> None:
        self._forward = this.forward
        self._names = list(this.info.columns)
        self.count = len(images)
        self.workers = workers
        pinned = this.forward.device.type == "cuda"
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__, "torchvision"])
        self._loader: DataLoader[Tensor] = DataLoader(
            images,
            batch_size=this.info.batch_size,
            num_workers=workers,
            pin_memory=pinned,
            persistent_workers=True,
            multiprocessing_context=context,
        )
        self.started = 0.0

    def __enter__(self) -> Self:
        began = time.perf_counter()
        batches = iter(self._loader)
        next(batches)
        self.started = time.perf_counter() - began
        for _ in batches:
            pass
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        # The iterator ends the processes when its last reference is gone; there is no public method for it.
        del self._loader

    def once(self, folder: Path) -> float:
        """The seconds that one run took. Raises `OutOfMemory`."""
        started = time.perf_counter()
        for number, array in enumerate(self.features().values()):
            with open(folder / f"{number}.npy", "wb") as file:
                np.save(file, array)
                file.flush()
                os.fsync(file.fileno())
        return time.perf_counter() - started

    def features(self) -> dict[str, NDArray[Any]]:
        """The values of all images by tap."""
        kept: dict[str, list[Tensor]] = {name: [] for name in self._names}
        for inputs in self._loader:
            for name, value in _whole_forward(self._forward, inputs, self._names).items():
                kept[name].append(value)
        return {name: _array(torch.cat(values)) for name, values in kept.items()}


def _whole_forward(forward: ForwardPass, inputs: Tensor, names: Sequence[str]) -> Mapping[str, Tensor]:
    with torch.no_grad(), model_guard(inputs):
        forward.tapped.module(inputs.to(forward.device, non_blocking=True))
        return {name: forward.tapped[name].cpu() for name in names}


def _array(value: Tensor) -> NDArray[Any]:
    array = to_numpy(value)
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else array


def _opened(record: ImageRecord) -> Image.Image:
    data: Any = record.data
    if callable(data) and not isinstance(data, Image.Image):
        data = data()
    if isinstance(data, Image.Image):
        return data
    return Image.open(io.BytesIO(data) if isinstance(data, bytes) else data)
