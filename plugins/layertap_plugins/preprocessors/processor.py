"""An image processor of transformers, bit for bit, with its float half done once per batch if it can be separated."""

from __future__ import annotations

import functools
import importlib
import json
from typing import TYPE_CHECKING, Any

from pydantic import Field

import layertap
from layertap_plugins.preprocessors.images import as_rgb, refuse_strip
from layertap_plugins.preprocessors.memory import resizing, stored
from layertap_plugins.preprocessors.resizing import resized

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image
    from torch import Tensor

# Types that are preprocessed like another type, where the library does not state it itself.
_PROCESSED_AS = {"dinov2_with_registers": "dinov2", "dinov3_convnext": "dinov3_vit"}
# Bytes per pixel of an image as an array and as a tensor, alone and stacked: measured 7 to 10 on three processors.
_STEPS = 12
_LONGEST = 1_024
# Upright, wide, small and large: if all of these give the same shape, every image does.
_SAMPLES = ((96, 160), (211, 97), (40, 30), (500, 375))


class ImageProcessor(layertap.Preprocessor):
    """The result of a transformers processor for one RGB image."""

    extra = "transformers"

    class Params(layertap.Params):
        processor: str = Field(description="the class in transformers, such as ViTImageProcessor")
        config: dict[str, Any] = Field(description="the configuration of the class: the processor's own JSON")
        split: bool = Field(
            False, description="whether to rescale and normalise per batch, on its device, with the same bits"
        )

    params: Params

    @classmethod
    def around(cls, processor: Any) -> ImageProcessor | None:
        """A preprocessor for this processor, split if possible; None if images would differ in shape."""
        try:
            made = {"processor": type(processor).__name__, "config": json.loads(processor.to_json_string())}
            whole, split = cls.of(**made, split=False), cls.of(**made, split=True)
            images = [_noise(*size) for size in _SAMPLES]
            expected = [whole.prepare(image) for image in images]
        except Exception:  # a processor for something other than one image
            return None
        shapes = {image.shape for image in expected}
        if len(shapes) > 1 or [len(shape) for shape in shapes] != [3]:
            return None
        return split if split._gives(images, expected) else whole

    def _gives(self, images: list[Image.Image], expected: list[Tensor]) -> bool:
        import torch

        try:
            pixels = torch.stack([self.prepare(image) for image in images])
            return pixels.dtype == torch.uint8 and torch.equal(self.finish(pixels), torch.stack(expected))
        except Exception:  # some processors do not have the two halves, or their parts take other arguments
            return False

    @functools.cached_property
    def _processor(self) -> Any:
        transformers = importlib.import_module("transformers")
        return getattr(transformers, self.params.processor).from_dict(self.params.config)

    def enough(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """The square of the shorter side after resizing; None if another side determines the size."""
        return None if self._shorter_side is None else (self._shorter_side, self._shorter_side)

    def memory(self, size: tuple[int, int], mode: str) -> int:
        """The image as RGB, and as arrays in several steps. Raises `ImageError` for what `prepare` refuses by size."""
        refuse_strip(size, self._shorter_side)
        to = resized(size, self._shorter_side) if self._shorter_side else self._box
        # As a tensor it is resized across first, which makes a tall strip grow.
        across = 4 * to[0] * size[1]
        return (0 if mode == "RGB" else stored(size)) + _STEPS * size[0] * size[1] + across + resizing(size, to)

    def prepare(self, image: Image.Image) -> Tensor:
        """The image as `(3, H, W)`, uint8 if the work is split and otherwise float32.

        Raises `ImageError`: `empty`, `aspect` (too long), `unsupported_mode`, or `shape` (several crops or none).
        """
        refuse_strip(image.size, self._shorter_side)
        image = as_rgb(image)
        ours = {"do_rescale": False, "do_normalize": False} if self.params.split else {}
        pixels = self._processor(image, return_tensors="pt", **ours)["pixel_values"]
        if len(pixels) != 1:
            raise layertap.ImageError("shape")
        prepared: Tensor = pixels[0]
        return prepared

    def finish(self, batch: Tensor) -> Tensor:
        """The batch as the model's input, contiguous `(N, 3, H, W)`, on the device of `batch`."""
        if not self.params.split:
            return batch.contiguous()
        own = self._processor
        names = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
        finished: Tensor = own.rescale_and_normalize(batch.contiguous(), **{name: getattr(own, name) for name in names})
        return finished

    @property
    def _shorter_side(self) -> int | None:
        """The length to which the shorter side is resized, if the longer one has no limit."""
        size = self._processor.size
        if size is None or not getattr(size, "shortest_edge", None) or getattr(size, "longest_edge", None):
            return None
        return int(size.shortest_edge / (getattr(self._processor, "crop_pct", None) or 1))

    @property
    def _box(self) -> tuple[int, int]:
        """Width and height of what images are resized into, where their shorter side does not say."""
        size = self._processor.size
        longest = getattr(size, "longest_edge", None) or _LONGEST
        width, height = (getattr(size, name, None) or longest for name in ("width", "height"))
        return width, height

    def __getstate__(self) -> dict[str, Any]:
        return {"params": self.params}  # the processor is made again when it is needed


def _noise(width: int, height: int) -> Image.Image:
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def of_folder(folder: Path) -> ImageProcessor | None:
    """The image processor that was saved in a folder; None if there is none that runs without custom code."""
    transformers: Any = importlib.import_module("transformers")
    try:
        own = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception:  # the exception depends on what is wrong with the file
        return None
    return ImageProcessor.around(own)


def of_type(config: Any) -> ImageProcessor | None:
    """The default image processor for a model's config, at the size in the config; None if there is none."""
    transformers: Any = importlib.import_module("transformers")
    types, processors = transformers.CONFIG_MAPPING, transformers.IMAGE_PROCESSOR_MAPPING
    kind = _PROCESSED_AS.get(config.model_type, config.model_type)
    for name in (kind, kind.removesuffix("_vision_model")):
        classes = processors.get(types[name], None) if name in types else None
        made = classes and (classes.get("torchvision") or classes.get("pil"))
        if made:
            return ImageProcessor.around(_sized(made, getattr(config, "image_size", None)))
    return None


def _sized(made: Any, side: Any) -> Any:
    """A processor of the class `made` for images with sides of `side` pixels, if that is a number."""
    default = made()
    sizes = {key: dict(size) for key in ("size", "crop_size") if (size := getattr(default, key, None))}
    if not getattr(default, "do_center_crop", None):
        sizes.pop("crop_size", None)
    final = sizes.get("crop_size", sizes.get("size", {}))
    if not isinstance(side, int) or all(length == side for length in final.values() if length):
        return default
    return made(**{key: {part: side for part, length in size.items() if length} for key, size in sizes.items()})
