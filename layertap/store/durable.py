"""Writes that a power cut cannot undo or halve: temporary name, fsync, rename, fsync of the folder."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

# What syncing the folder above a user's home or a mount point says, in which no run makes anything.
_NOT_OURS = (errno.EACCES, errno.EPERM, errno.EINVAL, errno.EROFS)


def sync(path: Path) -> None:
    """Make a file's content, or a folder's entries, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(path: Path, write: Callable[[IO[str]], object]) -> None:
    """`path` as `write` fills it: the old content or the new one at any moment, never a part."""
    temporary = path.with_name(f"{path.name}.tmp")
    _fill(temporary, write)
    os.replace(temporary, path)
    sync(path.parent)


def create(path: Path, write: Callable[[IO[str]], object]) -> None:
    """`path` as `write` fills it, made only if it does not exist. Raises `FileExistsError`."""
    temporary = path.with_name(f"{path.name}.tmp")
    _fill(temporary, write)
    try:
        os.link(temporary, path)
    finally:
        temporary.unlink()
    sync(path.parent)


def make_folder(path: Path) -> None:
    """`path` and what is missing above it, each made durable in the folder that it lies in."""
    path = Path(os.path.realpath(path))
    found = path.is_dir()
    if not found:
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
    try:
        # One that is there already may have been made by a run that was killed before it got here.
        sync(path.parent)
    except OSError as error:
        if not (found and error.errno in _NOT_OURS):
            raise


def fresh_folder(path: Path) -> None:
    """An empty folder at `path`, which only an interrupted run of ours can have filled before."""
    clear_folder(path)
    path.mkdir()


def clear_folder(path: Path) -> None:
    """Remove a folder of ours and the files in it, if it exists; never what a link points to."""
    if path.is_symlink() or not path.is_dir():
        return
    for entry in sorted(path.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            clear_folder(entry)
        else:
            entry.unlink()
    path.rmdir()


def sync_tree(folder: Path) -> list[Path]:
    """Make all of a folder durable; the files in it, sorted."""
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
    """Rename everything in `folder` into `target`, replacing what stands there; the names moved."""
    names = [entry.name for entry in sorted(folder.iterdir())]
    for name in names:
        os.replace(folder / name, target / name)
    folder.rmdir()
    sync(target)
    return names


def prune(folder: Path) -> None:
    """Remove the empty folders below `folder`, and itself if it is empty then; files stay."""
    if folder.is_symlink() or not folder.is_dir():
        return
    for entry in sorted(folder.iterdir()):
        prune(entry)
    if not any(folder.iterdir()):
        folder.rmdir()


def _fill(path: Path, write: Callable[[IO[str]], object]) -> None:
    # Not through a link that somebody has put there.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    with open(descriptor, "w", encoding="utf-8", newline="") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
