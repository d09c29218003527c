"""The promises of a source."""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from PIL import Image

from layertap.contracts import Source
from layertap.errors import ImageError, LayertapError
from layertap.images.plan import Plan
from layertap.images.reading import read
from layertap.records import ImageRecord, Planned
from layertap.testing import trial
from layertap.testing.promises import Suite, at_once, promise

if TYPE_CHECKING:
    from layertap.records import MetaValue

# The number of records to read images from: enough to use every reader of a source, few enough for a test.
_READ = 16


class SourceSuite(Suite[Source]):
    """A source gives the same records every time, without their pixels, and lets any thread read them."""

    kind = Source

    def test_records_are_the_same_every_time(self) -> None:
        source = self.plugin()
        first = _facts(source)
        again, other = _facts(source), _facts(self.plugin())
        cure = "make records() start from the beginning each time, and sort anything that has no fixed order"
        promise(first, "records() gives nothing", "test it with parameters that name a few images")
        promise(first == again, f"a second call of records() gives different records{_where(first, again)}", cure)
        promise(first == other, f"another instance gives different records{_where(first, other)}", cure)

    def test_records_have_ids_and_metadata_that_make_a_table(self) -> None:
        try:
            Plan(self.plugin())
        except LayertapError as error:
            promise(
                False,
                str(error),
                "yield layertap.ImageRecord(id, data, meta) with distinct ids of UTF-8 text; meta has the same keys in "
                "every record, except row and id, and its values are what JSON can hold",
            )

    def test_records_are_cheap(self) -> None:
        with _opened() as opened, mock.patch.object(Image, "open", _refused):
            records = list(self.plugin().records())
        for record in records:
            promise(
                not isinstance(record.data, (bytes, Image.Image)),
                f"{record.id!r} contains its {type(record.data).__name__}: every plan would hold all images",
                "give a Path, or a function that reads this one image when it is called",
            )
            promise(
                not (isinstance(record.data, Path) and str(record.data) in opened),
                f"the file of {record.id!r} is opened to list it",
                "do not open files before they are read; their names are enough for a record",
            )

    def test_images_can_be_read_on_any_thread(self) -> None:
        records = list(islice(self.plugin().records(), _READ))
        alone = [_content(record) for record in records]
        promise(
            any(content != "ImageError" for content in alone),
            "no image can be read",
            "test it with parameters that name a few good images",
        )
        for together in at_once(_content, records):
            for record, one, other in zip(records, alone, together, strict=True):
                promise(
                    one == other,
                    f"{record.id!r} read on several threads at once differs from the same record read alone",
                    "do not share an open file or cursor between records: open one in each call, or hold a lock",
                )

    def test_run_accounts_for_every_record(self) -> None:
        source = self.plugin()
        ids = [record.id for record in islice(source.records(), _READ)]
        plugins = trial.tables(source=type(source))
        report = trial.run(plugins, "memory", source=trial.spec(source), limit=_READ, taps=["flat"])
        promise(
            report.kept,
            f"a run cannot use any of its images ({dict(report.reasons)})",
            "give data that holds encoded images (JPEG, PNG, WebP, BMP or GIF), or functions that give PIL images",
        )
        kept = [i for i in ids if i in set(report.ids or ())]
        promise(
            report.ids == kept and report.kept + report.failed == len(ids) and "vanished" not in report.reasons,
            "a run does not account for its records in order",
            "give the same records in the same order each time",
        )


def _facts(source: Source) -> list[tuple[str, dict[str, MetaValue]]]:
    return [(record.id, dict(record.meta)) for record in source.records()]


def _where(one: list[Any], other: list[Any]) -> str:
    if len(one) != len(other):
        return f" ({len(one)}, then {len(other)})"
    number = next((n for n, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]), 0)
    return f" (record {number}: {one[number : number + 1]}, then {other[number : number + 1]})"


def _content(record: ImageRecord) -> str:
    try:
        data = read(Planned(record))
    except ImageError:
        return "ImageError"
    return hashlib.sha256(data if isinstance(data, bytes) else data.tobytes()).hexdigest()


def _refused(*_: object, **__: object) -> None:
    promise(False, "records() opens an image", "leave decoding to the run: give a Path, or a function of no arguments")


def _listen() -> None:
    """Record every file that is opened. An audit hook cannot be removed, so there is one per process."""

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], (str, Path)):
            for notes in _listening:
                notes.add(str(arguments[0]))

    sys.addaudithook(note)


_listen_once = functools.cache(_listen)
_listening: list[set[str]] = []


@contextmanager
def _opened() -> Iterator[set[str]]:
    """The names of the files that are opened during the block."""
    _listen_once()
    notes: set[str] = set()
    _listening.append(notes)
    try:
        yield notes
    finally:
        _listening.remove(notes)
