"""The frozen records that the stages of a run pass on, from a source's records to the final report."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import pydantic
from pydantic import ConfigDict, Field

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image
    from torch import Tensor

    ImageData: TypeAlias = "bytes | Path | Image.Image | Callable[[], bytes | Image.Image]"

MetaValue: TypeAlias = "str | int | float | bool | list[MetaValue] | dict[str, MetaValue] | None"
"""One value of metadata: what JSON can hold."""

INDEX_COLUMNS = ("row", "id")
"""The index's own columns; metadata cannot have these names."""

FloatDtype: TypeAlias = Literal["float16", "bfloat16", "float32", "float64"]
"""The dtypes that a tap can be cast to, by torch's names."""

Dtype: TypeAlias = Literal[
    FloatDtype, "uint8", "int8", "int16", "int32", "int64", "bool",
    "complex64", "complex128", "uint16", "uint32", "uint64",
]  # fmt: skip
"""The dtypes that can be stored, by torch's names."""


def dtype_name(tensor: Tensor) -> str:
    """A tensor's dtype by torch's name for it, as records and manifests have it."""
    return str(tensor.dtype).removeprefix("torch.")


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image of a source: its id and how to read it; no pixels yet.

    `data` is the encoded bytes, a file's path, a decoded image, or a callable that gives bytes or an image (called on
    any thread). A callable may have an attribute `stamp`, one line of text that changes with what it reads from (a size
    and time, an ETag): a run resumes only with the stamps it was planned with. Every record of a source has the same
    keys in `meta`, and none is named `row` or `id`.
    """

    id: str
    data: ImageData
    meta: Mapping[str, MetaValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Planned:
    """A record of a plan.

    `stamp` is its file's size and time, or its callable's stamp, as the plan found them; None where there is none.
    """

    record: ImageRecord
    stamp: str | None = None


@dataclass(frozen=True, slots=True)
class Cause:
    """What was raised for an image: the exception's `type`, the first line of its `message`, and `file:line`.

    All three are short and printable. `place` is empty where no frame is a plugin's.
    """

    type: str
    message: str
    place: str

    def __str__(self) -> str:
        """The cause in one line."""
        said = f"{self.type}: {self.message}" if self.message else self.type
        return f"{said} ({self.place})" if self.place else said


@dataclass(frozen=True, slots=True)
class CountedCause:
    """The cause of the failure of image `first`, and the number of images that failed with its type at its place."""

    cause: Cause
    first: str
    count: int

    def __str__(self) -> str:
        """What to print of it."""
        return f"{self.cause}, first at {self.first!r}" + (f", and {self.count - 1} more" if self.count > 1 else "")


@dataclass(frozen=True, slots=True)
class Failure:
    """A planned image that gives no row: the `stage` it failed at (`read`, `decode`, `prepare`) and a fixed code.

    `cause` is what a plugin raised, or what else the code does not say; None where the code says everything.
    """

    record: ImageRecord
    stage: str
    reason: str
    cause: Cause | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive records of the plan and their prepared pixels, one slot each.

    `pixels` has shape `(len(records), *prepared)`. A record that failed keeps its slot, filled with zeros, and is
    listed in `failures` under its slot number. `notes` holds, for a slot, what was left out or converted on the way to
    RGB, as fixed words such as `cmyk`. Where images have different shapes, `sized` holds the good ones, by
    slot, and `pixels` nothing.
    """

    records: Sequence[ImageRecord]
    pixels: Tensor
    failures: Mapping[int, Failure] = field(default_factory=dict)
    notes: Mapping[int, Sequence[str]] = field(default_factory=dict)
    sized: Mapping[int, Tensor] = field(default_factory=dict)

    def groups(self) -> list[list[int]]:
        """The slots of each shape among `sized`, in the order in which the shapes come."""
        found: dict[tuple[int, ...], list[int]] = {}
        for slot, prepared in self.sized.items():
            found.setdefault(tuple(prepared.shape), []).append(slot)
        return list(found.values())


@dataclass(frozen=True, slots=True)
class Activations:
    """The taps' values for one batch: the records kept, and one tensor per tap with one row per record kept."""

    records: Sequence[ImageRecord]
    values: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Shard:
    """A fixed run of consecutive records, a whole number of batches: the unit of commit.

    `records` are the ones kept, `values` holds one array per tap with one row per record kept; bfloat16 arrives as
    `ml_dtypes.bfloat16`. The sink may keep the arrays.
    """

    number: int
    records: Sequence[ImageRecord]
    values: Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Gathered:
    """A shard with the images that failed: `planned` records of the plan from `first` on, kept or failed."""

    shard: Shard
    first: int
    planned: int
    failures: tuple[Failure, ...]
    nonfinite: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, int] = field(default_factory=dict)
    causes: Sequence[CountedCause] = ()


