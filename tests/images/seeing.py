"""A preprocessor that sees everything which preparing an image may look at, and gives its digest."""

from __future__ import annotations

import hashlib

import torch
from PIL import Image, ImageOps

import layertap

FORM = ((32,), torch.uint8)


def converted(image: Image.Image, mode: str) -> object:
    try:
        return image.convert(mode).tobytes()
    except (ValueError, OSError) as error:
        return str(error)


def seen(image: Image.Image) -> list[object]:
    """All that preparing an image may look at."""
    image.load()
    palette = image.palette and (image.palette.mode, bytes(image.palette.palette), image.im.getpalette("RGBA", "RGBA"))
    upright = ImageOps.exif_transpose(image)
    facts = [image.mode, image.size, image.format, image.tobytes(), palette, upright.size, upright.tobytes()]
    infos = [image.info.get(key) for key in ("exif", "icc_profile", "transparency", "background")]
    return [*facts, *infos, *(converted(image.copy(), mode) for mode in ("RGB", "L", "RGBA"))]


class Seen(layertap.Preprocessor):
    def prepare(self, image: Image.Image) -> torch.Tensor:
        digest = hashlib.sha256(repr(seen(image)).encode()).digest()
        return torch.frombuffer(bytearray(digest), dtype=torch.uint8)


class Hungry(layertap.Preprocessor):
    """Needs more memory for an image of a certain size than it says."""

    def prepare(self, image: Image.Image) -> torch.Tensor:
        if image.size == (3, 3):
            torch.empty(2**33, dtype=torch.uint8).fill_(1)
        return torch.zeros(32, dtype=torch.uint8)


class Choosy(layertap.Preprocessor):
    """Fails each image of a certain size in its own way."""

    def prepare(self, image: Image.Image) -> torch.Tensor:
        if image.size == (3, 3):
            raise layertap.ImageError("a_code_of_its_own")
        if image.size == (4, 4):
            raise RuntimeError("a fault of its own")
        return torch.zeros(5 if image.size == (5, 5) else 32, dtype=torch.uint8)
