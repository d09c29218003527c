"""The contents of a URL: one image, or everything below it in the byte order of the paths."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeAlias
from urllib.parse import quote, unquote_to_bytes

import layertap
from layertap_plugins.sources import files, remote_zip
from layertap_plugins.sources.remote import Fetch, is_url
from layertap_plugins.sources.remote_faults import source_errors
from layertap_plugins.sources.remote_reading import http_facts, info_of, stamp_of
from layertap_plugins.sources.remote_service import HTTP, S3, Remote

Found: TypeAlias = Iterator[tuple[bytes, Callable[[], bytes]]]


def found_at(location: str, storage_options: Mapping[str, Any], *, timeout: float, retries: int) -> tuple[bool, Found]:
    """Whether a URL names a folder, and the path and data of everything below it, or else of the one image.

    The paths are in byte order and may include hidden folders. Memory holds one page of an S3 bucket, the names in an
    archive, or else only the folders on the way to the current file. Raises `ConfigError`.
    """
    if location.startswith("zip://"):
        inside, archive = remote_zip.parted(location)
        remote = Remote.of(archive, storage_options, timeout=timeout, retries=retries) if is_url(archive) else None
        with source_errors(location):
            members = list(remote_zip.Archive.at(archive, remote).members())
        whole = [(name.rpartition(b"/")[2], data) for name, data in members if name == _raw(inside)]
        prefix = _raw(f"{inside}/") if inside else b""
        below = ((name.removeprefix(prefix), data) for name, data in members if name.startswith(prefix))
        return not whole, iter(whole) if whole else below
    remote = Remote.of(location, storage_options, timeout=timeout, retries=retries)
    image = _single(location, remote)
    return (True, _below(location, remote)) if image is None else (False, iter([image]))


def _single(location: str, remote: Remote) -> tuple[bytes, Fetch] | None:
    """The name and the data of the one image at a URL; None for a folder."""
    with source_errors(location):
        path = remote.path_of(location)
        if remote.protocol in HTTP:
            return _single_page(path, remote)
        if remote.protocol in S3:
            return None if location.endswith("/") else _single_object(path, remote)
        info = remote.tried(lambda: info_of(remote.filesystem(), path, remote.timeout))
        return None if info["type"] == "directory" else (_raw(path.rpartition("/")[2]), _fetch(remote, info))


def _below(location: str, remote: Remote) -> Found:
    with source_errors(location):
        path = remote.path_of(location)
        if remote.protocol in S3:
            yield from _in_bucket(path, remote)
        elif remote.protocol in HTTP:
            folder = _as_folder(path)
            if not next(_linked(remote, folder), None):
                raise layertap.ConfigError(
                    f"cannot list {location!r}: the server does not list its contents; name one image, or list "
                    "the addresses of the images in a table for the source `manifest`",
                    where=("path",),
                )
            yield from _walked(folder, partial(_linked, remote))
        else:
            yield from _walked(path.rstrip("/"), partial(_listed, remote))


def _single_page(url: str, remote: Remote) -> tuple[bytes, Fetch] | None:
    url = _quoted(url)
    if url.endswith("/") or url.count("/") < 3:
        return None
    stamp, size, is_page = remote.tried(lambda: http_facts(url, remote.filesystem()))
    if is_page:
        return None
    name = unquote_to_bytes(url.partition("?")[0].rpartition("/")[2])
    return name, Fetch(remote, url, stamp, size)


def _single_object(path: str, remote: Remote) -> tuple[bytes, Fetch] | None:
    filesystem = remote.filesystem()
    bucket, key, version = filesystem.split_path(path)
    if not key:
        return None
    which = {"VersionId": version} if version else {}
    try:
        facts = remote.tried(partial(filesystem.call_s3, "head_object", Bucket=bucket, Key=key, **which))
    except layertap.ImageError as error:
        if error.reason == "not_found":
            return None
        raise
    return _raw(key.rpartition("/")[2]), Fetch(remote, path, stamp_of(facts), facts["ContentLength"])


def _in_bucket(path: str, remote: Remote) -> Found:
    filesystem = remote.filesystem()
    bucket, key, _ = filesystem.split_path(path)
    prefix = f"{key.rstrip('/')}/" if key else ""
    page: dict[str, Any] = {"IsTruncated": True}
    before = b""
    while page.get("IsTruncated"):
        after = {"ContinuationToken": page["NextContinuationToken"]} if "NextContinuationToken" in page else {}
        page = remote.tried(partial(filesystem.call_s3, "list_objects_v2", Bucket=bucket, Prefix=prefix, **after))
        for entry in page.get("Contents", ()):
            name = _raw(entry["Key"].removeprefix(prefix))
            if name.endswith(b"/") or not name:
                continue  # it represents a folder
            if name <= before:
                raise layertap.ConfigError(
                    f"the bucket {bucket!r} does not list its keys in order, which layertap requires", where=("path",)
                )
            before = name
            yield name, Fetch(remote, f"{bucket}/{entry['Key']}", stamp_of(entry), entry["Size"])


Children: TypeAlias = Callable[[str], Iterator[tuple[bytes, str, Fetch | None]]]


def _walked(root: str, children: Children) -> Found:
    """All files below `root`. `children` gives the name and path of each entry of a folder, and the data of files."""
    waiting = _sorted(b"", children(root))
    while waiting:
        path, place, data = waiting.pop()
        if data is not None:
            yield path, data
        else:
            waiting += _sorted(path, children(place))


def _sorted(folder: bytes, found: Iterator[tuple[bytes, str, Fetch | None]]) -> list[tuple[bytes, str, Fetch | None]]:
    """The entries of one folder, last first. A folder's name ends in /, which sorts it where its files belong."""
    entries = [(name + (b"/" if data is None else b""), path, data) for name, path, data in found]
    entries.sort(key=lambda entry: entry[0], reverse=True)
    own = files.clashing({name.removesuffix(b"/") for name, _, _ in entries})
    if not own:
        return [(folder + name, path, data) for name, path, data in entries]
    return [(folder + _own_name(name, own), path, data) for name, path, data in entries]


