"""The images in a folder and below it, or one image: on this machine, at a URL or in a zip archive."""

from __future__ import annotations

import errno
import fnmatch
import functools
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

from pydantic import Field

import layertap
from layertap_plugins.sources import files
from layertap_plugins.sources.remote import RETRIES, TIMEOUT, Location, StorageOptions, is_url

T = TypeVar("T")

# Appended to the path of a link, and of a folder that is too deep to be listed. No name contains that byte, and as the
# smallest byte it does not affect the order.
_LINK = b"\0"
_TOO_DEEP = b"\0deep"

# The number of folders whose names are kept to compare.
_FOLDERS = 64


class FolderSource(layertap.Source):
    """Yields one record per matching file, in the byte order of their paths below the folder.

    The id is that path with `/` between its parts; bytes that are not UTF-8 become `%XX`, and a part that would then be
    the name of another file gets `~` and 8 hexadecimal digits before its suffix. `label` is the first folder on the
    way, None for an image directly in the folder. Folders that are links are never entered. A folder whose path is
    longer than the system allows is one record, which fails as `path_too_long`; its id ends in `/`. The same rules
    apply to a URL, and nothing is kept on this machine.
    """

    extra: ClassVar[str | None] = "remote"

    class Params(layertap.Params):
        path: Location = Field(
            min_length=1,
            description="a folder, searched with all folders below it, or one image; also s3://, gs://, https:// and "
            "other URLs that fsspec knows, and zip://INSIDE::ARCHIVE",
        )
        include: list[str] = Field(
            default=["*.jpg", "*.jpeg", "*.png", "*.webp", "*.bmp", "*.gif"],
            min_length=1,
            description="patterns of the files to take, in any case; one with a / is matched against the path below "
            "the folder, others against the file's name; * matches any characters, including /",
        )
        links: Literal["inside", "follow"] = Field(
            "inside",
            description="inside: a file that is a link to a place outside the folder is listed as failed; follow: it "
            "is read, wherever it leads",
        )
        storage_options: StorageOptions = Field(
            {},
            description="for a URL: fsspec's options, such as anon or endpoint_url; passwords and keys are not allowed "
            "here and belong in the provider's own environment variables and credential files",
        )
        timeout: float = Field(
            TIMEOUT, gt=0, le=3_600, description="for a URL: seconds to wait for a server to answer or to continue"
        )
        retries: int = Field(RETRIES, ge=0, le=100, description="for a URL: how often to retry after a failure")

    params: Params

    @property
    def waits(self) -> bool:
        return is_url(self.params.path)

    def records(self) -> Iterator[layertap.ImageRecord]:
        path = self.params.path
        if is_url(path):
            yield from self._elsewhere(path)
            return
        if self.params.storage_options:
            raise layertap.ConfigError(f"these are for a URL, but {path!r} is a local path", where=("storage_options",))
        path = path.removeprefix("file://")
        try:
            is_folder = stat.S_ISDIR(os.stat(path).st_mode)
        except (OSError, ValueError) as error:
            raise files.unusable(path, getattr(error, "strerror", None) or error) from error
        if is_folder:
            yield from self._below(os.fsencode(path))
        else:
            yield _record(files.text_of(os.path.basename(os.fsencode(path))), Path(path))

    def _elsewhere(self, location: str) -> Iterator[layertap.ImageRecord]:
        # Imported only for a URL, because it imports fsspec.
        from layertap_plugins.sources import remote_listing

        params = self.params
        is_folder, found = remote_listing.found_at(
            location, params.storage_options, timeout=params.timeout, retries=params.retries
        )
        if is_folder:
            matches = _matcher(params.include)
            found = self._matching((e for e in found if not _is_hidden(e[0])), lambda entry: matches(entry[0]))
        for path, data in found:
            yield _record(files.text_of(path), data)

    def _below(self, root: bytes) -> Iterator[layertap.ImageRecord]:
        real_root = os.path.realpath(root)
        ids = _Ids(root)
        matches = _matcher(self.params.include)
        for found in self._matching(_files(root), lambda f: f.endswith(_TOO_DEEP) or matches(f.removesuffix(_LINK))):
            path = found.removesuffix(_TOO_DEEP).removesuffix(_LINK)
            data: Path | Callable[[], bytes] = Path(os.fsdecode(os.path.join(root, path)))
            if found.endswith(_TOO_DEEP):
                data = _refuse_deep
            elif path != found and self.params.links == "inside" and _leads_out(os.path.join(root, path), real_root):
                data = _refuse
            yield _record(ids.of(path), data)

    def _matching(self, found: Iterable[T], matches: Callable[[T], bool]) -> Iterator[T]:
        """The files that match. Raises `ConfigError` if there are none."""
        taken = passed_over = 0
        for entry in found:
            if matches(entry):
                taken += 1
                yield entry
            else:
                passed_over += 1
        if not taken:
            patterns = ", ".join(self.params.include)
            raise layertap.ConfigError(
                f"no images in {self.params.path!r} match {patterns} ({passed_over} other files were "
                "skipped; folders that are links or begin with a dot are not entered)",
                where=("path",),
            )


