"""Reading an untrusted folder: only regular files inside it, and nothing through a link."""

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
    """Something is not a regular file where one was expected."""


def is_inside(name: str) -> bool:
    """Whether `name` can only be a file inside a folder: no `..`, no absolute path, no control character."""
    return not _ODD.search(name) and not {"", ".", ".."}.intersection(name.split("/"))


def regular(folder: Path, name: str) -> Path:
    """The path of the regular file `name` below `folder`.

    Raises `OSError` if it is not a regular file, or if a folder on the way is not a real folder. `folder` itself may be
    a link, because the user named it.
    """
    path = folder
    for part in name.split("/"):
        path = path / part
        if stat.S_ISLNK(path.lstat().st_mode):
            raise NotRegular(f"{path}: is a link, which no run of layertap creates")
    if not stat.S_ISREG(path.lstat().st_mode):
        raise NotRegular(f"{path}: is not a regular file")
    return path


def remove(folder: Path, names: Iterable[str]) -> None:
    """Remove the regular files with these names; missing files and anything but regular files are left alone."""
    for name in names:
        try:
            regular(folder, name).unlink()
        except (FileNotFoundError, NotADirectoryError, NotRegular):
            continue


def open_text(folder: Path, name: str) -> TextIO:
    """A regular file, opened to read text in lines that end in a line feed. Raises `OSError` if it is not one."""
    descriptor = os.open(regular(folder, name), os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    return open(descriptor, encoding="utf-8", newline="\n")


def read_text(folder: Path, name: str) -> str:
    """The whole text. Raises `OSError` as `open_text` does, and `ValueError` for a file too large or not UTF-8."""
    with open_text(folder, name) as file:
        if os.fstat(file.fileno()).st_size > _LARGEST:
            raise ValueError(f"is larger than {_LARGEST // 2**20} MiB")
        return file.read()
