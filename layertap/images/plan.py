"""The plan: the records of a source, counted and checked before anything is written, then streamed."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path

from PIL import Image

from layertap.contracts import Source
from layertap.errors import ConfigError, PluginError, within
from layertap.images.failure_codes import refusal
from layertap.images.metadata import plain_record
from layertap.images.reading import stamp_of
from layertap.plugins import guard
from layertap.records import INDEX_COLUMNS, ImageRecord, Planned

_PAGE = 4096
_OPEN_PAGES = 4


class Plan:
    """The records of a run, in order. The source is listed once here, so that they are known before the run.

    `count` is their number, `digest` is a hash of their ids, `contents` one of the sizes and times of their files.
    `keys` names their metadata, and `remarks` is what the source says that it leaves out.
    Raises `ConfigError` if there are no records, for a duplicate id, and for metadata that cannot be a table.
    """

    def __init__(self, source: Source, limit: int | None = None) -> None:
        self._source = source
        self._limit = limit
        # Compressed, because the ids of a million images take a hundred megabytes.
        self._pages: list[bytes] = []
        # Shards are asked for one after another, and each several times.
        self._page = lru_cache(_OPEN_PAGES)(self._opened_page)
        ids, contents = hashlib.sha256(), hashlib.sha256()
        self.count = 0
        self.keys: list[str] = []
        entries = self._entries_of_the_source()
        while page := list(islice(entries, _PAGE)):
            for record_id, stamp in page:
                ids.update(record_id.encode() + b"\0")
                contents.update(f"{stamp};".encode())
            self.count += len(page)
            self._pages.append(zlib.compress(json.dumps(page).encode()))
        if not self.count:
            raise ConfigError(f"{type(source).__name__} gives no images", where=("source",))
        self.digest = ids.hexdigest()
        self.contents = contents.hexdigest()
        self.remarks = source_remarks(source)

    def records(self, first: int = 0, stop: int | None = None) -> Iterator[Planned]:
        """The records again, from number `first` up to `stop`.

        Records that are new in the source are skipped. Those that it no longer gives fail as `vanished`.
        """
        given = self._listed()
        record = next(given, None)
        places: Mapping[str, int] | None = None
        for number, (record_id, stamp) in enumerate(self.entries(0, stop)):
            while record is not None and record.id != record_id:
                if places is None:
                    places = {planned: place for place, (planned, _) in enumerate(self.entries())}
                if places.get(record.id, -1) > number:
                    break
                record = next(given, None)
            if record is None or record.id != record_id:
                current = ImageRecord(record_id, vanished)
            else:
                current, record = self._plain(record), next(given, None)
            if number >= first:
                yield Planned(current, stamp)

    def entries(self, first: int = 0, stop: int | None = None) -> Iterator[tuple[str, str | None]]:
        """Id and stamp of the planned records from number `first` up to `stop`."""
        stop = self.count if stop is None else min(stop, self.count)
        for number in range(first // _PAGE, -(-stop // _PAGE)):
            page = self._page(number)
            yield from islice(page, max(first - number * _PAGE, 0), stop - number * _PAGE)

    def _opened_page(self, number: int) -> Sequence[tuple[str, str | None]]:
        return [tuple(entry) for entry in json.loads(zlib.decompress(self._pages[number]))]

    def digest_of(self, first: int, count: int, without: Container[str]) -> str:
        """A hash of `count` records from `first` on and their files, except for the ids in `without`."""
        return digest_of(self.entries(first, first + count), without)

    def ids(self, first: int, count: int) -> list[str]:
        """The ids of `count` records from number `first` on; fewer if the plan ends earlier."""
        return [record_id for record_id, _ in self.entries(first, first + count)]

    def _entries_of_the_source(self) -> Iterator[tuple[str, str | None]]:
        return ((record.id, stamp_of(record)) for record in self._checked())

    def _listed(self) -> Iterator[ImageRecord]:
        with within("source"), guard(self._source):
            yield from islice(self._source.records(), self._limit)

    def _checked(self) -> Iterator[ImageRecord]:
        seen: set[str] = set()
        keys: list[str] | None = None
        name = type(self._source).__name__
        for record in self._listed():
            if not isinstance(record, ImageRecord) or not isinstance(record.id, str) or not record.id:
                raise PluginError(f"the source {name} yields {record!r}, which is not an ImageRecord with an id")
            if not (isinstance(record.data, (bytes, Path, Image.Image)) or callable(record.data)):
                kind = type(record.data).__name__
                raise PluginError(
                    f"the source {name} gives {record.id!r} data of type {kind}, not bytes, a Path, a PIL image, "
                    "or a function that gives bytes or an image"
                )
            try:
                record.id.encode()
            except UnicodeEncodeError:
                raise PluginError(f"the source {name} gives the id {record.id!r}, which is not UTF-8 text") from None
            if record.id in seen:
                raise ConfigError(
                    f"{name} gives the id {record.id!r} twice; every image needs an id of its own", where=("source",)
                )
            seen.add(record.id)
            if keys is None:
                keys = self.keys = list(record.meta)
                for key in (key for key in keys if key in INDEX_COLUMNS):
                    raise PluginError(f"the source {name} names metadata {key!r}, which the index has already")
            if list(record.meta) != keys:
                raise PluginError(
                    f"the source {name} gives {record.id!r} the metadata {list(record.meta)}, others {keys}"
                )
            yield self._plain(record)

    def _plain(self, record: ImageRecord) -> ImageRecord:
        try:
            return plain_record(record)
        except (TypeError, ValueError) as error:
            name = type(self._source).__name__
            raise PluginError(f"the source {name} gives {record.id!r} {error}") from error


def digest_of(entries: Iterable[tuple[str, str | None]], without: Container[str]) -> str:
    """A hash of ids and stamps, except for the ids in `without`."""
    digest = hashlib.sha256()
    for record_id, stamp in entries:
        if record_id not in without:
            digest.update(f"{record_id}\0{stamp};".encode())
    return digest.hexdigest()


def source_remarks(source: Source) -> tuple[str, ...]:
    """What a source that has given all its records says about what it left out."""
    with guard(source):
        return tuple(source.remarks)


def vanished() -> bytes:
    """Raise what the data of a planned image raises that its source no longer gives."""
    raise refusal("vanished")
