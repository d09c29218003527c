"""How many pixels an image may have, told from its header, before anything is allocated for them."""

from __future__ import annotations

from layertap.images.failure_codes import refusal
from layertap.images.limits import MAX_IMAGE_PIXELS


def check_pixels(width: int, height: int) -> None:
    """Raise `ImageError`, `too_large`, for more pixels than are opened."""
    if width * height > MAX_IMAGE_PIXELS:
        raise refusal("too_large")