def _own_name(name: bytes, own: Mapping[bytes, str]) -> bytes:
    bare = name.removesuffix(b"/")
    return own[bare].encode() + name[len(bare) :] if bare in own else name


def _listed(remote: Remote, folder: str) -> Iterator[tuple[bytes, str, Fetch | None]]:
    filesystem = remote.filesystem()
    filesystem.invalidate_cache()
    for info in remote.tried(lambda: filesystem.ls(folder, detail=True)):
        path = info["name"].rstrip("/")
        name = path.removeprefix(f"{folder}/") if folder else path.lstrip("/")
        if path == folder:
            continue  # some services list an entry that represents the folder itself
        if not name or "/" in name:
            raise layertap.ConfigError(
                f"cannot list {folder!r}: {info['name']!r} has an empty part in its path", where=("path",)
            )
        if info["type"] != "directory":
            yield _raw(name), path, _fetch(remote, info)
        elif not name.startswith("."):
            yield _raw(name), path, None


def _linked(remote: Remote, folder: str) -> Iterator[tuple[bytes, str, Fetch | None]]:
    """The entries directly below a web server's folder that its page links to."""
    filesystem = remote.filesystem()
    for link in remote.tried(lambda: filesystem.ls(folder, detail=False)):
        rest = html.unescape(link.removeprefix(folder))
        name, slash, deeper = rest.partition("/")
        raw = unquote_to_bytes(name)
        elsewhere = not link.startswith(folder) or deeper or "?" in rest or "#" in rest
        if elsewhere or b"/" in raw or raw in (b"", b".", b".."):
            continue
        if not slash:
            yield raw, folder + _quoted(name), Fetch(remote, folder + _quoted(name))
        elif not raw.startswith(b"."):
            yield raw, folder + _quoted(name) + slash, None


def _fetch(remote: Remote, info: Mapping[str, Any]) -> Fetch:
    return Fetch(remote, info["name"], stamp_of(info), info.get("size"))


def _as_folder(url: str) -> str:
    return f"{_quoted(url).rstrip('/')}/"


def _quoted(url: str) -> str:
    """The URL with invalid characters escaped; existing escapes are kept."""
    return quote(url, safe="%/:=&?~#+!$,;'@()*[]")


def _raw(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")
