"""`index.csv` and `failures.csv`: the outcome of each image.

They are CSV files with lines that end in a line feed. A field is quoted only if it has to be: if it holds a quote, a
comma, a line feed or a carriage return, or is an empty text. An empty field without quotes is a missing value.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from layertap.records import INDEX_COLUMNS
from layertap.store import durable
from layertap.store.commits import Commit

INDEX, FAILURES = "index.csv", "failures.csv"

_NEEDS_QUOTES = re.compile(r'[",\r\n]')
_FIELD = re.compile(r'"([^"]*(?:""[^"]*)*)"|([^",]*)')

_LONGEST_TEXT = 64 * 2**20


@contextmanager
def listings(folder: Path, meta: Mapping[str, str]) -> Iterator[Callable[[Commit], None]]:
    """A function that lists a shard's images in both files, which are there when the block ends, the index first.

    `meta` gives the metadata columns and their types.
    """
    with durable.replacing(folder / FAILURES) as failures, durable.replacing(folder / INDEX) as index:
        failures.write(_line(["id", "stage", "reason"]))
        index.write(_line([*INDEX_COLUMNS, *meta]))
        numbers = itertools.count()

        def add(record: Commit) -> None:
            failures.writelines(_line([image.id, image.stage, image.reason]) for image in record.failures)
            for row in record.kept:
                values = (_text(row.meta.get(key), kind) for key, kind in meta.items())
                index.write(_line([next(numbers), row.id, *values]))

        yield add


def listed(lines: Iterable[str]) -> Iterator[dict[str, str | None]]:
    """The rows of a listing, by the names in its first line; None for a missing value.

    `lines` end in a line feed. Raises `ValueError` for text that is not such a listing.
    """
    records = _records(lines)
    header = next(records, None)
    if header is None:
        raise ValueError("a listing without a first line")
    # Programs on Windows end all lines alike, and the first line as it was written has no carriage return.
    ending = "\r\n" if header.endswith("\r\n") else "\n"
    names = _fields(header.removesuffix(ending))
    for number, record in enumerate(records):
        if record == ending:
            continue
        values = _fields(record.removesuffix(ending))
        if len(values) != len(names):
            raise ValueError(f"row {number} has {len(values)} values instead of {len(names)}")
        yield {name or "": value for name, value in zip(names, values, strict=True)}


def _text(value: object, kind: str) -> object:
    return value if value is None or kind != "json" else json.dumps(value, ensure_ascii=False)


def _line(values: Iterable[object]) -> str:
    return ",".join(map(_field, values)) + "\n"


def _field(value: object) -> str:
    if value is None:
        return ""
    text = str(value)
    if text and not _NEEDS_QUOTES.search(text):
        return text
    return '"' + text.replace('"', '""') + '"'


def _records(lines: Iterable[str]) -> Iterator[str]:
    """The lines, joined where a line feed is within quotes: then the quotes so far are odd in number."""
    waiting: list[str] = []
    is_open, length = False, 0
    for line in lines:
        waiting.append(line)
        is_open ^= line.count('"') % 2 == 1
        length += len(line)
        if length > _LONGEST_TEXT:
            raise ValueError(f"a row is longer than {_LONGEST_TEXT // 2**20} MiB")
        if not is_open:
            yield "".join(waiting)
            waiting, length = [], 0
    if waiting:
        raise ValueError("a quote is never closed")


def _fields(record: str) -> list[str | None]:
    if '"' not in record:
        return [text or None for text in record.split(",")]
    values: list[str | None] = []
    at = -1
    while at < len(record):
        found = _FIELD.match(record, at + 1)
        assert found is not None  # it matches an empty text
        quoted, plain = found.groups()
        values.append(plain or None if quoted is None else quoted.replace('""', '"'))
        at = found.end()
        if at < len(record) and record[at] != ",":
            raise ValueError(f"a quote within the text {record[:80]!r}")
    return values
