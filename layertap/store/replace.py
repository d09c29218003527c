"""Replacing a finished output: another folder is built next to it and takes its place by two renames.

`features.new` is being built, `features.old` is being removed. Only files that the commits and the manifest record are
removed; anything else in the old folder stays in `features.old`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from layertap.errors import FOREIGN, StoreError
from layertap.store import durable, safe_files
from layertap.store.attempts import ATTEMPTS, Attempts
from layertap.store.board import WORK, Board
from layertap.store.commits import COMMITS, PARTS, Commits
from layertap.store.listings import FAILURES, INDEX
from layertap.store.manifest import MANIFEST, read_manifest

MERGE = "merge.tmp"


def staging(path: Path) -> Path:
    """The path at which the output that will replace `path` is built."""
    return _beside(path, "new")


def retired(path: Path) -> Path:
    """The path to which the previous output at `path` is moved."""
    return _beside(path, "old")


def switch(path: Path) -> None:
    """Move the complete new output to `path`, and remove the old one."""
    new, old, place = staging(path), retired(path), os.path.realpath(path)
    os.rename(place, old)
    try:
        os.rename(new, place)
    except FileNotFoundError:
        # While this run was suspended, another one found the switch half done and completed it.
        if not os.path.exists(place):
            raise
    durable.sync(new.parent)
    sweep_retired(path)


def recover(path: Path) -> None:
    """Complete a switch that was interrupted between its two renames."""
    if path.exists():
        return
    waiting, old = read_manifest(staging(path)), read_manifest(retired(path))
    if waiting and old and waiting.status == "complete" and waiting.replaces == old.run:
        os.rename(staging(path), os.path.realpath(path))
        durable.sync(staging(path).parent)


def sweep_retired(path: Path) -> None:
    """Remove the output that the one at `path` has replaced, if it still exists."""
    current = read_manifest(path)
    old = read_manifest(retired(path)) if current and current.replaces else None
    if current and old and current.replaces == old.run:
        discard(retired(path))
    elif current and current.replaces:
        durable.prune(retired(path))


def _beside(path: Path, suffix: str) -> Path:
    real = Path(os.path.realpath(path))
    return real.with_name(f"{real.name}.{suffix}")


def discard(folder: Path) -> None:
    """Remove an output by the names that it records; a folder with anything else in it is kept, with those contents."""
    refuse_links(folder)
    manifest = read_manifest(folder)
    assert manifest is not None
    discard_attempts(folder)
    commits = Commits(folder)
    # In a complete output the first records may already have been removed.
    committed = max(len(commits), len(manifest.shards))
    discard_shards(folder, committed)
    commits.tidy()
    # Files that a run was about to write when it was stopped have these names and no others.
    for begun in (commits.part(committed), commits.part(committed).with_suffix(".tmp"), folder / MERGE):
        durable.clear_folder(begun)
    temporary = [f"{COMMITS}/{committed:05d}.json.tmp", *(f"{name}.tmp" for name in (INDEX, FAILURES, MANIFEST))]
    remove_files(folder, [*manifest.files, INDEX, FAILURES, *temporary])
    for name in (PARTS, COMMITS):
        durable.prune(folder / name)
    # The manifest goes last: without it nothing would show to whom the rest belongs.
    durable.sync(folder)
    safe_files.remove(folder, [MANIFEST])
    durable.prune(folder)


def refuse_links(folder: Path) -> None:
    """Raise `StoreError` if one of layertap's folders is a link: files would be written or removed elsewhere."""
    for name in (PARTS, COMMITS, ATTEMPTS, WORK):
        if (folder / name).is_symlink():
            raise StoreError(f"{folder / name}: is a link, which no run of layertap creates", code=FOREIGN)


def remove_files(folder: Path, names: Iterable[str]) -> None:
    """Remove layertap's files by their recorded names, and their folders if these are then empty."""
    names = list(names)
    safe_files.remove(folder, names)
    for name in {name.partition("/")[0] for name in names if "/" in name}:
        durable.prune(folder / name)


def discard_attempts(folder: Path, *, keep_receipts: bool = False) -> None:
    """Remove what the workers of an engine have left: attempts by their recorded names, and then the records.

    `keep_receipts` keeps the attempts that are whole.
    """
    board, attempts = Board(folder), Attempts(folder)
    board.end()
    begun = {claim.attempt for claim in board.claims()}
    if keep_receipts:
        for attempt in begun - {receipt.attempt for receipt in attempts.receipts()}:
            attempts.discard(attempt)
    else:
        attempts.sweep(begun)
    board.close()


def discard_shards(folder: Path, count: int) -> None:
    """Remove the files of the first shards by their recorded names, and only then the records."""
    commits = Commits(folder)
    recorded = []
    for number in range(count):
        record = commits.read(number)
        if record is not None:
            safe_files.remove(commits.part(number), record.files)
            durable.prune(commits.part(number))
            recorded.append(number)
    if (folder / PARTS).is_dir():
        durable.sync(folder / PARTS)
    for number in recorded:
        commits.remove(number)
    for name in (PARTS, COMMITS):
        durable.prune(folder / name)
