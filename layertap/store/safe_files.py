"""Reading a folder that nobody vouches for: regular files inside it, and nothing that a link leads to."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

_LARGEST = 256 * 2**20

_ODD = re.compile(r"[\x00-\x1f\x7f\\]")


class NotRegular(OSError):
    """Something else than a regular file stands where one was expected."""


def is_inside(name: str) -> bool:
    """Whether `name` can only be that of a file inside a folder: no `..`, nothing absolute, no control character."""
    return not _ODD.search(name) and not {"", ".", ".."}.intersection(name.split("/"))


def regular(folder: Path, name: str) -> Path:
    """The path of the regular file `name` below `folder`. Raises `OSError` where it, or a folder on the way, is none.

    `folder` itself may be a link: it is what the user named.
    """
    path = folder
    for part in name.split("/"):
        path = path / part
        if stat.S_ISLNK(path.lstat().st_mode):
            raise NotRegular(f"{path}: is a link, which no run of layertap makes")
    if not stat.S_ISREG(path.lstat().st_mode):
        raise NotRegular(f"{path}: is no regular file")
    return path


def remove(folder: Path, names: Iterable[str]) -> None:
    """Remove the regular files with these names; one that is gone already, or is no regular file, is left as it is."""
    for name in names:
        try:
            regular(folder, name).unlink()
        except (FileNotFoundError, NotADirectoryError, NotRegular):
            continue


def open_text(folder: Path, name: str) -> TextIO:
    """A regular file to read text from. Raises `OSError` where it is none."""
    descriptor = os.open(regular(folder, name), os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    return open(descriptor, encoding="utf-8", newline="")


def read_text(folder: Path, name: str) -> str:
    """All of it at once. Raises `OSError` as `open_text`, and `ValueError` for a file too large or not UTF-8."""
    with open_text(folder, name) as file:
        if os.fstat(file.fileno()).st_size > _LARGEST:
            raise ValueError(f"is larger than {_LARGEST // 2**20} MiB")
        return file.read()
