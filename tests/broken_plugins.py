"""Plugins that break one promise each, for the suites of layertap.testing to find."""

from __future__ import annotations

import itertools
import random
import socket
import subprocess
import time
from pathlib import Path
from typing import ClassVar

import pydantic
from pydantic import Field

import layertap

# --- sources


class Sound(layertap.Source):
    """Keeps every promise; the others change one thing in it."""

    def records(self):
        for number in range(4):
            yield layertap.ImageRecord(f"{number}.png", self.data(number), self.meta(number))

    def data(self, number):
        return lambda: image(number)

    def meta(self, number):
        return {"number": number}


class Undescribed(Sound):
    class Params(layertap.Params):
        path: str = "images"


class Lenient(Sound):
    class Params(pydantic.BaseModel):
        path: str = Field("images", description="a folder")


class Shuffled(Sound):
    """Reverses its order at every call, of any instance."""

    calls = itertools.count()

    def records(self):
        return iter(list(super().records())[:: 1 if next(self.calls) % 2 else -1])


class Spent(Sound):
    """Yields its records only once."""

    def __init__(self, params=None):
        super().__init__(params)
        self.once = super().records()

    def records(self):
        return self.once


class OfTheClock(Sound):
    def meta(self, number):
        return {"number": time.monotonic_ns()}


class Twice(Sound):
    def records(self):
        return itertools.chain(super().records(), super().records())


class NoText(Sound):
    def records(self):
        yield layertap.ImageRecord("\udcff.png", self.data(0))


class Uneven(Sound):
    def meta(self, number):
        return {"number": number} if number else {}


class NamesRow(Sound):
    def meta(self, number):
        return {"row": number}


class Eager(Sound):
    def data(self, number):
        return b"all its bytes"


class Opens(Sound):
    """Opens each file to list it."""

    class Params(layertap.Params):
        path: str = Field(description="a folder")

    def records(self):
        for path in sorted(Path(self.params.path).iterdir()):
            with open(path, "rb") as file:
                yield layertap.ImageRecord(path.name, path, {"head": file.read(2).hex()})


class Decodes(Sound):
    def records(self):
        from PIL import Image

        Image.open("photograph.png")
        return super().records()


class OneCursor(Sound):
    """Its records share one read position."""

    def records(self):
        cursor = {"at": 0}

        def read(number):
            cursor["at"] = number
            time.sleep(0.01)
            return image(cursor["at"])

        for number in range(4):
            yield layertap.ImageRecord(f"{number}.png", lambda n=number: read(n))


class NothingThere(Sound):
    def data(self, number):
        return Path("/nowhere") / str(number)


class NoImages(Sound):
    def data(self, number):
        return lambda: b"no image"


# --- preprocessors


class Square(layertap.Preprocessor):
    """Keeps every promise."""

    def prepare(self, image):
        return tensor(image.convert("RGB").resize((8, 8)))

    def finish(self, batch):
        return batch / 255


class OwnSize(Square):
    def prepare(self, image):
        return tensor(image.convert("RGB"))


class Fussy(Square):
    def prepare(self, image):
        if image.mode != "RGB":
            raise layertap.ImageError("unsupported_mode")
        return super().prepare(image)


class Thumbnails(Square):
    def prepare(self, image):
        image.thumbnail((8, 8))
        return super().prepare(image)


class OneBuffer(Square):
    """All threads share one tensor."""

    def __init__(self, params=None):
        super().__init__(params)
        self.kept = None

    def prepare(self, image):
        prepared = super().prepare(image)
        if self.kept is None:
            self.kept = prepared
        return self.kept.copy_(prepared)


class OverTheBatch(Square):
    def finish(self, batch):
        return batch - batch.float().mean()


class OneRow(Square):
    def finish(self, batch):
        return batch.float().mean(0, keepdim=True)


# --- reducers


class Mean(layertap.Reducer):
    """Keeps every promise."""

    def __call__(self, activation):
        return activation.flatten(1).mean(1, keepdim=True)


class NeedsMaps(Mean):
    def __call__(self, activation):
        return activation.mean((2, 3))


class RefusesAll(Mean):
    def bind(self, tap):
        raise layertap.TapError("never")


class LosesTheBatch(Mean):
    def __call__(self, activation):
        return activation.flatten(1).mean(0, keepdim=True)


