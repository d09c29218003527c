"""What can be known about the place of an output without writing to it, and before a model is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from layertap.errors import FOREIGN, StoreError
from layertap.store import lock, replace
from layertap.store.commits import Commits
from layertap.store.manifest import FILES, MANIFEST, Manifest, read_manifest


def check(path: Path, known: Mapping[str, Any], *, mode: Literal["resume", "new"], retry: bool = False) -> None:
    """Raise the `StoreError` that `open_store` would raise, as far as it can be known.

    `known` is the part of the fingerprint that does not depend on the model.
    """
    refuse_file(path)
    nearest = next(folder for folder in (path, *path.absolute().parents) if os.path.lexists(folder))
    if not nearest.is_dir():
        raise StoreError(f"{nearest}: is not a folder, so the output {path} cannot be created in it")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise StoreError(f"{nearest}: cannot be written to; change its permissions, or choose another path")
    if path.is_dir():
        lock.refuse_locked(path)
        replace.refuse_links(path)
        found = read_manifest(path)
        if found is None:
            refuse_foreign(path)
        elif mode == "resume" and not is_free(path, found):
            refuse_another(path, found, found.different_in(known, besides=(FILES,) if retry else ()))


def refuse_file(path: Path) -> None:
    """Raise `StoreError` for a path that is not a folder."""
    if path.exists() and not path.is_dir():
        raise StoreError(f"{path}: is a file, and the output is a folder; choose another path", code=FOREIGN)


def refuse_foreign(path: Path) -> None:
    """Raise `StoreError` for a folder without a manifest that is not empty."""
    # The very first write of a run may have been cut short.
    if any(entry.name != f"{MANIFEST}.tmp" for entry in path.iterdir()):
        raise StoreError(f"{path}: not empty and not a layertap output; choose another", code=FOREIGN)


def refuse_another(path: Path, found: Manifest, changed: list[str]) -> None:
    """Raise `StoreError` if there are differences between the output and the run, with the command that helps."""
    if not changed:
        return
    cure = "choose another path, or set mode=new to replace it"
    if all(each.startswith(("batch_size ", "shard_rows ")) for each in changed):
        cure = f"set batch_size={found.batch_size} shard_rows={found.shard_rows} to resume it, or {cure}"
    raise StoreError(f"{path}: holds the output of another configuration: {'; '.join(changed)}; {cure}", code=FOREIGN)


def is_free(path: Path, found: Manifest) -> bool:
    """Whether no shard is committed in an unfinished output: another configuration can then take it over."""
    return found.status == "running" and not len(Commits(path))
