"""Attempts at shards: a worker writes each under a name of its own, and leaves a receipt when it is durable.

    attempts/00007-0c4e6f1a2b3d5e7f/        the files of shard 7, as one worker wrote them
    attempts/00007-0c4e6f1a2b3d5e7f.json    its receipt: the commit record, and what else the coordinator has to know

Only the coordinator, which has the lock, makes an attempt a part of the output: it renames the folder, and links the
receipt into `commits/`, which is durable already.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from layertap.errors import StoreError
from layertap.records import Receipt
from layertap.store import durable, safe_files
from layertap.store.commits import Commit, durable_facts
from layertap.store.manifest import Count, Facts, FileFacts, parsed

ATTEMPTS = "attempts"

_NAME = re.compile(r"([0-9]{5,})-[0-9a-f]{16}")


class ReceiptFacts(Facts):
    """What a receipt has besides the commit record."""

    run: str
    attempt: Annotated[str, Field(pattern=f"^{_NAME.pattern}$")]
    worker: str
    device: str
    processor: dict[str, Any]
    seconds: dict[str, float]
    batches: Count
    forwards: Count


class WrittenReceipt(Facts):
    """`attempts/NAME.json`: a commit record with one more key."""

    model_config = ConfigDict(extra="allow", strict=True)

    layertap: Literal[1]
    shard: Count
    receipt: ReceiptFacts

    def given(self) -> Receipt:
        """The receipt that was left."""
        record = {"layertap": 1, "shard": self.shard, **(self.model_extra or {})}
        return Receipt(shard=self.shard, record=record, **dict(self.receipt))


def new_attempt(number: int) -> str:
    """A name that no other attempt at any shard has."""
    return f"{number:05d}-{secrets.token_hex(8)}"


def shard_of(attempt: str) -> int:
    """The number of the shard that an attempt is at. Raises `ValueError` for a name that is not an attempt's."""
    found = _NAME.fullmatch(attempt)
    if found is None:
        raise ValueError(f"{attempt!r} is not the name of an attempt")
    return int(found[1])


class Attempts:
    """The attempts in an output folder."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self._folder = output / ATTEMPTS

    def begin(self) -> None:
        """Make the folder of the attempts. Only the coordinator does: a worker without it has no run any more."""
        durable.make_folder(self._folder)

    def save(self, attempt: str, save: Callable[[Path], None]) -> dict[str, FileFacts]:
        """The facts of what `save` writes into the folder of an attempt, once that is durable. Raises `OSError`."""
        folder = self._folder / attempt
        folder.mkdir()
        save(folder)
        found = durable_facts(folder)
        durable.sync(self._folder)
        return found

    def leave(self, receipt: Receipt) -> None:
        """Make a receipt durable; only a whole one is ever seen."""
        facts = {field: getattr(receipt, field) for field in ReceiptFacts.model_fields}
        with durable.replacing(self.receipt(receipt.attempt)) as file:
            file.write(json.dumps({**receipt.record, "receipt": facts}, ensure_ascii=False, allow_nan=False) + "\n")

    def receipts(self, known: Collection[str] = ()) -> Iterator[Receipt]:
        """The receipts that workers have left, except those of attempts in `known`, by shard."""
        for name in sorted(self._names(".json")):
            if name in known:
                continue
            path = self.receipt(name)
            with contextlib.suppress(OSError, ValueError, StoreError):  # a damaged one is as good as none
                receipt = parsed(safe_files.read_text(self._folder, path.name), path, WrittenReceipt).given()
                if receipt.attempt == name and shard_of(name) == receipt.shard:
                    yield receipt

    def receipt(self, attempt: str) -> Path:
        """The file of a receipt."""
        return self._folder / f"{attempt}.json"

    def found(self, record: Commit, attempt: str, part: Path) -> Path | None:
        """The folder with the files of an attempt, None if they are not what the record says.

        It is `part` where a coordinator was killed between the rename and the commit.
        """
        folder = self._folder / attempt
        if folder.is_dir() and not folder.is_symlink():
            return folder if _have_sizes(folder, record.files) else None
        return part if part.is_dir() and _are(part, record.files) else None

    def discard(self, attempt: str) -> None:
        """Remove an attempt; the receipt goes first, so that none is left without its files."""
        safe_files.remove(self._folder, [f"{attempt}.json", f"{attempt}.json.tmp"])
        durable.clear_folder(self._folder / attempt)

    def forget(self, attempt: str) -> None:
        """Remove the receipt of an attempt that has become a part."""
        safe_files.remove(self._folder, [f"{attempt}.json"])

    def sweep(self, recorded: Iterable[str]) -> None:
        """Remove the attempts with these names, and those that have left a receipt; then the folder if it is empty."""
        for attempt in {*recorded, *self._names(".json")}:
            if _NAME.fullmatch(attempt):
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    self.discard(attempt)
        if self._folder.is_dir() and not self._folder.is_symlink():
            with contextlib.suppress(OSError):  # a worker that is not done yet may write there
                self._folder.rmdir()

    def _names(self, suffix: str) -> Iterator[str]:
        try:
            names = [entry.name for entry in self._folder.iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return
        for name in names:
            if name.endswith(suffix) and _NAME.fullmatch(name.removesuffix(suffix)):
                yield name.removesuffix(suffix)


def _have_sizes(folder: Path, files: Mapping[str, FileFacts]) -> bool:
    try:
        return all(safe_files.regular(folder, name).stat().st_size == facts.bytes for name, facts in files.items())
    except OSError:
        return False


def _are(folder: Path, files: Mapping[str, FileFacts]) -> bool:
    try:
        return all(FileFacts.of(safe_files.regular(folder, name)) == facts for name, facts in files.items())
    except OSError:
        return False
