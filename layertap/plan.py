"""The plan: a source's records, counted and checked before anything is written, and streamed afterwards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from PIL import Image

from layertap.contracts import Source
from layertap.errors import ConfigError, PluginError
from layertap.plugins import guard
from layertap.records import ImageRecord

_TAKEN = ("row", "id")


class Plan:
    """The records of a run in order. Enumerated once here, so that what they are is known beforehand.

    `count` is how many, `digest` stands for their ids, `contents` for the size and modification time of their files.
    Raises `ConfigError` for no records, an id that comes twice, or metadata that cannot be a table.
    """

    def __init__(self, source: Source, limit: int | None = None) -> None:
        self._source = source
        self._limit = limit
        ids, contents = hashlib.sha256(), hashlib.sha256()
        self.count = 0
        for record in self._checked():
            ids.update(record.id.encode() + b"\0")
            contents.update(_content(record))
            self.count += 1
        if not self.count:
            raise ConfigError(f"{type(source).__name__} gives no images")
        self.digest = ids.hexdigest()
        self.contents = contents.hexdigest()

    def records(self, first: int = 0) -> Iterator[ImageRecord]:
        """The records again, from number `first` on. Raises `PluginError` where the source gives others than before."""
        digest = hashlib.sha256()
        count = 0
        for record in self._listed():
            digest.update(record.id.encode() + b"\0")
            count += 1
            if count > first:
                yield record
        if (count, digest.hexdigest()) != (self.count, self.digest):
            raise PluginError(
                f"the source {type(self._source).__name__} changed during the run: it gave {count} images that are not "
                f"the {self.count} of the plan; the output holds what was committed before"
            )

    def _listed(self) -> Iterator[ImageRecord]:
        with guard(self._source):
            yield from islice(self._source.records(), self._limit)

    def _checked(self) -> Iterator[ImageRecord]:
        seen: set[str] = set()
        keys: list[str] | None = None
        name = type(self._source).__name__
        for record in self._listed():
            if not isinstance(record, ImageRecord) or not isinstance(record.id, str) or not record.id:
                raise PluginError(f"the source {name} yields {record!r}, which is no ImageRecord with an id")
            if not (isinstance(record.data, (bytes, Path, Image.Image)) or callable(record.data)):
                kind = type(record.data).__name__
                raise PluginError(
                    f"the source {name} gives {record.id!r} data of type {kind}, not bytes, a Path, a PIL image, "
                    "or a function that gives bytes or an image"
                )
            if record.id in seen:
                raise ConfigError(f"{name} gives the id {record.id!r} twice; every image needs an id of its own")
            seen.add(record.id)
            if keys is None:
                keys = list(record.meta)
                for key in (key for key in keys if key in _TAKEN):
                    raise PluginError(f"the source {name} names metadata {key!r}, which the index has already")
            if list(record.meta) != keys:
                raise PluginError(
                    f"the source {name} gives {record.id!r} the metadata {list(record.meta)}, others {keys}"
                )
            for key, value in record.meta.items():
                if not isinstance(value, (str, int, float, bool, type(None))):
                    raise PluginError(f"the source {name} gives {record.id!r} a {key} of type {type(value).__name__}")
            yield record


def _content(record: ImageRecord) -> bytes:
    """What tells a changed file from the one of an earlier run without reading it; a file that is gone is one too."""
    if not isinstance(record.data, Path):
        return b"-"
    try:
        found = record.data.stat()
    except OSError:
        return b"gone"
    return f"{found.st_size} {found.st_mtime_ns};".encode()
