"""What a plugin author subclasses: one abstract method per kind; the base supplies the rest.

A plugin class nests its parameters and finds them validated as `self.params`:

    class Reversed(layertap.Source):
        class Params(layertap.Params):
            path: str = Field(description="a folder of images")

        params: Params

Nothing here imports torch, numpy or Pillow; plugins import them inside their methods.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import pluggy
import pydantic
from pydantic import ConfigDict, Field

from layertap.records import PROFILES, Profile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image
    from torch import Tensor, nn

    from layertap.records import ImageRecord, Job, Receipt, Report, RunInfo, Shard, TapInfo, WorkerReport


PROJECT = "layertap"

hookspec = pluggy.HookspecMarker(PROJECT)


class Params(pydantic.BaseModel):
    """A plugin's parameters: a pydantic model that refuses unknown keys. Give every field a description."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NoParams(Params):
    """The parameters of a plugin that has none."""


class Plugin(ABC):  # noqa: B024  (the kinds below it have the abstract methods)
    """What all configured plugins share: they are built as `cls(params)`."""

    Params: ClassVar[type[pydantic.BaseModel]] = NoParams
    extra: ClassVar[str | None] = None
    """The extra of this plugin's distribution that its heavy imports need, named when one is missing."""

    label: ClassVar[str | None] = None
    """What messages call it where a user does not know its class; by default its kind and the name of its class."""

    def __init__(self, params: Any = None) -> None:
        self.params = self.Params() if params is None else params

    @classmethod
    def of(cls, **params: Any) -> Self:
        """This plugin with the given parameters, validated."""
        return cls(cls.Params(**params))


class ModelProvider(Plugin):
    """Turns a name into a module, its preprocessing, and facts about its weights."""

    @abstractmethod
    def load(self) -> LoadedModel:
        """The model on the CPU. Raises `WeightsError` if its weights are missing or do not fit."""


class Source(Plugin):
    """Yields the records of a run, always the same ones in the same order."""

    @property
    def waits(self) -> bool:
        """Whether reading an image is mostly waiting, as over a network: by default, more threads then read at once."""
        return False

    @property
    def hosts(self) -> frozenset[str]:
        """The machines and buckets that reading goes to; by default those of the URLs among the parameters.

        `verify` reads from them only if its user names them. Override it if the parameters do not name all of them.
        """
        return self.hosts_of(self.params.model_dump())

    @classmethod
    def hosts_of(cls, value: object) -> frozenset[str]:
        """The machine, or the bucket, in every URL in a string or in plain data; local paths have none."""
        if isinstance(value, str):
            urls = (part.partition("://") for part in value.split("::"))
            # After zip:// comes a path inside an archive.
            found = (rest.partition("/")[0].rpartition("@")[2] for kind, _, rest in urls if kind != "zip")
            return frozenset(found) - {""}
        if isinstance(value, Mapping):
            value = tuple(value.values())
        inside = value if isinstance(value, (list, tuple)) else ()
        return frozenset[str]().union(*map(cls.hosts_of, inside))

    @property
    def remarks(self) -> Sequence[str]:
        """Sentences about what this source leaves out, for the report and the manifest; read after `records`."""
        return ()

    @abstractmethod
    def records(self) -> Iterator[ImageRecord]:
        """The records: cheap, deterministic, no pixels. Called more than once. Raises `ConfigError`."""


# Pillow's modes of fewer than four bytes per pixel.
_SMALL_MODES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}


