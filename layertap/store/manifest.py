"""The manifest of an output folder: its contents, its origin, and the digests that prove it complete."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias, TypeVar

import pydantic
from pydantic import AfterValidator, ConfigDict, Field

from layertap.errors import FOREIGN, StoreError, faults_of
from layertap.records import Cause, CountedCause, Dtype
from layertap.store import safe_files
from layertap.store.tally import Causes, Tally

_PLAIN = re.compile(r"[A-Za-z0-9_%~-][A-Za-z0-9._%~-]*")

FORMAT = 1
MANIFEST = "manifest.json"

M = TypeVar("M", bound=pydantic.BaseModel)

Count: TypeAlias = Annotated[int, Field(ge=0)]
Counts: TypeAlias = dict[str, Count]
Digest: TypeAlias = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="a sha256, hexadecimal")]
Shape: TypeAlias = Annotated[list[Count], Field(max_length=32)]


def _inside(name: str) -> str:
    if not safe_files.is_inside(name):
        raise ValueError(f"{name!r} is not a name that a run of layertap writes")
    return name


def _stem(name: str) -> str:
    if not _PLAIN.fullmatch(name):
        raise ValueError(f"{name!r} is not a name that a run of layertap writes")
    return name


FileName: TypeAlias = Annotated[str, AfterValidator(_inside)]
Stem: TypeAlias = Annotated[str, AfterValidator(_stem)]


class Facts(pydantic.BaseModel):
    """The contents of one of layertap's JSON files, of exactly these types; additions by later versions are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)


class Owner(Facts):
    """The process that writes an output."""

    host: str
    pid: int
    since: str = Field(description="UTC, ISO 8601")

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


class RawFacts(Facts):
    """A tap's value for one image, as the layer returned it."""

    shape: Shape
    dtype: str
    axes: str = Field(description="the axes with the batch first, such as NCHW; empty if they are not known")


class TapFacts(Facts):
    """A tap as it is stored."""

    layer: str
    side: str
    call: int | str | None
    select: list[int | str]
    shape: Shape = Field(description="the shape of one image's value, after the reducers")
    dtype: Dtype
    file: Stem = Field(description="the tap's name as a file name, without a suffix")
    reduce: list[str]
    raw: RawFacts
    nonfinite: Count | None = Field(description="values that are NaN or infinite; null while the run is in progress")
    op: str | None = Field(None, description="the operation of the layer whose value it is; null for the layer's own")
    index: Count | None = Field(None, description="which run of that operation in one call of the layer")
    derived: bool = Field(False, description="whether it was computed from what the operation was given")
    batch_axis: Count = Field(0, description="which axis of the layer's value is the image; it was moved to the front")


class FileFacts(Facts):
    """A file as it was written."""

    bytes: Count
    sha256: Digest

    @classmethod
    def of(cls, path: Path) -> Self:
        """The facts of the file at `path`, read once. Raises `OSError`."""
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256")
            return cls(bytes=file.tell(), sha256=found.hexdigest())


class CauseFacts(Facts):
    """What was raised for images of a shard or output, once per type and place."""

    type: str = Field(description="the type of the exception")
    message: str
    place: str = Field(description="its file and line, empty if they are not known")
    first: str = Field(description="the id of the first image that failed so")
    count: Count = Field(description="how many images failed so")

    @classmethod
    def of(cls, causes: Iterable[CountedCause]) -> list[Self]:
        """The facts of some causes."""
        return [cls(first=each.first, count=each.count, **dataclasses.asdict(each.cause)) for each in causes]

    def counted(self) -> CountedCause:
        """The cause that it records."""
        return CountedCause(Cause(self.type, self.message, self.place), self.first, self.count)


