"""An AVIF image, decoded by Pillow and libavif if this Pillow includes it."""

from __future__ import annotations

import struct
from io import BytesIO
from typing import Any

from PIL import AvifImagePlugin, Image

from layertap.images.decoding.bounds import Bounds
from layertap.images.decoding.boxes import boxes
from layertap.images.exif import ORIENTATION
from layertap.images.failure_codes import refusal

# Bytes per pixel: luma, two colours and alpha, with 16 bits each in a deep image; then RGBA, and a copy as bytes.
_BYTES = 16


def opened(data: bytes, bounds: Bounds) -> tuple[Image.Image, set[str], int]:
    """The first image, not loaded yet, notes about it, and what else decoding it allocates. Raises `ImageError`."""
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
        """Open as Pillow does, but on one thread, because many images are decoded at once, and without parsing EXIF.

        Pillow parses the block, and warns of faults, only to store the orientation in it. Here EXIF holds nothing else.
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