class InPlace(Mean):
    def __call__(self, activation):
        return super().__call__(activation.mul_(2))


class Centred(Mean):
    def __call__(self, activation):
        return super().__call__(activation - activation.mean(0))


class Drawn(Mean):
    def __call__(self, activation):
        return super().__call__(activation) * random.random()


# --- sinks


class Appends(layertap.Sink):
    """Stores a repeated shard a second time."""

    def __init__(self, params=None):
        super().__init__(params)
        self.ids, self.arrays = [], {}

    def write(self, shard):
        self.ids += [record.id for record in shard.records]
        for tap, values in shard.values.items():
            self.arrays.setdefault(tap, []).append(values)

    def result(self):
        import numpy as np

        return self.ids, {tap: np.concatenate(arrays) for tap, arrays in self.arrays.items()}


class RollsBack(layertap.Sink):
    """Breaks nothing: a database with one transaction per run."""

    shards: ClassVar[dict[str, dict[int, layertap.Shard]]] = {}
    name = ""

    def open(self, run):
        self.name, self.transaction = run.id, {}

    def write(self, shard):
        self.transaction[shard.number] = shard
        self.shards[self.name] = dict(self.transaction)

    def abort(self, error):
        self.shards.pop(self.name, None)

    def result(self):
        import numpy as np

        shards = list(self.shards[self.name].values())
        values = {tap: np.concatenate([shard.values[tap] for shard in shards]) for tap in shards[0].values}
        return [record.id for shard in shards for record in shard.records], values


class KeepsHalf(Appends):
    """A table that all runs add to, from which a failed run's rows are not taken away."""

    ids: ClassVar[list[str]] = []
    arrays: ClassVar[dict[str, list]] = {}

    def __init__(self, params=None):
        layertap.Sink.__init__(self, params)

    def write(self, shard):
        self.ids.extend(record.id for record in shard.records)
        for tap, values in shard.values.items():
            self.arrays.setdefault(tap, []).append(values)


class OnlyCloses(Appends):
    """Rolls back a transaction that only a first shard begins."""

    def abort(self, error):
        self.transaction.rollback()


class Narrow(Appends):
    """Keeps all values as float32."""

    def write(self, shard):
        import numpy as np

        values = {tap: array.astype(np.float32) for tap, array in shard.values.items()}
        super().write(layertap.Shard(shard.number, shard.records, values))


class Loses(Appends):
    def write(self, shard):
        if shard.number:
            super().write(shard)


# --- file sinks


class Raw(layertap.FileSink):
    """Keeps every promise: one `.npy` file per tap, bfloat16 as its bits, merged at the end."""

    def save(self, shard, folder):
        for tap, values in shard.values.items():
            self.put(folder, tap, values)

    def load(self, folder, tap):
        import numpy as np

        return np.load(folder / self.name(tap))

    def merge(self, parts, folder):
        import numpy as np

        for tap in self.stems:
            self.put(folder, tap, np.concatenate([self.load(part, tap) for part in parts]))

    def put(self, folder, tap, values):
        import numpy as np

        if values.dtype.name == "bfloat16":
            values = values.view(np.uint16)
        np.save(folder / self.name(tap), values)

    def name(self, tap):
        return f"{self.stems[tap]}.npy"


class Halved(Raw):
    def put(self, folder, tap, values):
        import numpy as np

        super().put(folder, tap, values.astype(np.float16))


class NoEmpty(Raw):
    def put(self, folder, tap, values):
        if len(values):
            super().put(folder, tap, values)


class OwnNames(Raw):
    def name(self, tap):
        return f"{tap.replace('/', '_').lower()[:40]}.npy"


class OutOfOrder(Raw):
    def merge(self, parts, folder):
        super().merge(parts[::-1], folder)


class MovesParts(Raw):
    def merge(self, parts, folder):
        super().merge(parts, folder)
        for tap in self.stems:
            (parts[0] / self.name(tap)).unlink()


class WritesIndex(Raw):
    def merge(self, parts, folder):
        super().merge(parts, folder)
        (folder / "index.csv").write_text("row,id\n")


class Dated(Raw):
    def save(self, shard, folder):
        super().save(shard, folder)
        (folder / "written").write_text(str(time.monotonic_ns()))