class ShardFacts(Facts):
    """A shard: the records of the plan that it holds, and the digests of its rows."""

    planned: Count
    kept: Count
    source: Digest = Field(description="a sha256 of the ids, sizes and modification times of the images kept")
    values: dict[str, Digest] = Field(description="a sha256 of the rows of each tap, as C-ordered bytes")
    nonfinite: Counts
    notes: Counts
    causes: list[CauseFacts] = Field(default=[])
    processor: dict[str, Any] | None = Field(
        None, description="what computed it, where the configuration allows any kind of processor"
    )


class Totals(Facts):
    """The numbers of images and shards."""

    planned: Count
    kept: Count
    failed: Count
    shards: Count


class Manifest(Facts):
    """`manifest.json`."""

    layertap: Literal[1] = Field(description="the version of this format")
    run: str = Field(description="a UUID of the run that began this output")
    status: Literal["running", "complete"] = "running"
    started: str = ""
    finished: str | None = None
    owner: Owner | None = Field(
        None, description="the process that writes, or wrote when it was stopped; null once complete"
    )
    replaces: str | None = Field(None, description="the run that wrote the output to be replaced by this one")
    counts: Totals | None = None
    failures: Counts = Field(default={}, description="images that failed, by reason")
    causes: list[CauseFacts] = Field(
        default=[], description="what was raised for images that failed: the first of each kind"
    )
    notes: Counts = Field(
        default={}, description="images kept although something in them was left out, by what was left out"
    )
    seconds: float | None = Field(None, description="seconds from start to end of the run that finished")
    timing: dict[str, float] = Field(
        default={}, description="seconds by stage, added up over threads, of the run that finished"
    )
    config: dict[str, Any]
    fingerprint: dict[str, Any] = Field(
        description="everything that a value can depend on; a resumed run must match it"
    )
    model: dict[str, Any] = Field(
        description="the facts that the model provider states about the model and its weights"
    )
    versions: dict[str, str]
    taps: dict[str, TapFacts]
    unfused: list[str] = Field(description="layers that run as plain Python because they are tapped")
    planned: Count
    batch_size: Count
    shard_rows: Count
    device: str
    threads: Count
    python: str
    host: dict[str, str]
    meta: dict[str, str] = Field(
        default={}, description="the metadata columns of the index, and their types: str, int, float, bool, json, null"
    )
    remarks: list[str] = Field(default=[], description="what the source left out, in sentences")
    merged: bool = Field(False, description="whether the parts have been merged into one file per tap")
    files: dict[FileName, FileFacts] = Field(default={}, description="every other file of a complete output")
    shards: list[ShardFacts] = Field(
        default=[], description="the shards of a complete output, in the order of the plan"
    )

    def tally(self) -> Tally:
        """The counts of a complete output."""
        counts = self.counts or Totals(planned=0, kept=0, failed=0, shards=0)
        causes = Causes()
        causes.add_counted(cause.counted() for cause in self.causes)
        return Tally(
            planned=counts.planned,
            shards=counts.shards,
            reasons=Counter(self.failures),
            nonfinite=Counter({name: tap.nonfinite or 0 for name, tap in self.taps.items()}),
            notes=Counter(self.notes),
            causes=causes,
        )

    def count(self, tally: Tally) -> None:
        """Record the counts of an output that is being completed."""
        self.counts = Totals(planned=tally.planned, kept=tally.kept, failed=tally.failed, shards=tally.shards)
        self.failures, self.notes = dict(sorted(tally.reasons.items())), dict(sorted(tally.notes.items()))
        self.causes = CauseFacts.of(tally.causes.counted())
        for name, tap in self.taps.items():
            tap.nonfinite = tally.nonfinite[name]

    def different(self, other: Manifest, besides: tuple[str, ...] = ()) -> list[str]:
        """The differences of the fingerprint from that of `other`, in words; keys in `besides` do not count.

        Nor does what only one of them records about the processor.
        """
        skipped = {*besides, *self.unknown(other), *other.unknown(self)}
        return _differences(*_comparable(self.fingerprint, other.fingerprint), skipped)

    def different_in(self, known: Mapping[str, Any], besides: tuple[str, ...] = ()) -> list[str]:
        """The differences of the fingerprint from a part of another one, in words."""
        return _differences({key: self.fingerprint.get(key) for key in known}, known, {*besides})

    def unknown(self, other: Manifest) -> list[str]:
        """The keys that the fingerprint of `other` records, but this one, written by an older layertap, does not."""
        return [key for key in _RECORDED_LATER if key in other.fingerprint and key not in self.fingerprint]


