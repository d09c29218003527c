"""The frozen records that the stages of a run pass on, from a source's records to the final report."""

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
    returns them, such as `memory`; `about` holds the model provider's facts about the model and its weights.
    `causes` holds, for failures whose code does not say everything, the first of each kind and how many there were.
    `remarks` are sentences for the user, for instance about what an older output that was resumed did not record.
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


class Causes:
    """Causes by kind, which is the exception's type and place: the first of each, and how many there were.

    After 20 kinds the others are counted together, so that it stays small.
    """

    _MOST = 20
    _OTHERS = Cause("others", "of more kinds than are listed", "")

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, str], CountedCause] = {}

    def add(self, cause: Cause, first: str, count: int = 1) -> None:
        """Count `count` images with a cause, of which `first` is the id of the first."""
        kind = cause.type, cause.place
        if kind not in self._kinds and len(self._kinds) >= self._MOST:
            cause = self._OTHERS
            kind = cause.type, cause.place
        known = self._kinds.get(kind)
        self._kinds[kind] = (
            CountedCause(cause, first, count)
            if known is None
            else CountedCause(known.cause, known.first, known.count + count)
        )

    def add_failures(self, failures: Iterable[Failure]) -> None:
        """Count the causes of failures that have one."""
        for failure in failures:
            if failure.cause is not None:
                self.add(failure.cause, failure.record.id)

    def add_counted(self, causes: Iterable[CountedCause]) -> None:
        """Add counts."""
        for counted in causes:
            self.add(counted.cause, counted.first, counted.count)

    def counted(self) -> tuple[CountedCause, ...]:
        """The kinds, in the order in which they came."""
        return tuple(self._kinds.values())


# Forwards per batch above which a run tells its user that sizes cost time.
_MANY_FORWARDS = 1.5


@dataclass(slots=True)
class Tally:
    """Counts of images and shards, failures by reason, their causes, and what was noted of images and values."""

    planned: int = 0
    shards: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    nonfinite: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    causes: Causes = field(default_factory=Causes)
    batches: int = 0
    forwards: int = 0

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
        """Add a shard whose images have been counted."""
        self.shards += 1
        self.nonfinite.update(nonfinite)
        self.notes.update(notes)

    def report(self, info: RunInfo, seconds: float, *, stored: bool) -> Report:
        """The report of the run whose counts these are."""
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
            causes=self.causes.counted(),
            about=info.about,
            remarks=self._remarks(),
        )

    def _remarks(self) -> list[str]:
        if self.forwards <= _MANY_FORWARDS * self.batches:
            return []
        return [
            f"images of one batch had different sizes: a batch took {self.forwards / self.batches:.1f} forwards on "
            "average; a smaller batch_size, or a preprocessor that resizes, costs less"
        ]
