"""WebDataset shards: images in tar archives, read without unpacking."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from pydantic import Field

import layertap
from layertap_plugins.sources import files, tables
from layertap_plugins.sources.members import Archive, Member

# Enough for a caption, a class or a few facts; a larger member with such a name is something else.
_MOST_TEXT = 2**20


class TarSource(layertap.Source):
    """Yields one record per sample: consecutive members with names that are equal up to the first dot.

    The id is that part of the name, which WebDataset calls the key; if two shards have a key in common, every id begins
    with its shard's file name and a `/`. An image that is a link, a device or sparse is listed as failed. Samples
    without an image are skipped, and so are files with names that begin with a dot.
    """

    class Params(layertap.Params):
        path: str | list[str] = Field(
            min_length=1,
            description="a tar, a folder of them, a pattern such as data-{000..012}.tar or data-*.tar, or a list of "
            "these",
        )
        images: list[str] = Field(
            default=["jpg", "jpeg", "png", "webp", "bmp", "gif"],
            min_length=1,
            description="the suffixes of images: the part of the name after the first or the last dot; if a sample has "
            "several images, name one, as in [left.jpg]",
        )
        metadata: bool = Field(
            True,
            description="keep the facts stored with an image: the plain values of its .json, the number of its .cls, "
            "the text of its .txt",
        )

    params: Params

    def __init__(self, params: Params | None = None) -> None:
        super().__init__(params)
        self._known: tuple[tuple[str, ...], _Survey] | None = None

    def records(self) -> Iterator[layertap.ImageRecord]:
        shards = files.located(self.params.path, (".tar",))
        stamps = tuple(files.stamped(path) for path in shards)
        if self._known is None or self._known[0] != stamps:
            self._known = stamps, self._survey(shards)
        survey = self._known[1]
        keys = tables.keys_of(survey.columns)
        for (path, name), stamp in zip(shards.items(), stamps, strict=True):
            for sample in self._samples(path):
                data = files.Piece(path, sample.image.offset, sample.image.size, stamp)
                record_id = f"{name}/{sample.key}" if survey.shared else sample.key
                meta = {key: sample.facts.get(column) for column, key in keys.items()}
                yield layertap.ImageRecord(record_id, data if sample.image.regular else _refuse, meta)

    def _survey(self, shards: dict[str, str]) -> _Survey:
        """The facts needed before the first record: the metadata columns, and whether shards share a key."""
        survey = _Survey()
        keys: set[str] = set()
        for path in shards:
            here: set[str] = set()
            for sample in self._samples(path):
                if sample.key in here:
                    raise layertap.ConfigError(
                        f"{path!r} holds the sample {sample.key!r} in two places; the parts of a sample "
                        "must be next to each other",
                        where=("path",),
                    )
                here.add(sample.key)
                survey.columns |= dict.fromkeys(sample.facts)
            survey.shared |= not keys.isdisjoint(here)
            keys |= here
        if not keys:
            raise layertap.ConfigError(
                f"no images in {self.params.path!r} end in {', '.join(self.params.images)}", where=("path",)
            )
        return survey

    def _samples(self, path: str) -> Iterator[_Sample]:
        descriptor = layertap.open_regular(path)
        try:
            archive = Archive(descriptor, path)
            key, parts = b"", dict[str, Member]()
            for member in archive.members():
                folder, slash, name = member.name.rpartition(b"/")
                stem, _, suffix = name.partition(b".")
                if folder + slash + stem != key:
                    yield from self._sample(path, archive, key, parts)
                    key, parts = folder + slash + stem, {}
                if not stem:
                    continue
                called = files.text_of(suffix)
                if called in parts:
                    raise layertap.ConfigError(f"{path!r} holds {files.text_of(member.name)!r} twice", where=("path",))
                parts[called] = member
            yield from self._sample(path, archive, key, parts)
        finally:
            os.close(descriptor)

    def _sample(self, path: str, archive: Archive, key: bytes, parts: dict[str, Member]) -> Iterator[_Sample]:
        images = [suffix for suffix in parts if self._is_image(suffix.lower())]
        if not images:
            return
        name = files.text_of(key)
        if len(images) > 1:
            raise layertap.ConfigError(
                f"the sample {name!r} in {path!r} has several images ({', '.join(images)}); name one, "
                f"as in [{images[0]}]",
                where=("images",),
            )
        facts: dict[str, tables.Value] = {}
        if self.params.metadata:
            for suffix, understood in _UNDERSTOOD.items():
                if (member := parts.get(suffix)) is not None and member.regular:
                    facts |= _facts(archive, member, understood, f"{name}.{suffix} in {path!r}")
        yield _Sample(name, parts[images[0]], facts)

    def _is_image(self, suffix: str) -> bool:
        return suffix in self.params.images or suffix.rpartition(".")[2] in self.params.images


@dataclass(frozen=True, slots=True)
class _Sample:
    key: str
    image: Member
    facts: dict[str, tables.Value]


@dataclass(slots=True)
class _Survey:
    columns: dict[str, None] = field(default_factory=dict)
    shared: bool = False


def _facts(
    archive: Archive, member: Member, understood: Callable[[bytes], dict[str, tables.Value]], where: str
) -> dict[str, tables.Value]:
    try:
        if member.size > _MOST_TEXT:
            raise ValueError(f"it is too large ({member.size} bytes)")
        return understood(archive.read(member))
    except (ValueError, RecursionError) as error:
        raise layertap.ConfigError(
            f"cannot read {where}: {error or type(error).__name__}; `metadata: false` skips it", where=("path",)
        ) from error


def _from_json(data: bytes) -> dict[str, tables.Value]:
    found = json.loads(data)
    if not isinstance(found, dict):
        raise ValueError("it is not a JSON object")
    return {str(tables.plain(key)): tables.plain(value) for key, value in found.items() if tables.is_plain(value)}


# In this order, because a .cls or .txt takes precedence over a value of that name in the .json.
_UNDERSTOOD: dict[str, Callable[[bytes], dict[str, tables.Value]]] = {
    "json": _from_json,
    "cls": lambda data: {"cls": int(data)},
    "txt": lambda data: {"txt": data.decode("utf-8", "replace")},
}


def _refuse() -> bytes:
    raise layertap.ImageError("not_regular")


@layertap.hookimpl
def register_sources(register: Callable[[str, type[layertap.Source]], None]) -> None:
    register("tar", TarSource)
