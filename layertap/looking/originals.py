"""The images of some rows, as their source gives them now, and whether they are those of the run."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

from layertap.contracts import Source
from layertap.errors import LayertapError, within
from layertap.images.plan import digest_of
from layertap.images.reading import GONE, stamp_of
from layertap.outputs.output import Output
from layertap.plugins import Plugins, guard
from layertap.records import ImageRecord

if TYPE_CHECKING:
    from layertap.config.model import RunConfig

# Keys of a configuration that limit what one image may cost. Those of this machine hold, not those of a manifest, which
# may come from somebody else.
_LIMITS = ("max_pixels", "image_memory", "image_timeout")

_FILE_STAMP = re.compile(r"\d+ (\d+)")


@dataclass(frozen=True, slots=True)
class Original:
    """The image of a row: its `record` and `stamp`, or the `reason` why there is nothing to show.

    `may_differ` is set if some files of its shard are not those of the run, and nothing shows which.
    """

    row: int
    id: str
    record: ImageRecord | None = None
    stamp: str | None = None
    reason: str | None = None
    may_differ: bool = False


class Originals:
    """The images of the `rows` of an output, in the order of the rows. The source is listed twice.

    `overrides` say what has moved, such as `source.path`. Nothing is fetched from another machine unless `remote` names
    it, because the manifest may come from somebody else. Raises `ConfigError` for overrides that make no sense.
    """

    def __init__(
        self,
        features: Output,
        rows: Collection[int],
        *,
        overrides: Mapping[str, Any] | None = None,
        plugins: Plugins,
        remote: Collection[str] = (),
    ) -> None:
        self.config = configured(features, overrides, plugins)
        self._features = features
        self._rows = sorted(set(rows))
        self._plugins = plugins
        self._remote = remote

    def __iter__(self) -> Iterator[Original]:
        waiting = deque(self._rows)
        try:
            for found in self._found():
                waiting.popleft()
                yield found
        except LayertapError as error:
            yield from (Original(row, self._features.ids[row], reason=str(error)) for row in waiting)

    def _found(self) -> Iterator[Original]:
        source, ids = self._source(), self._features.ids
        judged = deque(self._judged(self._stamps(source, ids), ids))
        wanted = {original.id for original in judged if original.reason is None}
        given: dict[str, ImageRecord] = {}
        for record in self._listed(source, wanted):
            given[record.id] = record
            while judged and (judged[0].reason or judged[0].id in given):
                yield _with(judged.popleft(), given)
        while judged:
            yield _with(judged.popleft(), given)

    def _source(self) -> Source:
        source = self.config.build("source", self._plugins)
        assert isinstance(source, Source)
        with guard(source):
            others = sorted(source.hosts.difference(self._remote))
        if others:
            raise LayertapError(f"not fetched from {' and '.join(others)}")
        return source

    def _listed(self, source: Source, wanted: Collection[str]) -> Iterator[ImageRecord]:
        with self.config.at("source"), within("source"), guard(source):
            for record in islice(source.records(), self.config.limit):
                if record.id in wanted:
                    yield record

    def _stamps(self, source: Source, ids: list[str]) -> dict[str, str | None]:
        """The stamp of each image that the source gives, of every shard that a row is in."""
        wanted = {ids[row] for start, stop, _ in self._shards() for row in range(start, stop)}
        return {record.id: stamp_of(record) for record in self._listed(source, wanted)}

    def _shards(self) -> Iterator[tuple[int, int, str]]:
        """First row, end and digest of the images, of each shard that holds one of the rows."""
        start, rows = 0, iter(self._rows)
        row = next(rows, None)
        for shard in self._features.shards:
            stop = start + shard.kept
            if row is not None and row < stop:
                yield start, stop, shard.source
            while row is not None and row < stop:
                row = next(rows, None)
            start = stop

    def _judged(self, stamps: Mapping[str, str | None], ids: list[str]) -> Iterator[Original]:
        """What the stamps say about each row; those without a `reason` still need their record."""
        started = _nanoseconds(self._features.manifest["started"])
        wanted = set(self._rows)
        for start, stop, digest in self._shards():
            there = [row for row in range(start, stop) if stamps.get(ids[row], GONE) != GONE]
            newer: set[int] = set()
            may_differ = False
            if digest_of(((name, stamps.get(name)) for name in ids[start:stop]), ()) != digest:
                newer = {row for row in there if _modified(stamps[ids[row]]) > started}
                # All newer: the folder was copied. None newer, none gone: a file was replaced by an older one.
                may_differ = len(newer) == len(there) or (not newer and len(there) == stop - start)
            for row in sorted(wanted.intersection(range(start, stop))):
                stamp = stamps.get(ids[row], GONE)
                changed = row in newer and not may_differ
                reason = "gone" if stamp == GONE else "changed since the run" if changed else None
                yield Original(row, ids[row], stamp=stamp, reason=reason, may_differ=may_differ)


def configured(features: Output, overrides: Mapping[str, Any] | None, plugins: Plugins) -> RunConfig:
    """The configuration of an output's run, for reading its images here: with this machine's limits."""
    from layertap.config.loading import load_config

    written = {key: value for key, value in features.manifest["config"].items() if key not in _LIMITS}
    moved = any(key.partition(".")[0] == "source" for key in overrides or ())
    return load_config(written, overrides, plugins, of=("source",) if moved else ())


def _with(judged: Original, given: dict[str, ImageRecord]) -> Original:
    """An original with its record, which is taken out of those given."""
    if judged.reason:
        return judged
    record = given.pop(judged.id, None)
    return replace(judged, record=record, reason=None if record else "gone")


def _modified(stamp: str | None) -> int:
    """The modification time in a file's stamp, in nanoseconds; 0 for other stamps."""
    found = _FILE_STAMP.fullmatch(stamp or "")
    return int(found[1]) if found else 0


def _nanoseconds(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return 0
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 10**9)
