"""How many pixels an image may have, told from its header, before anything is allocated for them."""

from __future__ import annotations

from layertap.images.failure_codes import refusal

# Where Pillow starts to warn of a decompression bomb: 256 MiB as RGB.
MAX_PIXELS = 89_478_485


def check_pixels(width: int, height: int) -> None:
    """Raise `ImageError`, `too_large`, for more pixels than are opened."""
    if width * height > MAX_PIXELS:
        raise refusal("too_large")
