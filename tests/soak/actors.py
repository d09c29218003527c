"""A plugin file for the trials: an observer that records events, one that waits, and a sink without `merge`."""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

import layertap
from tests.soak import faults

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from layertap.records import RunInfo


class Diary(layertap.Observer):
    """Records in the trace which shards are computed and which are committed."""

    number = 0

    def run_started(self, run: RunInfo) -> None:
        self.number = run.resumed

    def batch_done(self, run: RunInfo, count: int) -> None:
        faults.mark("computed", self.number // run.shard_rows)
        self.number += count

    def shard_committed(self, number: int) -> None:
        faults.mark("committed", number)


class Gate(layertap.Observer):
    """Reports that a run has started, and holds it until it may continue."""

    class Params(layertap.Params):
        started: int = Field(description="a descriptor to write to")
        wait: int = Field(description="a descriptor to read from, to its end")

    params: Params

    def run_started(self) -> None:
        os.write(self.params.started, b"!")
        os.read(self.params.wait, 1)


class Shrunk(layertap.Preprocessor):
    """16 by 16 pixels, without the seconds that it takes to import torchvision."""

    def prepare(self, image: Image.Image) -> Tensor:
        import numpy as np
        import torch

        return torch.from_numpy(np.array(image.convert("RGB").resize((16, 16)))).permute(2, 0, 1)

    def finish(self, batch: Tensor) -> Tensor:
        return batch.float() / 255


class Stuck(layertap.Preprocessor):
    """Reports that it has begun, and hangs."""

    class Params(layertap.Params):
        started: int = Field(description="a descriptor to write to")

    params: Params

    def prepare(self, image: Image.Image) -> Tensor:
        import torch

        if threading.current_thread() is not threading.main_thread():
            os.write(self.params.started, b"!")
            time.sleep(60)
        return torch.zeros(3, 16, 16)


class Gauge(layertap.Observer):
    """Records at regular numbers of images what the process holds: images, bytes, descriptors, threads."""

    class Params(layertap.Params):
        path: str = Field(description="the file to write")
        every: int = Field(description="images")

    params: Params
    seen = 0

    def batch_done(self, count: int) -> None:
        before, self.seen = self.seen, self.seen + count
        if before // self.params.every == self.seen // self.params.every:
            return
        descriptors = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else os.listdir("/dev/fd")
        with open(self.params.path, "a") as file:
            print(self.seen, _resident(), len(descriptors), threading.active_count(), file=file)


def _resident() -> int:
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class PlainSink(layertap.FileSink):
    """Writes each tap of a part as bare values; nothing is merged, so the parts stay."""

    def save(self, shard: layertap.Shard, folder: Path) -> None:
        for tap, values in shard.values.items():
            with open(folder / f"{self.stems[tap]}.bin", "wb") as file:
                for row in values:
                    file.write(row.astype("float32").tobytes())

    def load(self, folder: Path, tap: str) -> Any:
        import numpy as np

        values = np.fromfile(folder / f"{self.stems[tap]}.bin", "float32")
        return values.reshape(-1, *SHAPES[tap])


SHAPES = {"features.0": (8, 14, 14), "classifier": (10,)}


@layertap.hookimpl
def register_observers(register: Callable[[str, Any], None]) -> None:
    register("diary", Diary)
    register("gate", Gate)
    register("gauge", Gauge)


@layertap.hookimpl
def register_preprocessors(register: Callable[[str, Any], None]) -> None:
    register("shrunk", Shrunk)
    register("stuck", Stuck)


@layertap.hookimpl
def register_sinks(register: Callable[[str, Any], None]) -> None:
    register("plain", PlainSink)
