"""The promises of a preprocessor."""

from __future__ import annotations

import functools

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from layertap.contracts import Preprocessor
from layertap.errors import ImageError
from layertap.testing.promises import Suite, at_once, promise

_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16")
_SIZES = ((64, 48), (48, 64), (33, 33), (300, 20), (9, 7))


class PreprocessorSuite(Suite[Preprocessor]):
    """A preprocessor gives one shape and dtype for every image that it does not refuse, on any thread."""

    kind = Preprocessor

    def test_one_shape_and_dtype_for_every_image(self) -> None:
        plugin = self.plugin()
        first = plugin.prepare(_image("RGB", self.plugin().example))
        promise(isinstance(first, Tensor), f"prepare() gives a {type(first).__name__}", "return a torch tensor")
        promise(
            first.device.type == "cpu",
            f"prepare() gives a tensor on {first.device}",
            "leave the choice of device to the core",
        )
        for name, prepared in self._prepared(plugin).items():
            promise(
                prepared is None or (prepared.shape, prepared.dtype) == (first.shape, first.dtype),
                f"an image of {name} becomes {_shown(prepared)}, but an ordinary one {_shown(first)}",
                "convert to one mode and resize to one size, or refuse: raise layertap.ImageError(code)",
            )

    def test_ordinary_images_are_taken(self) -> None:
        for mode in ("RGB", "L"):
            promise(
                _prepared(self.plugin(), _image(mode, self.plugin().example)) is not None,
                f"an ordinary image of the mode {mode} is refused",
                "convert it; a preprocessor for images of only one size states that size in `example`",
            )

    def test_image_is_left_as_it_is(self) -> None:
        plugin = self.plugin()
        for mode in _MODES:
            image = _image(mode, self.plugin().example)
            before = _state(image)
            _prepared(plugin, image)
            promise(
                _state(image) == before,
                f"prepare() changes the {mode} image that it receives",
                "work on the result of convert(), resize() or copy(); thumbnail() and paste() change the image itself",
            )

    def test_any_thread_prepares_the_same(self) -> None:
        images = [_image(mode, size) for mode in ("RGB", "L") for size in (*_SIZES, self.plugin().example)]
        alone = [_prepared(self.plugin(), image) for image in images]
        plugin = self.plugin()
        for together in at_once(functools.partial(_prepared, plugin), images):
            for one, other in zip(alone, together, strict=True):
                promise(
                    (one is None) == (other is None) and (one is None or torch.equal(one, other)),
                    "an image prepared on several threads at once differs from the same image prepared alone",
                    "store nothing about an image on self, return new memory each time, and use no random numbers",
                )

    def test_batch_is_finished_as_its_single_images(self) -> None:
        plugin = self.plugin()
        batch = torch.stack([plugin.prepare(_image("RGB", self.plugin().example, seed)) for seed in range(3)])
        singles = [plugin.finish(batch[row : row + 1].clone()) for row in range(len(batch))]
        finished = plugin.finish(batch.clone())
        promise(isinstance(finished, Tensor), f"finish() gives a {type(finished).__name__}", "return a torch tensor")
        promise(
            finished.shape[:1] == (len(batch),) and all(len(single) == 1 for single in singles),
            f"finish() gives {tuple(finished.shape)} for {len(batch)} images",
            "keep one row per image, in the same order",
        )
        for row, single in enumerate(singles):
            promise(
                torch.equal(finished[row : row + 1], single),
                "an image finished in a batch is not bit for bit the same as when finished alone",
                "use nothing from the other images, such as a mean over the batch",
            )

    def _prepared(self, plugin: Preprocessor) -> dict[str, Tensor | None]:
        """The result for every image, None for one that is refused."""
        images = [(mode, size) for mode in _MODES for size in (*_SIZES, self.plugin().example)]
        return {f"{w} x {h} {mode}": _prepared(plugin, _image(mode, (w, h))) for mode, (w, h) in images}


def _prepared(plugin: Preprocessor, image: Image.Image) -> Tensor | None:
    try:
        return plugin.prepare(image)
    except ImageError:
        return None


def _image(mode: str, size: tuple[int, int], seed: int = 0) -> Image.Image:
    width, height = size
    values = np.random.default_rng([seed, width, height]).integers(0, 256, (height, width, 3), np.uint8)
    if mode == "I;16":
        return Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    return Image.fromarray(values).convert(mode)


def _state(image: Image.Image) -> tuple[object, ...]:
    return image.mode, image.size, image.tobytes(), dict(image.info)


def _shown(value: Tensor | None) -> str:
    return "nothing" if value is None else f"{tuple(value.shape)} {value.dtype}"