@dataclass(frozen=True, slots=True)
class TapInfo:
    """A tap as the probe found it.

    `shape` is one image's value as the layer returned it (no batch axis), `axes` names the axes with the batch first
    (`NC`, `NCHW`, `NHWC`, `NLC`, `NHQK`; empty if unknown), `about` are the model's facts, `reduce` the types of the
    reducers it goes through, `op` and `index` the operation of the layer if it is the value of one, `derived` whether
    it was computed from what that was given, and `batch_axis` the axis that was moved to the front.
    """

    name: str
    layer: str
    side: str
    call: int | str | None
    select: tuple[int | str, ...]
    shape: tuple[int, ...]
    dtype: str
    axes: str
    about: Mapping[str, Any] = field(default_factory=dict)
    reduce: tuple[str, ...] = ()
    op: str | None = None
    index: int | None = None
    derived: bool = False
    batch_axis: int = 0


@dataclass(frozen=True, slots=True)
class Column:
    """A tap as it is stored: one image's `shape` and `dtype` after its reducers, and its name as a file."""

    tap: TapInfo
    shape: tuple[int, ...]
    dtype: str
    file: str


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What a run is about to do: given to sinks when they open and to observers with every event."""

    id: str
    planned: int
    columns: Mapping[str, Column]
    batch_size: int
    shard_rows: int
    device: str
    path: Path | None
    config: Mapping[str, Any]
    about: Mapping[str, Any]
    resumed: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """How a run ended.

    `planned == kept + failed`. `seconds` is the whole run, `extracting` the part of it from the first image on. `path`
    is the output folder, None for a sink that has none (then nothing can be resumed, and `stored` is False). `values`
    are the arrays of a sink that returns them, such as `memory`; `about` holds the model provider's facts about the
    model and its weights. `causes` holds, for failures whose code does not say everything, the first of each kind and
    how many there were. `remarks` are sentences for the user, for instance about what an older output did not record.
    """

    planned: int
    kept: int
    failed: int
    shards: int
    seconds: float
    path: Path | None
    stored: bool
    columns: Mapping[str, Column]
    reasons: Mapping[str, int] = field(default_factory=dict)
    nonfinite: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, int] = field(default_factory=dict)
    ids: Sequence[str] | None = None
    values: Mapping[str, NDArray[np.generic]] | None = None
    already: bool = False
    remarks: Sequence[str] = ()
    extracting: float = 0.0
    causes: Sequence[CountedCause] = ()
    about: Mapping[str, Any] = field(default_factory=dict)


WorkerState: TypeAlias = Literal["starting", "computing", "waiting", "left", "refused", "failed", "lost"]


@dataclass(frozen=True, slots=True)
class Job:
    """A run, as data from which a worker builds it again.

    `run` is the id of the run that began the output, `folder` the path of the output, which every worker must see under
    this name, `logs` the folder for what workers print, and `directory` the working directory of relative paths.
    `manifest` holds what a worker must meet: the fingerprint, the batch size, the rows of a shard. `threads` is torch's
    number of threads. `plugins` names the user's own plugin files.
    """

    run: str
    folder: str
    logs: str
    directory: str
    config: Mapping[str, Any]
    manifest: Mapping[str, Any]
    threads: int
    plugins: tuple[str, ...] = ()

    def data(self) -> dict[str, Any]:
        """The job as JSON can hold it."""
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Job:
        """The job that `data` gave."""
        return cls(**{**data, "plugins": tuple(data["plugins"])})


@dataclass(frozen=True, slots=True)
class Receipt:
    """The proof that a worker has computed a shard and made its files durable.

    The files are in the folder `attempts/ATTEMPT` of the output, and `record` is the commit record for them. The rows
    themselves never travel. `device` and `processor` say what computed them, `seconds` where the time went.
    """

    run: str
    shard: int
    attempt: str
    worker: str
    record: Mapping[str, Any]
    device: str
    processor: Mapping[str, Any]
    seconds: Mapping[str, float] = field(default_factory=dict)
    batches: int = 0
    forwards: int = 0


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """What a worker is doing: `images` done so far, at `rate` images per second, the `shard` in progress.

    `error` is what it ended with, in one line, and `code` that error's exit code; `log` is the file with what it
    printed, where there is one.
    """

    worker: str
    state: WorkerState
    host: str = ""
    pid: int = 0
    device: str = ""
    shard: int | None = None
    images: int = 0
    rate: float = 0.0
    error: str = ""
    code: int = 0
    log: str = ""


class Profile(pydantic.BaseModel):
    """The switches that change values a little; by default none does: values are those of the plain loop."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    memory_format: Literal["contiguous", "channels_last"] = Field(
        "contiguous", description="the memory layout of the model's input and weights"
    )
    resize: Literal["exact", "tensor"] = Field(
        "exact", description="the preprocessor's own filter, or torch's on bytes, which is off by one level, rarely two"
    )
    decode: Literal["whole", "scaled"] = Field(
        "whole",
        description="JPEGs at full size, or at a half, a quarter or an eighth where that is enough (a few percent off)",
    )
    tf32: bool | None = Field(None, description="whether NVIDIA GPUs may round to TF32; null keeps torch's setting")


PROFILES = {
    "exact": Profile(),
    "fast": Profile(memory_format="channels_last", resize="tensor", decode="scaled", tf32=True),
}
