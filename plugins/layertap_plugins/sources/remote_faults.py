"""Failures of requests to another machine: their codes, whether to retry, and how to describe them in one line."""

from __future__ import annotations

import random
import re
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import layertap

T = TypeVar("T")

# The pause before the first retry; each further pause is three times as long, up to the timeout.
_PAUSE = 0.5

# A separate generator, so that the process's seeded random numbers do not change.
_JITTER = random.Random()

# Statuses that ask the client to try later; any other one from 400 to 499 would be the same on the next attempt.
_TRY_LATER = frozenset({408, 425, 429})

_STATUSES = {401: "permission", 403: "permission", 404: "not_found", 410: "not_found", 412: "changed"}

# Mistakes in code or parameters, which a retry does not fix.
_MISTAKES = (TypeError, ValueError, LookupError, AttributeError, ImportError, NotImplementedError, MemoryError)

_MOST_SAID = 300

_SECRET_IN_URL = re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)|(?<=\?)\S+")


class Broken(OSError):
    """An answer that is not as announced: too short, or of an unexpected kind."""


def tried(call: Callable[[], T], *, retries: int, timeout: float) -> T:
    """The result of `call`, after up to `retries` further attempts with growing pauses between them.

    Raises `ImageError` with a fixed code; mistakes in code or parameters are raised unchanged.
    """
    for attempt in range(retries + 1):
        try:
            return call()
        except layertap.LayertapError:
            raise
        except Exception as error:
            # The error for an invalid certificate is a ValueError too.
            if isinstance(error, _MISTAKES) and not isinstance(error, OSError):
                raise
            reason, passing = _judged(error)
            if not passing or attempt == retries:
                raise layertap.ImageError(reason, f"{reason}: {said(error)}") from error
        time.sleep(min(timeout, _PAUSE * 3**attempt) * _JITTER.uniform(0.5, 1))
    raise AssertionError("unreachable")


@contextmanager
def source_errors(location: str) -> Iterator[None]:
    """Turn errors that concern the source itself, not one image, into a `ConfigError` of one line."""
    try:
        yield
    except layertap.ImageError as error:
        why = str(error).removeprefix(f"{error.reason}: ")
        if error.reason == "not_found":
            raise layertap.ConfigError(
                f"cannot read {location!r}: there is no such bucket, folder or file", where=("path",)
            ) from error
        advice = {
            "corrupt": "it is damaged, or not an archive",
            "permission": "check the credentials in the provider's environment variables or files; "
            "`storage_options: {anon: true}` reads a public bucket without them",
        }.get(error.reason, "check the address and the network")
        raise layertap.ConfigError(f"cannot read {location!r}: {why}; {advice}", where=("path",)) from error
    except layertap.LayertapError:
        raise
    except Exception as error:
        raise layertap.ConfigError(f"cannot read {location!r}: {said(error)}", where=("path",)) from error


def said(error: BaseException) -> str:
    """An error in one line, or its name, without the parts of a URL that may be secret."""
    text = getattr(error, "strerror", None) or " ".join(str(error).split())
    if not text:
        return "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__
    return _SECRET_IN_URL.sub("***", text)[:_MOST_SAID]


def _judged(error: Exception) -> tuple[str, bool]:
    """The code for an error, and whether a retry may succeed."""
    names = {cls.__name__ for cls in type(error).__mro__}
    status = _status(error)
    if isinstance(error, (zipfile.BadZipFile, zlib.error)):
        return "corrupt", True
    if isinstance(error, FileNotFoundError):
        return "not_found", False
    if isinstance(error, PermissionError) or any("Credential" in name for name in names):
        return "permission", False
    if status in _STATUSES:
        return _STATUSES[status], False
    if (300 <= status < 500 and status not in _TRY_LATER) or any(
        "Redirect" in name or "Validation" in name for name in names
    ):
        return "network", False
    return ("timeout" if any("Timeout" in name for name in names) else "network"), True


def _status(error: BaseException) -> int:
    """The HTTP status of an error of aiohttp, gcsfs, or botocore (which s3fs keeps as the cause); 0 if none."""
    response = getattr(error.__cause__, "response", None)
    if isinstance(response, dict):
        return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    # aiohttp's errors also have a `code`, but reading it causes a warning.
    status = error.status if hasattr(error, "status") else getattr(error, "code", None)
    return status if isinstance(status, int) else 0
