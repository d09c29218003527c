"""Photographs to extract from, and a small model for it."""

from __future__ import annotations

import importlib.util
import signal
from pathlib import Path

import pytest
from PIL import Image

# If the tests run in a shell's background, signals are ignored, and the processes they start would ignore them too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

TINY = str(Path(__file__).with_name("tiny.py"))


@pytest.fixture(scope="session")
def sample_folder() -> Path:
    """The photographs that scikit-image ships."""
    spec = importlib.util.find_spec("skimage")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "data"


@pytest.fixture(scope="session")
def photographs(sample_folder: Path) -> list[Image.Image]:
    names = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "camera.png")
    return [Image.open(sample_folder / name).convert("RGB") for name in names]


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory, photographs: list[Image.Image]) -> Path:
    """Twenty JPEGs of odd sizes in two folders, one of them greyscale."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(20):
        image = photographs[number % len(photographs)]
        box = (number * 3, number * 2, image.width - number, image.height - 5 * number)
        folder = root / ("cats" if number % 2 else "dogs")
        folder.mkdir(exist_ok=True)
        image.crop(box).convert("L" if number == 7 else "RGB").save(folder / f"{number:02d}.jpg", quality=90)
    return root
