"""A folder of typical photographs: JPEGs of 500 x 375 pixels, those of the source `samples` under many names."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, ImageOps

from layertap_plugins.sources.samples import SamplesSource

SIZE = (500, 375)
QUALITY = 90


def write(folder: Path, count: int) -> None:
    """Fill the folder with `count` files."""
    files = []
    for record in SamplesSource().records():
        with Image.open(record.data) as image:
            photograph = ImageOps.fit(image.convert("RGB"), SIZE)
        file = io.BytesIO()
        photograph.save(file, "JPEG", quality=QUALITY)
        files.append(file.getvalue())
    for number in range(count):
        (folder / f"{number:04d}.jpg").write_bytes(files[number % len(files)])