class Preprocessor(Plugin):
    """Turns one decoded image into a tensor, and a stacked batch into model input."""

    profile: Profile = PROFILES["exact"]
    """How exact it must be; set before any other call."""

    @property
    def example(self) -> tuple[int, int]:
        """Width and height of an image that `prepare` accepts.

        The core prepares one of this size and a larger one; if they get different shapes, the first real images decide.
        """
        return (640, 480)

    def enough(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """The least width and height from which `prepare` makes nearly the same tensor as from an image of `size`.

        None, the default, if it needs the whole image. Called only if the profile allows a scaled decode.
        """
        return None

    def memory(self, size: tuple[int, int], mode: str) -> int:
        """The bytes that `prepare` allocates for an image of a width, height and Pillow mode, besides the image.

        By default those of a copy as RGB. Override it if `prepare` takes more, so that one image stays within
        `image_memory`. Called before the image is decoded; an error that it raises, `prepare` must raise too.
        """
        return self.stored(size)

    @staticmethod
    def stored(size: tuple[int, int], mode: str = "RGB") -> int:
        """The bytes in which Pillow holds an image: whole words per row, and a pointer to each."""
        width, height = size
        return height * (8 + (width * _SMALL_MODES.get(mode, 4) + 3) // 4 * 4)

    @abstractmethod
    def prepare(self, image: Image.Image) -> Tensor:
        """One image as a CPU tensor of a fixed dtype (uint8 crosses fastest), and best of a fixed shape.

        `image` is as it was decoded, in any mode: call `image.convert("RGB")`. Called on several threads at once.
        Raise `ImageError(code)` for an image that cannot be used.
        """

    def finish(self, batch: Tensor) -> Tensor:
        """The batch `(N, *prepared)` as model input, on the device of `batch`; unchanged by default."""
        return batch


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to tap: the module, its own preprocessing, and facts about it.

    `about` must survive JSON. The core reads `weights` (what they are), `weights_sha256` (64 digits, None if they
    are not a file), `weights_entry` and `weights_prefix` (which state dict of the file, and what was stripped from its
    keys; None if it is a plain one), `layout` (`NCHW` or `NHWC` of its 4-dimensional maps; None if they do not share
    one layout) and `num_prefix_tokens`; all of it goes into the manifest. `advice` is for a model without a
    preprocessor: it is the end of the error that asks for one, and says which to set.
    """

    module: nn.Module
    preprocessor: Preprocessor | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    advice: str = ""


class Reducer(Plugin):
    """Makes an activation smaller, on its device, inside the hook."""

    def bind(self, tap: TapInfo) -> None:
        """Called once, before the first value. Raise `TapError` for a tap that this reducer cannot serve."""

    @abstractmethod
    def __call__(self, activation: Tensor) -> Tensor:
        """The reduced activation; axis 0 remains the batch. `activation` must not be changed."""


class Sink(Plugin):
    """Makes shards of activations durable.

    A run calls `open`, then `write` for each shard, then either `close` or `abort`.
    """

    def open(self, run: RunInfo) -> None:
        """Called once, before the first shard."""

    @abstractmethod
    def write(self, shard: Shard) -> None:
        """Durable on return. The same shard may come again after a crash. Called on one thread, in order."""

    def close(self, report: Report) -> None:
        """Called once, after the last shard of a run that finished."""

    def abort(self, error: BaseException) -> None:
        """Called once when an error or an interrupt ends the run after `open` and before `close`: roll back here.

        No shard is being written then. `error` is what ended the run; an error raised here never replaces it. It is
        not called if the process is killed, and an interrupted command line waits only a few seconds for it.
        """

    def result(self) -> tuple[Sequence[str], Mapping[str, NDArray[np.generic]]] | None:
        """The ids and arrays to hand back in the report; None for a sink that keeps them elsewhere."""
        return None


class ArrayLike(Protocol):
    """The minimum that `FileSink.load` returns: numpy arrays, memory maps, h5py and zarr arrays all fit."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __getitem__(self, key: Any) -> Any: ...

    def __array__(self) -> NDArray[Any]: ...


class FileParams(Params):
    """The parameters of a sink that only has a folder; subclass it to add more."""

    path: str = Field(min_length=1, description="the output folder")


class FileSink(Sink):
    """A sink that writes files into a folder and leaves their safety to the core.

    The core names the folder, makes it durable, renames it into place and writes the commit record.
    """

    Params = FileParams
    params: FileParams
    stems: Mapping[str, str]
    """Each tap's name as a safe, unique file name without its suffix; set before any other call."""

    @abstractmethod
    def save(self, shard: Shard, folder: Path) -> None:
        """The shard as files in `folder`, which is empty."""

    @abstractmethod
    def load(self, folder: Path, tap: str) -> ArrayLike:
        """One tap's rows of one part, or of the merged output: what `save` or `merge` wrote into `folder`."""

    def merge(self, parts: Sequence[Path], folder: Path) -> None:
        """Optional: merge all parts, in order, into one output in `folder`, which is empty.

        Called after the last commit; the core moves what it finds in `folder` into the output folder, and then removes
        the parts. A sink that does not override it keeps its parts.
        """
        raise NotImplementedError

    def write(self, shard: Shard) -> None:
        """The store calls `save` instead, inside a commit."""
        raise NotImplementedError("a FileSink is written through save(), by the output folder's store")


class Engine(Plugin):
    """Has the shards of a run computed by workers: other processes, on this machine or on others.

    The core makes each row true exactly once, so an engine may lose a shard, or bring one several times.
    """

    def workers(self) -> int | None:
        """How many workers there will be, for the forecast of `layertap plan`; None where that is not known."""
        return None

    def threads(self) -> int | None:
        """torch's number of threads in each worker where the configuration has no `threads`; None: torch's own."""
        return None

    @abstractmethod
    def run(self, job: Job, numbers: Iterator[int]) -> Iterator[Receipt | WorkerReport]:
        """The receipts for the shards with these `numbers`, in any order, and reports of what its workers do.

        Take a number when a worker can begin it, and none that is more than twice the workers ahead of the lowest one
        without a receipt. A worker is a process that calls `layertap.Worker(job, name).compute(numbers)`; it must see
        the folder of the output under the same path. After the last number `numbers` may give more of them, for shards
        that were lost. The iterator is closed when the run ends for any reason: end the workers then.
        """


class Observer(Plugin):
    """Watches a run: override the methods for the events of interest; the others do nothing.

    Every event comes on one thread, in the order of the plan, and returns nothing. A method may leave out arguments
    that it does not need, as in `def batch_done(self, count)`, though a type checker asks for all of them. A method
    that raises ends the run.
    """

    @hookspec
    def run_started(self, run: RunInfo) -> None:
        """When the probe has passed and the output is open, before the first image is extracted."""

    @hookspec
    def image_failed(self, run: RunInfo, record: ImageRecord, reason: str) -> None:
        """When an image gives no row; `reason` is a fixed code such as `truncated`."""

    @hookspec
    def batch_done(self, run: RunInfo, count: int) -> None:
        """When a batch has been through the model; `count` planned images are done, kept or failed."""

    @hookspec
    def shard_committed(self, run: RunInfo, number: int) -> None:
        """When shard `number` is durable."""

    @hookspec
    def worker_reported(self, run: RunInfo, worker: WorkerReport) -> None:
        """When a worker of an engine has said what it does: about once a second for each."""

    @hookspec
    def run_finished(self, run: RunInfo, report: Report | None, error: BaseException | None) -> None:
        """When the run has ended: with its report, or with the error that ended it.

        It may be the first event of all, where another observer has raised in `run_started`.
        """
