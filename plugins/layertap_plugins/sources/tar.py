"""WebDataset shards: images in tar archives, read without unpacking."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pydantic import Field

import layertap
from layertap_plugins.sources import files, tables
from layertap_plugins.sources.members import Archive, Member
from layertap_plugins.sources.shards import (
    Sample,
    Shard,
    Survey,
    facts_of,
    groups,
    is_understood,
    join,
    precedence,
)


class TarSource(layertap.Source):
    """Yields one record per sample: the members with names that are equal up to the first dot.

    The id is that part of the name, which WebDataset calls the key; if two shards have a key in common, every id begins
    with its shard's file name and a `/`. An image that is a link, a device or sparse is listed as failed. Members that
    are not next to each other are joined by key. The report counts the samples without an image and the members that
    are left out; files with names that begin with a dot are passed over.
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
            description="keep the facts stored with an image: the values of its .json, the number of its .cls, the "
            "text of its .txt; of .NAME.json, .NAME.cls and .NAME.txt in a column of that suffix",
        )

    params: Params

    def __init__(self, params: Params | None = None) -> None:
        super().__init__(params)
        self._known: tuple[tuple[str, ...], Survey] | None = None

    @property
    def remarks(self) -> Sequence[str]:
        return [] if self._known is None else self._known[1].remarks()

    def records(self) -> Iterator[layertap.ImageRecord]:
        shards = files.located(self.params.path, (".tar",))
        stamps = tuple(files.stamped(path) for path in shards)
        if self._known is None or self._known[0] != stamps:
            self._known = stamps, self._survey(shards)
        survey = self._known[1]
        columns = tables.keys_of(survey.columns)
        for (path, name), stamp in zip(shards.items(), stamps, strict=True):
            shard = survey.shards[path]
            for sample in self._samples(path, shard):
                data = files.Piece(path, sample.image.offset, sample.image.size, stamp)
                text = shard.text_of(sample.key)
                meta = {key: sample.facts.get(column) for column, key in columns.items()}
                record_id = f"{name}/{text}" if survey.shared else text
                yield layertap.ImageRecord(record_id, data if sample.image.regular else _refuse, meta)

    def _survey(self, shards: Iterable[str]) -> Survey:
        """The facts needed before the first record, such as the metadata columns and whether shards share a key."""
        survey = Survey()
        keys: set[str] = set()
        for path in shards:
            with _archive(path) as archive:
                shard = survey.shards[path] = self._shard(path, archive)
            for sample in self._samples(path, shard, survey.left_out):
                survey.columns |= dict.fromkeys(sample.facts)
            here = {shard.text_of(key) for key in shard.keys}
            survey.shared |= not keys.isdisjoint(here)
            keys |= here
        if not keys:
            raise layertap.ConfigError(
                f"no images in {self.params.path!r} end in {', '.join(self.params.images)}", where=("path",)
            )
        return survey

    def _shard(self, path: str, archive: Archive) -> Shard:
        """Which samples a shard has, and which of their members are elsewhere in it."""
        keys: set[bytes] = set()
        elsewhere: dict[bytes, dict[str, Member]] = {}
        for key, parts in groups(archive.members(), path):
            if not any(map(self._is_image, parts)):
                join(elsewhere.setdefault(key, {}), parts, key, path)
            elif key in keys:
                raise layertap.ConfigError(
                    f"{path!r} holds the sample {files.text_of(key)!r} in two places, each with an image; the parts of "
                    "a sample must be next to each other",
                    where=("path",),
                )
            else:
                keys.add(key)
        apart = {key: elsewhere.pop(key) for key in keys & elsewhere.keys()}
        return Shard(keys, files.clashing(keys), apart, len(elsewhere))

    def _samples(self, path: str, shard: Shard, left_out: Counter[str] | None = None) -> Iterator[Sample]:
        """The samples with an image; `left_out` counts the suffixes of members that are not metadata."""
        with _archive(path) as archive:
            for key, parts in groups(archive.members(), path):
                if key in shard.keys and any(map(self._is_image, parts)):
                    join(parts, shard.apart.get(key, {}), key, path)
                    yield self._sample(path, archive, key, parts, Counter() if left_out is None else left_out)

    def _sample(
        self, path: str, archive: Archive, key: bytes, parts: dict[str, Member], left_out: Counter[str]
    ) -> Sample:
        name = files.text_of(key)
        images = [suffix for suffix in parts if self._is_image(suffix)]
        if len(images) > 1:
            raise layertap.ConfigError(
                f"the sample {name!r} in {path!r} has several images ({', '.join(images)}); name one, "
                f"as in [{images[0]}]",
                where=("images",),
            )
        image = parts.pop(images[0])
        facts: dict[str, Any] = {}
        if self.params.metadata:
            for suffix in sorted(parts, key=precedence):
                if is_understood(suffix) and parts[suffix].regular:
                    facts |= facts_of(archive, parts[suffix], suffix, f"{name}.{suffix} in {path!r}")
                else:
                    left_out[suffix] += 1
        return Sample(key, image, facts)

    def _is_image(self, suffix: str) -> bool:
        return suffix in self.params.images or suffix.rpartition(".")[2] in self.params.images


@contextmanager
def _archive(path: str) -> Iterator[Archive]:
    descriptor = layertap.open_regular(path)
    try:
        yield Archive(descriptor, path)
    finally:
        os.close(descriptor)


def _refuse() -> bytes:
    raise layertap.ImageError("not_regular")


@layertap.hookimpl
def register_sources(register: Callable[[str, type[layertap.Source]], None]) -> None:
    register("tar", TarSource)