FILES = "file sizes and times"
"""The part of a fingerprint that represents the content of the images' files."""

# Parts of a fingerprint that outputs of older versions do not record, nor those of an engine before the first shard.
_RECORDED_LATER = ("processor", "device")

# Parts of a fingerprint that change together with another part, which is more informative.
_IMPLIED: Mapping[str, tuple[str, ...]] = {
    "images": ("ids", FILES),
    "ids": (FILES,),
    "taps": ("columns", "shard_rows"),
    "model": ("about",),
}


_CHOICE = ("weights_entry", "weights_prefix")


def _comparable(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Two fingerprints that can be compared in which weights of a file were taken.

    Where both record what was taken, it makes no difference whether a user asked for it. An older output does not, and
    where nobody asks, what it took is still what is taken, or the file is refused.
    """
    recorded = ["weights_prefix" in _part(each, "about") for each in (old, new)]
    if not any(recorded):
        return old, new
    part, keys = ("model", _CHOICE) if all(recorded) else ("about", (*_CHOICE, "weights_name"))

    def without(whole: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**whole, part: {key: value for key, value in _part(whole, part).items() if key not in keys}}

    return without(old), without(new)


def _part(fingerprint: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = fingerprint.get(key)
    return found if isinstance(found, dict) else {}


def read_manifest(path: Path) -> Manifest | None:
    """The manifest of an output folder, None if there is none. Raises `StoreError` for one that is not layertap's."""
    try:
        text = safe_files.read_text(path, MANIFEST)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise StoreError(f"{path / MANIFEST}: cannot be read: {error}", code=FOREIGN) from error
    return parsed(text, path / MANIFEST, Manifest)


def read_output(path: Path) -> Manifest:
    """The manifest of a folder that must be an output. Raises `StoreError`."""
    manifest = read_manifest(path)
    if manifest is None:
        raise StoreError(f"{path}: no layertap output here (no {MANIFEST})", code=FOREIGN)
    return manifest


def parsed(text: str, path: Path, model: type[M]) -> M:
    """The contents of one of layertap's JSON files, as `model`. Raises `StoreError` for anything else."""
    try:
        return model.model_validate_json(text)
    except pydantic.ValidationError:
        pass  # the slow way says what is wrong
    try:
        data = json.loads(text)
        if not isinstance(data, dict) or data.get("layertap") != FORMAT:
            raise StoreError(f"{path}: not a file of this version of layertap", code=FOREIGN)
        return model.model_validate(data)
    except pydantic.ValidationError as error:
        fault = faults_of(error, data)[0]
        raise StoreError(f"{path}: {'.'.join(map(str, fault.where))}: {fault.what}", code=FOREIGN) from error
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path}: cannot be read: {error}", code=FOREIGN) from error


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], skipped: Collection[str]) -> list[str]:
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key) and key not in skipped]
    implied = {after for before in changed for after in _IMPLIED.get(before, ())}
    return [_difference(key, old.get(key), new.get(key)) for key in changed if key not in implied]


def _difference(key: str, old: Any, new: Any) -> str:
    if key == FILES:
        return f"{key} of some images have changed (if they had failed before, use --retry-failed)"
    if isinstance(old, dict) and isinstance(new, dict):
        changed = {name for name in {**old, **new} if old.get(name) != new.get(name)}
        old, new = ({name: value for name, value in each.items() if name in changed} for each in (old, new))
    return f"{key} was {_short(old)}, now {_short(new)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
