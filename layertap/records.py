"""The frozen records that travel down the line, from a source's first to the report at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

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
"""What a tap can be cast to, by torch's names."""

Dtype: TypeAlias = Literal[
    FloatDtype, "uint8", "int8", "int16", "int32", "int64", "bool",
    "complex64", "complex128", "uint16", "uint32", "uint64",
]  # fmt: skip
"""What can be stored, by torch's names."""


def dtype_name(tensor: Tensor) -> str:
    """A tensor's dtype by torch's name for it, as records and manifests have it."""
    return str(tensor.dtype).removeprefix("torch.")


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image of a source: who it is and how to read it; no pixels yet.

    `data` is the encoded bytes, a file's path, a decoded image, or a callable that gives bytes or an image (called on
    any thread). A callable may have an attribute `stamp`, one line of text that changes with what it reads from (a size
    and time, an ETag): a run goes on only with the stamps it was planned with. Every record of a source has the same
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
class Failure:
    """A planned image that gives no row: the `stage` it failed at (`read`, `decode`, `prepare`) and a fixed code."""

    record: ImageRecord
    stage: str
    reason: str


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive records of the plan and their prepared pixels, one slot each.

    `pixels` has shape `(len(records), *prepared)`. A record that failed keeps its slot, filled with zeros, and is
    listed in `failures` under its slot number. `notes` holds, for a slot, what was left out or converted on the way to
    RGB, as fixed words such as `cmyk`.
    """

    records: Sequence[ImageRecord]
    pixels: Tensor
    failures: Mapping[int, Failure] = field(default_factory=dict)
    notes: Mapping[int, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Activations:
    """What the taps gave for one batch: the records kept, and a tensor a tap with one row a record kept."""

    records: Sequence[ImageRecord]
    values: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Shard:
    """A fixed run of consecutive records, a whole number of batches: the unit of commit.

    `records` are the ones kept, `values` holds an array a tap with one row a record kept; bfloat16 arrives as
    `ml_dtypes.bfloat16`. The arrays are the sink's to keep.
    """

    number: int
    records: Sequence[ImageRecord]
    values: Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Gathered:
    """A shard with what did not make it in: `planned` records of the plan from `first` on, kept or failed."""

    shard: Shard
    first: int
    planned: int
    failures: tuple[Failure, ...]
    nonfinite: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TapInfo:
    """A tap as the probe found it.

    `shape` is one image's value as the layer returned it (no batch axis), `axes` names the axes with the batch first
    (`NC`, `NCHW`, `NHWC`, `NLC`; empty where they are not known), `about` are the model's facts, `reduce` the types of
    the reducers it goes through.
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

    `planned == kept + failed`. `seconds` is the whole run, `extracting` the part of it from the first image to the
    finished output; before that the model is loaded and everything is checked. `path` is the output folder, None for a
    sink that has none (then nothing can be resumed, and `stored` is False). `values` are the arrays of a sink that
    returns them, such as `memory`; `about` is what the model provider says of the model and its weights.
    `remarks` are sentences for the user: what is not known of an older output that was resumed, for instance.
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
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Tally:
    """Counts of images and shards, failures by reason, and what was noted of images and values."""

    planned: int = 0
    shards: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    nonfinite: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)

    @property
    def failed(self) -> int:
        """Images without a row."""
        return self.reasons.total()

    @property
    def kept(self) -> int:
        """Images with a row."""
        return self.planned - self.failed

    def count_images(self, planned: int, reasons: Iterable[str]) -> None:
        """Add images, and the reasons of those among them that failed."""
        self.planned += planned
        self.reasons.update(reasons)

    def count_shard(self, nonfinite: Mapping[str, int], notes: Mapping[str, int]) -> None:
        """Add a shard whose images are counted."""
        self.shards += 1
        self.nonfinite.update(nonfinite)
        self.notes.update(notes)

    def report(self, info: RunInfo, seconds: float, *, stored: bool) -> Report:
        """How the run ended that these are the counts of."""
        return Report(
            planned=self.planned,
            kept=self.kept,
            failed=self.failed,
            shards=self.shards,
            seconds=seconds,
            path=info.path,
            stored=stored,
            columns=info.columns,
            reasons=dict(self.reasons),
            nonfinite=dict(self.nonfinite),
            notes=dict(self.notes),
            about=info.about,
        )
