"""Writes that a power cut cannot undo or leave incomplete: temporary name, fsync, rename, fsync of the folder."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

# Errors of syncing the folder above a user's home or a mount point, in which no run creates anything.
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EINVAL, errno.EROFS)


def sync(path: Path) -> None:
    """Make a file's content, or a folder's entries, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[IO[str]]:
    """A file to write, which replaces `path` when the block ends: at any moment it is the old or the new one, whole."""
    temporary = _temporary(path)
    with _synced(temporary) as file:
        yield file
    os.replace(temporary, path)
    sync(path.parent)


@contextmanager
def creating(path: Path) -> Iterator[IO[str]]:
    """A file to write, which becomes `path` when the block ends. Raises `FileExistsError` if `path` exists then."""
    temporary = _temporary(path)
    with _synced(temporary) as file:
        yield file
    try:
        os.link(temporary, path)
    finally:
        temporary.unlink()
    sync(path.parent)


def make_folder(path: Path) -> None:
    """Create `path` and its missing parents, and make each of them durable in its parent folder."""
    path = Path(os.path.realpath(path))
    found = path.is_dir()
    if not found:
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
    try:
        # An existing folder may come from a run that was killed before it could sync it.
        sync(path.parent)
    except OSError as error:
        if not (found and error.errno in _NOT_WRITABLE):
            raise


def fresh_folder(path: Path) -> None:
    """Create an empty folder at `path`; any earlier contents can only come from an interrupted run of layertap."""
    clear_folder(path)
    path.mkdir()


def clear_folder(path: Path) -> None:
    """Remove one of layertap's folders and its files, if it exists, but never the target of a link."""
    if path.is_symlink() or not path.is_dir():
        return
    for entry in sorted(path.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            clear_folder(entry)
        else:
            entry.unlink()
    path.rmdir()


def sync_tree(folder: Path) -> list[Path]:
    """Make everything in a folder durable, and return its files, sorted."""
    files = []
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            files.extend(sync_tree(entry))
        else:
            sync(entry)
            files.append(entry)
    sync(folder)
    return files


def move_into(folder: Path, target: Path) -> list[str]:
    """Move everything in `folder` into `target`, replacing existing files, and return the moved names."""
    names = [entry.name for entry in sorted(folder.iterdir())]
    for name in names:
        os.replace(folder / name, target / name)
    folder.rmdir()
    sync(target)
    return names


def prune(folder: Path) -> None:
    """Remove the empty folders below `folder`, and `folder` itself if it is then empty; files are kept."""
    if folder.is_symlink() or not folder.is_dir():
        return
    for entry in sorted(folder.iterdir()):
        prune(entry)
    if not any(folder.iterdir()):
        folder.rmdir()


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.tmp")


@contextmanager
def _synced(path: Path) -> Iterator[IO[str]]:
    # Do not write through a link that somebody has put there.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    with open(descriptor, "w", encoding="utf-8", newline="") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