class Stray(Raw):
    def save(self, shard, folder):
        super().save(shard, folder)
        Path(self.params.path).mkdir(exist_ok=True)
        (Path(self.params.path) / "log").write_text("saved")


class Links(Raw):
    def save(self, shard, folder):
        super().save(shard, folder)
        (folder / "latest").symlink_to(folder / self.name(next(iter(shard.values))))


class Whole(Raw):
    """Gives its rows as a list of lists."""

    def load(self, folder, tap):
        return super().load(folder, tap).tolist()


class Remembers(Raw):
    """Merges only the shards that this very instance has saved, so that those before a crash are lost."""

    def __init__(self, params=None):
        super().__init__(params)
        self.saved = {}

    def save(self, shard, folder):
        super().save(shard, folder)
        self.saved[folder.name.removesuffix(".tmp")] = shard

    def merge(self, parts, folder):
        super().merge([part for part in parts if part.name in self.saved], folder)


# --- models


class Net(layertap.ModelProvider):
    """Keeps every promise."""

    def load(self):
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return layertap.LoadedModel(self.module(), Square(), {"weights": "random"})

    def module(self):
        from torch import nn

        return nn.Sequential(nn.Flatten(), nn.Linear(192, 4))


class Bare(Net):
    def load(self):
        return super().load().module


class Unseeded(Net):
    def load(self):
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.seed()
            return layertap.LoadedModel(self.module(), Square())


class Seeds(Net):
    def load(self):
        import torch

        torch.manual_seed(0)
        return layertap.LoadedModel(self.module(), Square())


class Noisy(Net):
    def module(self):
        import torch

        class Noise(torch.nn.Module):
            def forward(self, x):
                return torch.rand_like(x)

        return Noise()


class Unwritable(Net):
    def load(self):
        return layertap.LoadedModel(self.module(), Square(), {"path": Path("weights.pth")})


class ShortDigest(Net):
    def load(self):
        return layertap.LoadedModel(self.module(), Square(), {"weights_sha256": "d1b0ea91"})


# --- observers


class Quiet(layertap.Observer):
    """Keeps every promise."""

    def run_finished(self, run, report, error):
        pass


class Raises(Quiet):
    def batch_done(self, run, count):
        raise OSError("no such socket")


class NeedsAStart(Quiet):
    def run_started(self, run):
        self.started = time.monotonic()

    def run_finished(self, run, report, error):
        self.seconds = time.monotonic() - self.started


class NeedsAReport(Quiet):
    def run_finished(self, run, report, error):
        self.kept = report.kept


class Prints(Quiet):
    def batch_done(self, count):
        print(count)


class Misspelt(Quiet):
    def run_finnished(self):
        pass


def image(number):
    from PIL import Image

    return Image.linear_gradient("L").rotate(90 * number)


def tensor(image):
    import torch

    width, height = image.size
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(height, width, 3).permute(2, 0, 1)


# --- engines


class Here(layertap.Engine):
    """Keeps every promise: a worker in this process."""

    def run(self, job, numbers):
        with layertap.Worker(job, "here") as worker:
            yield from worker.compute(numbers)


class AnyThreads(Here):
    numbers = itertools.count(1)

    def threads(self):
        return next(self.numbers)


class LeavesALog(Here):
    def run(self, job, numbers):
        (Path(job.folder) / "engine.log").write_text("started")
        yield from super().run(job, numbers)


class NeverTwice(Here):
    """Takes a number that comes again for a mistake."""

    def __init__(self, params=None):
        super().__init__(params)
        self.done = set()

    def run(self, job, numbers):
        yield from super().run(job, self.once(numbers))

    def once(self, numbers):
        for number in numbers:
            if number not in self.done:
                self.done.add(number)
                yield number


class HidesTheCause(Here):
    def run(self, job, numbers):
        try:
            yield from super().run(job, numbers)
        except layertap.LayertapError:
            raise layertap.PluginError("a worker has failed") from None


class LeavesAProcess(Here):
    left: ClassVar[list] = []

    def run(self, job, numbers):
        process = subprocess.Popen(["sleep", "60"])
        self.left.append(process)
        yield layertap.WorkerReport("asleep", "computing", host=socket.gethostname(), pid=process.pid)
        yield from super().run(job, numbers)
