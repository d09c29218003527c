"""The photographs that scikit-image ships: for a first run without images of your own and without a network."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import layertap

# Only photographs are listed: no drawings, microscope slides or test patterns. The two motorcycles are a stereo pair,
# so that a search for nearest neighbours has something to find.
PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "moon.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "retina.jpg",
    "rocket.jpg",
)


class SamplesSource(layertap.Source):
    """Yields the photographs by file name; `label` is the name without its suffix."""

    extra = "samples"

    def records(self) -> Iterator[layertap.ImageRecord]:
        folder = _data_folder()
        for name in PHOTOGRAPHS:
            path = folder / name
            if not path.is_file():
                raise layertap.ConfigError(
                    f"samples: {name} is not in {str(folder)!r}; install another version of scikit-image",
                    where=("type",),
                )
            yield layertap.ImageRecord(name, path, {"label": path.stem})


def _data_folder() -> Path:
    """The folder of the photographs, found without running any code of scikit-image."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'skimage'", name="skimage")
    return Path(next(iter(spec.submodule_search_locations))) / "data"


@layertap.hookimpl
def register_sources(register: Callable[[str, type[layertap.Source]], None]) -> None:
    register("samples", SamplesSource)
