"""Images that are already decoded, in one array of bytes: npy, npz or HDF5."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

import layertap
from layertap_plugins.models.weights import nearest
from layertap_plugins.sources import files, tables
from layertap_plugins.sources.arrays import Array, arrays_of

if TYPE_CHECKING:
    from PIL import Image

_CHANNELS = (1, 3)


class ArraySource(layertap.Source):
    """Yields one record per image of a uint8 array: (N, H, W, 3), (N, 3, H, W) or (N, H, W); 1 channel is grey too.

    The id is the number in eight digits. An array on disk is read one image at a time; a compressed npz is unpacked
    into memory. Nothing is ever unpickled.
    """

    extra = "hdf5"

    class Params(layertap.Params):
        path: str = Field(min_length=1, description="an .npy, .npz, .h5 or .hdf5 file")
        key: str | None = Field(
            None, description="the array to read from an npz or HDF5 file; not needed if only one can hold images"
        )
        axes: Literal["NHWC", "NCHW", "NHW"] | None = Field(
            None, description="the order of the axes; not needed if the shape makes it clear"
        )
        labels: str | None = Field(
            None, description="one label per image: an array in the same npz or HDF5 file, or else an .npy file"
        )

    params: Params

    def __init__(self, params: Params | None = None) -> None:
        super().__init__(params)
        self._opened: tuple[str, _Images, list[Any] | None] | None = None

    def records(self) -> Iterator[layertap.ImageRecord]:
        stamp = files.stamped(self.params.path)
        if self._opened is None or self._opened[0] != stamp:
            self._opened = stamp, *self._open(stamp)
        _, images, labels = self._opened
        for number in range(images.count):
            meta = {} if labels is None else {"label": tables.plain(labels[number])}
            yield layertap.ImageRecord(f"{number:08d}", Cell(images, number, stamp), meta)

    def __getstate__(self) -> dict[str, Any]:
        return {"params": self.params, "_opened": None}

    def _open(self, stamp: str) -> tuple[_Images, list[Any] | None]:
        path, key, labels = self.params.path, self.params.key, self.params.labels
        found = arrays_of(path, stamp)
        if key is None:
            fitting = [name for name, array in found.items() if array.dtype == "uint8" and len(array.shape) in (3, 4)]
            key = fitting[0] if len(fitting) == 1 else next(iter(found)) if len(found) == 1 else None
            if key is None:
                has = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in found.items()) or "none"
                raise layertap.ConfigError(f"name the array of the images in {path!r} (it has {has})", where=("key",))
        elif key not in found:
            near = nearest(key, found) or f" (it has {', '.join(found) or 'none'})"
            raise layertap.ConfigError(
                f"{path!r} has no array {key!r}{near if '' not in found else ''}", where=("key",)
            )
        images = _Images(found[key], self._axes(found[key]))
        if labels is None:
            return images, None
        array = found.get(labels)
        if array is None and os.path.exists(labels):
            try:
                array = arrays_of(labels, files.stamped(labels)).get("")
            except layertap.ConfigError as error:
                error.where = ("labels",)
                raise
        if array is None:
            near = nearest(labels, found)
            raise layertap.ConfigError(
                f"{labels!r} is neither an array in {path!r} nor an .npy file{near}", where=("labels",)
            )
        if array.shape not in ((images.count,), (images.count, 1)):
            raise layertap.ConfigError(
                f"{labels!r} has the shape {array.shape}, but there are {images.count} images", where=("labels",)
            )
        return images, [label.decode() if isinstance(label, bytes) else label for label in array.values()]

    def _axes(self, array: Array) -> str:
        axes, shape, where = self.params.axes, array.shape, repr(self.params.path)
        if array.dtype != "uint8":
            raise layertap.ConfigError(
                f"{where} holds {array.dtype} of shape {shape}, not uint8; convert it first, as in "
                "(x * 255).round().astype('uint8') for values from 0 to 1",
                where=("path",),
            )
        last, second = len(shape) == 4 and shape[3] in _CHANNELS, len(shape) == 4 and shape[1] in _CHANNELS
        fits = {"NHWC": last, "NCHW": second, "NHW": len(shape) == 3}
        # A shape that is probably a single image, or that fits both orders, is not guessed at.
        clear = {"NHWC": last and not second, "NCHW": second and not last, "NHW": len(shape) == 3 and shape[2] > 4}
        found = axes if axes and fits[axes] else None if axes else next((name for name in clear if clear[name]), None)
        if found is None or 0 in shape:
            said = f"does not fit `axes: {axes}`" if axes else "does not show its axes; set `axes` to NHWC, NCHW or NHW"
            said = "has no images" if 0 in shape else said
            raise layertap.ConfigError(f"the shape {shape} of {where} {said}", where=("axes",))
        return found


@dataclass(frozen=True, slots=True)
class Cell:
    """An image's place in an array."""

    images: _Images
    number: int
    stamp: str

    def __call__(self) -> Image.Image:
        """The image. Raises `ImageError` if the file has changed since it was listed."""
        return self.images(self.number)


class _Images:
    """The images of an array with these axes."""

    def __init__(self, array: Array, axes: str) -> None:
        self.count = array.shape[0]
        self._array = array
        self._axes = axes

    def __call__(self, number: int) -> Image.Image:
        import numpy as np
        from PIL import Image

        pixels = self._array.row(number)
        if self._axes == "NCHW":
            pixels = pixels.transpose(1, 2, 0)
        return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels))


@layertap.hookimpl
def register_sources(register: Callable[[str, type[layertap.Source]], None]) -> None:
    register("array", ArraySource)
