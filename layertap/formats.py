"""The image formats that may be opened, by Pillow's names for them; nothing here loads Pillow."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

STANDARD = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
"""Opened always."""

Format: TypeAlias = Literal["TIFF", "JPEG2000", "AVIF"]
OPTIONAL: tuple[Format, ...] = get_args(Format)
"""Opened where the configuration asks for them: their decoders are larger, and so is what has gone wrong in them."""