class _Ids:
    """The ids of the files below a folder: different ones for different files."""

    def __init__(self, root: bytes) -> None:
        self._root = root
        self._own = functools.lru_cache(_FOLDERS)(self._clashing)

    def of(self, path: bytes) -> str:
        """The path as text."""
        try:
            return path.decode()
        except UnicodeDecodeError:
            parts = path.split(b"/")
            return "/".join(self._text(b"/".join(parts[:depth]), part) for depth, part in enumerate(parts))

    def _text(self, folder: bytes, name: bytes) -> str:
        try:
            return name.decode()
        except UnicodeDecodeError:
            return self._own(folder).get(name) or files.text_of(name)

    def _clashing(self, folder: bytes) -> dict[bytes, str]:
        return files.clashing(set(os.listdir(os.path.join(self._root, folder))))


def _record(record_id: str, data: Path | Callable[[], bytes]) -> layertap.ImageRecord:
    label, slash, _ = record_id.partition("/")
    return layertap.ImageRecord(record_id, data, {"label": label if slash else None})


def _is_hidden(path: bytes) -> bool:
    """Whether one of the folders on the way begins with a dot; such folders are not entered on this machine either."""
    return any(part.startswith(b".") and part not in (b".", b"..") for part in path.split(b"/")[:-1])


def _leads_out(link: bytes, real_root: bytes) -> bool:
    """Whether a link leads to something that is not below the folder; False for a broken link."""
    # A root of / already ends in its separator.
    return os.path.exists(link) and not os.path.realpath(link).startswith(os.path.join(real_root, b""))


def _refuse() -> bytes:
    message = "outside_root: a link to a place outside the source's folder; `links: follow` reads it anyway"
    raise layertap.ImageError("outside_root", message)


def _refuse_deep() -> bytes:
    raise layertap.ImageError("path_too_long")


def _files(root: bytes) -> Iterator[bytes]:
    """The paths of all files below `root`, in byte order; the path of a link ends in `_LINK`.

    A folder that is deeper than the system allows is itself among them, and ends in `_TOO_DEEP`. Only the folders on
    the way to the current file are in memory.
    """
    waiting = [b""]
    while waiting:
        path = waiting.pop()
        if path and not path.endswith(b"/"):
            yield path
            continue
        try:
            waiting += _listing(root, path)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise _unlisted(root, path, error) from error
            yield path + _TOO_DEEP


def _unlisted(root: bytes, folder: bytes, error: OSError) -> layertap.ConfigError:
    where = os.fsdecode(os.path.join(root, folder))
    return layertap.ConfigError(f"cannot list {where!r}: {error.strerror}", where=("path",))


def _listing(root: bytes, folder: bytes) -> list[bytes]:
    """The entries of one folder, last first. A folder's name ends in /, which sorts it where its files belong.

    Raises `OSError` if the folder cannot be listed.
    """
    found = []
    with os.scandir(os.path.join(root, folder)) as entries:
        for entry in entries:
            if not _leads_to_a_folder(entry):
                found.append(folder + entry.name + (_LINK if entry.is_symlink() else b""))
            elif not entry.is_symlink() and not entry.name.startswith(b"."):
                found.append(folder + entry.name + b"/")
    found.sort(reverse=True)
    return found


def _leads_to_a_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a circular link, or one into a folder without permission: reading it reports which


def _matcher(patterns: list[str]) -> Callable[[bytes], bool]:
    def any_of(some: list[str]) -> re.Pattern[str]:
        return re.compile("|".join(fnmatch.translate(pattern) for pattern in some) or r"(?!)", re.IGNORECASE)

    in_names = any_of([pattern for pattern in patterns if "/" not in pattern])
    in_paths = any_of([pattern for pattern in patterns if "/" in pattern])

    def matches(path: bytes) -> bool:
        whole = os.fsdecode(path)
        name = whole.rpartition("/")[2]
        return not name.startswith(".") and bool(in_names.match(name) or in_paths.match(whole))

    return matches


@layertap.hookimpl
def register_sources(register: Callable[[str, type[layertap.Source]], None]) -> None:
    register("folder", FolderSource)
