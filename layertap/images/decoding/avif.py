"""An AVIF image by Pillow and libavif, where this Pillow has it."""

from __future__ import annotations

import struct
from io import BytesIO
from typing import Any

from PIL import AvifImagePlugin, Image

from layertap.images.decoding.bounds import Bounds
from layertap.images.decoding.boxes import boxes
from layertap.images.exif import ORIENTATION
from layertap.images.failure_codes import refusal

# Luma, two colours and alpha, of 16 bits each where they are deep; then RGBA of it, and that as bytes.
_BYTES = 16


def opened(data: bytes, bounds: Bounds) -> tuple[Image.Image, set[str], int]:
    """The first image, not loaded yet, notes about it, and what decoding it allocates besides. Raises `ImageError`."""
    if not is_there():
        raise refusal("codec_missing")
    try:
        for _ in boxes(data):
            pass
    except struct.error:
        raise refusal("truncated") from None
    bounds.check_memory(len(data))
    image = _Avif(BytesIO(data))
    return image, set(), _BYTES * image.width * image.height


def is_there() -> bool:
    """Whether this Pillow can read AVIF."""
    return AvifImagePlugin.SUPPORTED


class _Avif(AvifImagePlugin.AvifImageFile):
    def _open(self) -> None:
        """As Pillow does, but on one thread, as many images are decoded at once, and without its look at EXIF.

        It parses that, and warns of its faults, to note there how the image is to be turned; here that is all of it.
        """
        from PIL import _avif

        assert self.fp is not None
        self._decoder: Any = _avif.AvifDecoder(self.fp.read(), "auto", 1)
        self._size, self.n_frames, self._mode, profile, _, orientation, _ = self._decoder.get_info()
        self.is_animated = self.n_frames > 1
        if profile:
            self.info["icc_profile"] = profile
        if orientation != 1:
            exif = Image.Exif()
            exif[ORIENTATION] = orientation
            self.info["exif"] = exif.tobytes()
        self.seek(0)
