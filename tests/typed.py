"""A plugin file as a user would write it: images with metadata of every type, and third-party sinks."""

from __future__ import annotations

import os
import signal
import weakref
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

import layertap

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray


class Typed(layertap.Source):
    """Small images, with metadata that is sometimes missing or of another type; every seventh is not an image."""

    class Params(layertap.Params):
        count: int = Field(20, ge=0, description="how many images")
        bad: bool = Field(False, description="whether none of them is an image")

    params: Params

    def records(self) -> Iterator[layertap.ImageRecord]:
        from PIL import Image

        for number in range(self.params.count):
            image = Image.new("RGB", (16, 16), (number % 256, 3 * number % 256, 128))
            meta: dict[str, Any] = {
                "count": None if number == 2 else number - 5,
                "share": number / 3 if number % 4 else None,
                "even": number % 2 == 0,
                "text": f'{number}, "é"\n' if number % 5 else None,
                "mixed": [number, f"n{number}", None, number / 2, True][number % 5],
                "large": 2**70 + number,
                "none": None,
                "label": ["dog", "cat", "owl"][number % 3],
            }
            data = b"" if number % 7 == 6 or self.params.bad else image
            yield layertap.ImageRecord(f"ä/{number:03d}", data, meta)


class Kept:
    """A part in memory; the class knows its live instances."""

    alive: ClassVar[weakref.WeakSet[Kept]] = weakref.WeakSet()

    def __init__(self, values: NDArray[Any]) -> None:
        self.values = values
        self.shape = values.shape
        self.dtype = values.dtype
        self.alive.add(self)

    def __getitem__(self, key: Any) -> Any:
        return self.values[key]

    def __array__(self) -> NDArray[Any]:
        return self.values


class Parts(layertap.FileSink):
    """Keeps its parts, with the taps' bits in a separate folder, and knows neither shapes nor bfloat16."""

    def save(self, shard: layertap.Shard, folder: Path) -> None:
        import math

        import numpy as np

        (folder / "rows").mkdir()
        for tap, values in shard.values.items():
            flat = np.ascontiguousarray(values).reshape(len(values), math.prod(values.shape[1:]))
            np.save(folder / "rows" / f"{self.stems[tap]}.npy", flat.view(f"u{values.itemsize}"))

    def load(self, folder: Path, tap: str) -> Any:
        import numpy as np

        return Kept(np.load(folder / "rows" / f"{self.stems[tap]}.npy", allow_pickle=False))


class Deadly(Parts):
    """Ends its process, or raises, at the step in the file that `DEADLY` names, and removes that file first."""

    def open(self, run: Any) -> None:
        self.planned = run.planned
        self._meet("open")

    def save(self, shard: layertap.Shard, folder: Path) -> None:
        super().save(shard, folder)
        self._meet(f"save {shard.number}")

    def merge(self, parts: Any, folder: Path) -> None:
        import numpy as np

        (folder / "rows").mkdir()
        for stem in self.stems.values():
            np.save(
                folder / "rows" / f"{stem}.npy", np.concatenate([np.load(p / "rows" / f"{stem}.npy") for p in parts])
            )
        self._meet("merge")

    def close(self, report: Any) -> None:
        assert report.planned == self.planned
        self._meet("close")

    def _meet(self, where: str) -> None:
        fate = os.environ.get("DEADLY", "")
        if os.path.exists(fate):
            with open(fate) as file:
                how, place = file.read().split(" ", 1)
            if place == where:
                os.unlink(fate)
                if how == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise RuntimeError("fate")


@layertap.hookimpl
def register_sources(register: Any) -> None:
    register("typed", Typed)


@layertap.hookimpl
def register_sinks(register: Any) -> None:
    register("parts", Parts)
    register("deadly", Deadly)
