"""Reading one object over the network: completely, within the size limit, and in the version that was planned."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import layertap
from layertap_plugins.sources.files import refuse_large
from layertap_plugins.sources.remote_faults import Broken
from layertap_plugins.sources.remote_service import HTTP, S3, Remote

_PIECE = 2**18

# The lowest average rate in bytes per second, in addition to the timeout for each pause: otherwise a server that sends
# a few bytes at a time could occupy a thread for ever.
_SLOWEST = 2**14

# Requests that one look-up may need: gcsfs makes three.
_REQUESTS = 3

# Without this header a server may send the object compressed, with a length and an ETag that differ from the object's.
_AS_IT_IS: Mapping[str, str] = {"Accept-Encoding": "identity"}

_TIMES = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")


def body(remote: Remote, path: str, stamp: str | None, size: int | None) -> bytes:
    """The bytes of an object, in one attempt. Raises `ImageError` if no retry can help, else the original error."""
    refuse_large(size)
    filesystem = remote.filesystem()
    if remote.protocol in HTTP | S3:
        read = _over_http if remote.protocol in HTTP else _from_s3
        data: bytes = run(filesystem, read, filesystem, path, stamp, remote.timeout)
        return data
    return _from_any(filesystem, path, stamp, size, remote.timeout)


def http_facts(url: str, filesystem: Any) -> tuple[str | None, int | None, bool]:
    """The stamp and size of what a web server has at a URL, and whether it is a page."""

    async def ask() -> tuple[str | None, int | None, bool]:
        session = await filesystem.set_session()
        async with session.get(filesystem.encode_url(url), **_asking(filesystem)) as response:
            response.raise_for_status()
            return _http_stamp(response), response.content_length, response.content_type == "text/html"

    facts: tuple[str | None, int | None, bool] = run(filesystem, ask)
    return facts


def info_of(filesystem: Any, path: str, timeout: float) -> Mapping[str, Any]:
    """fsspec's facts about an object, with a time limit: some filesystems retry by themselves for minutes."""
    if filesystem.async_impl:
        info: Mapping[str, Any] = run(filesystem, filesystem._info, path, timeout=_REQUESTS * timeout)
    else:
        info = filesystem.info(path)
    return info


def stamp_of(info: Mapping[str, Any]) -> str | None:
    """What identifies the object's version in fsspec's facts about it."""
    for key in ("ETag", "etag", "generation", "md5Hash", "content_md5", "checksum"):
        if info.get(key):
            return _printable(str(info[key]).strip('"'))
    found = next((info[key] for key in _TIMES if info.get(key)), None)
    return None if found is None else _printable(f"{info.get('size')} {_seconds(found)}")


async def _over_http(filesystem: Any, path: str, stamp: str | None, timeout: float) -> bytes:
    session = await filesystem.set_session()
    async with session.get(filesystem.encode_url(path), **_asking(filesystem)) as response:
        response.raise_for_status()
        if response.status != 200:
            raise Broken(f"the server answered with status {response.status}")
        if stamp not in (None, _http_stamp(response)):
            raise layertap.ImageError("changed")
        # The announced length of a body that is compressed anyway is not the object's; aiohttp has checked that length.
        encoded = response.headers.get("Content-Encoding", "identity") != "identity"
        return await _whole(response.content.read, None if encoded else response.content_length, timeout)


async def _from_s3(filesystem: Any, path: str, stamp: str | None, timeout: float) -> bytes:
    bucket, key, version = filesystem.split_path(path)
    which = {"VersionId": version} if version else {}
    if stamp:
        which["IfMatch"] = f'"{stamp}"'
    response = await filesystem._call_s3("get_object", Bucket=bucket, Key=key, **which)
    async with response["Body"] as stream:
        # Not every service honours the condition.
        if stamp not in (None, stamp_of(response)):
            raise layertap.ImageError("changed")
        return await _whole(stream.read, response.get("ContentLength"), timeout)


def _from_any(filesystem: Any, path: str, stamp: str | None, size: int | None, timeout: float) -> bytes:
    """The object read through fsspec, which does not notice a change while it reads, so that is checked afterwards."""
    size = info_of(filesystem, path, timeout).get("size") if size is None else size
    refuse_large(size)
    part = {} if size is not None else {"start": 0, "end": layertap.MAX_IMAGE_BYTES + 1}
    if filesystem.async_impl:
        limit = timeout + (size or 0) / _SLOWEST
        data: bytes = run(filesystem, filesystem._cat_file, path, timeout=limit, **part)
    else:
        data = filesystem.cat_file(path, **part)
    if stamp is not None:
        filesystem.invalidate_cache()
        if stamp_of(info_of(filesystem, path, timeout)) != stamp:
            raise layertap.ImageError("changed")
    refuse_large(len(data))
    return _complete(data, size)


async def _whole(read: Callable[[int], Awaitable[bytes]], promised: int | None, timeout: float) -> bytes:
    import asyncio

    refuse_large(promised)
    pieces, count, start = [], 0, time.monotonic()
    while piece := await asyncio.wait_for(read(_PIECE), timeout):
        pieces.append(piece)
        count += len(piece)
        refuse_large(count)
        if time.monotonic() - start > timeout + count / _SLOWEST:
            raise TimeoutError(f"only {count} bytes arrived in {time.monotonic() - start:.0f} seconds")
    return _complete(b"".join(pieces), promised)


def _complete(data: bytes, promised: int | None) -> bytes:
    if promised is not None and len(data) != promised:
        raise Broken(f"{len(data)} bytes arrived instead of {promised}")
    return data


def _asking(filesystem: Any) -> dict[str, Any]:
    """The options of a request, including the user's headers."""
    return {**filesystem.kwargs, "headers": {**filesystem.kwargs.get("headers", {}), **_AS_IT_IS}}


def _http_stamp(response: Any) -> str | None:
    headers = response.headers
    etag, modified, length = (headers.get(name) for name in ("ETag", "Last-Modified", "Content-Length"))
    found = etag or " ".join(word for word in (length, modified) if word)
    return _printable(found) if found else None


def _seconds(time: Any) -> Any:
    """A time in whole seconds: some filesystems give a number in a listing, but a date for a single file."""
    if isinstance(time, str):
        with suppress(ValueError):
            time = datetime.fromisoformat(time)
    if isinstance(time, datetime):
        time = (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    return int(time) if isinstance(time, (int, float)) else time


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)


def run(filesystem: Any, call: Callable[..., Any], *args: Any, **rest: Any) -> Any:
    """The result of a coroutine function on fsspec's own thread."""
    from fsspec.asyn import sync  # type: ignore[import-untyped]

    return sync(filesystem.loop, call, *args, **rest)
