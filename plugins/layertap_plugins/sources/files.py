"""Files that hold many images: how to find them, detect changes in them, and read them a piece at a time."""

from __future__ import annotations

import glob
import hashlib
import itertools
import os
import re
import stat
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import layertap

_MOST_FILES = 100_000

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})")


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of bytes in a file, as a record's data; `stamp` is that of the whole file."""

    path: str
    offset: int
    size: int
    stamp: str

    def __call__(self) -> bytes:
        """The bytes. Raises `ImageError` if the file has changed since it was listed, or ends too early."""
        refuse_large(self.size)
        descriptor = layertap.open_regular(self.path, self.stamp)
        try:
            data = os.pread(descriptor, self.size, self.offset)
            while len(data) < self.size and (
                more := os.pread(descriptor, self.size - len(data), self.offset + len(data))
            ):
                data += more
            if layertap.file_stamp(os.fstat(descriptor)) != self.stamp:
                raise layertap.ImageError("changed")  # written to meanwhile: this may be half of each
        finally:
            os.close(descriptor)
        if len(data) < self.size:
            raise layertap.ImageError("truncated")
        return data


def refuse_large(size: int | None) -> None:
    """Raise `ImageError`, `file_too_large`, if an image has too many encoded bytes; None means not known yet."""
    if size is not None and size > layertap.MAX_IMAGE_BYTES:
        raise layertap.ImageError("file_too_large")


def refuse_changed(path: str, stamp: str | None) -> None:
    """Raise `ImageError`, `changed`, if the file no longer has that stamp. Raises `OSError` if there is none."""
    if layertap.file_stamp(os.stat(path)) != stamp:
        raise layertap.ImageError("changed")


def stamped(path: str) -> str:
    """The stamp of a source's own file. Raises `ConfigError` if there is no such regular file."""
    refuse_url(path)
    try:
        facts = os.stat(path)
    except (OSError, ValueError) as error:
        raise unusable(path, getattr(error, "strerror", None) or error) from error
    if not stat.S_ISREG(facts.st_mode):
        raise unusable(path, "it is not a regular file")
    return layertap.file_stamp(facts)


def unusable(path: str, why: object) -> layertap.ConfigError:
    """The error for a file or folder of the source that cannot be used."""
    hint = "relative paths start at the working directory"
    if is_windows(path):
        hint = "it looks like a path of Windows: write / between its parts, and where it is on this machine"
    return layertap.ConfigError(f"cannot use {path!r}: {why}; {hint}", where=("path",))


def is_windows(path: str) -> bool:
    """Whether a path looks as Windows writes it, on a system that separates the parts by something else."""
    return os.sep != "\\" and ("\\" in path or re.match(r"[A-Za-z]:/", path) is not None)


def refuse_url(path: str) -> None:
    """Raise `ConfigError` for a file on another machine: these files are read in many small pieces."""
    if "://" in path:
        raise layertap.ConfigError(
            f"{path!r} is a URL, and this source reads local files; fetch it first", where=("path",)
        )


def located(paths: str | Sequence[str], suffixes: tuple[str, ...]) -> dict[str, str]:
    """The files that one or more paths refer to, with a short name for each: the file's own name if all are distinct.

    A path is a file, a folder (all files below it that end in one of the suffixes), or a pattern with `*` or braces.
    The files of one path are sorted by bytes. Raises `ConfigError`.
    """
    found: list[str] = []
    for path in [paths] if isinstance(paths, str) else paths:
        for name in [path] if os.path.lexists(path) else _expanded(path):
            found += _files_at(name, suffixes)
    for path in (path for path, group in itertools.groupby(sorted(found)) if len(list(group)) > 1):
        raise layertap.ConfigError(f"{path!r} is named twice", where=("path",))
    names = [os.fsencode(os.path.basename(path)) for path in found]
    names = names if len(set(names)) == len(names) else [os.fsencode(path) for path in found]
    return dict(zip(found, texts_of(names), strict=True))


def text_of(name: bytes) -> str:
    """A name as text; bytes that are not UTF-8 become `%XX`, and so does the NUL byte that ends a C string."""
    text = name.replace(b"\0", b"%00").decode("utf-8", "surrogateescape")
    return re.sub("[\udc80-\udcff]", lambda byte: f"%{ord(byte[0]) - 0xDC00:02X}", text)


def texts_of(names: Collection[bytes]) -> list[str]:
    """Distinct names as distinct texts."""
    own = clashing(set(names))
    return [own.get(name) or text_of(name) for name in names]


def clashing(names: Collection[bytes]) -> dict[bytes, str]:
    """A text for each of these names that would otherwise have the text of another one.

    It gets `~` and 8 hexadecimal digits before its suffix, so that patterns of files match it as they match the name.
    `%FF` is the text of the byte 255, and can also be a name; the name keeps it.
    """
    escaped: dict[str, list[bytes]] = {}
    for name in names:
        if not _is_text(name):
            escaped.setdefault(text_of(name), []).append(name)
    return {
        name: f"~{hashlib.sha256(name).hexdigest()[:8]}".join(_parted(text))
        for text, group in escaped.items()
        if len(group) > 1 or text.encode() in names
        for name in group
    }


def _parted(text: str) -> tuple[str, str]:
    stem, dot, suffix = text.rpartition(".")
    return (stem, dot + suffix) if stem else (text, "")


def _is_text(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return b"\0" not in name


def _files_at(path: str, suffixes: tuple[str, ...]) -> list[str]:
    refuse_url(path)
    if os.path.isdir(path):
        below = [
            os.path.join(folder, name)
            for folder, _, names in os.walk(path)
            for name in names
            if name.endswith(suffixes) and not name.startswith(".")
        ]
        if not below:
            raise layertap.ConfigError(f"no file below {path!r} ends in {' or '.join(suffixes)}", where=("path",))
        return sorted(below, key=os.fsencode)
    if glob.has_magic(path) and not os.path.lexists(path):
        matching = [name for name in glob.glob(path, recursive=True) if os.path.isfile(name)]
        if not matching:
            raise layertap.ConfigError(f"no file matches {path!r}", where=("path",))
        return sorted(matching, key=os.fsencode)
    return [path]


def _expanded(pattern: str) -> list[str]:
    """The paths that a pattern with braces expands to, as in a shell: `{000..012}` with its zeros, `{a,b}`."""
    braces = _BRACES.search(pattern)
    if braces is None:
        return [pattern]
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    ends = [
        *itertools.islice(
            (end for part in _parts(braces[1], pattern) for end in _expanded(part + after)), _MOST_FILES + 1
        )
    ]
    if len(ends) > _MOST_FILES:
        raise layertap.ConfigError(f"{pattern!r} expands to more than {_MOST_FILES:,} files", where=("path",))
    return [before + end for end in ends]


def _parts(inside: str, pattern: str) -> Iterator[str]:
    if numbers := _RANGE.fullmatch(inside):
        first, last = (int(number) for number in numbers.groups())
        if last < first:
            raise layertap.ConfigError(f"the range in {pattern!r} ends before it begins", where=("path",))
        width = max(len(number) for number in numbers.groups()) if "0" in (inside[0], numbers[2][0]) else 0
        yield from (f"{number:0{width}d}" for number in range(first, last + 1))
    elif "," in inside:
        yield from inside.split(",")
    else:
        raise layertap.ConfigError(
            f"{{{inside}}} in {pattern!r} is neither a range like {{000..012}} nor a list like {{a,b}}", where=("path",)
        )
