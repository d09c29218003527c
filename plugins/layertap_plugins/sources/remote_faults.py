"""What goes wrong on the way to another machine: which code it gets, whether to try again, how to say it in a line."""

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

# The pause before the first new attempt; each further one is three times as long, up to the timeout.
_PAUSE = 0.5

# Of its own, so that nobody's seeded numbers change.
_JITTER = random.Random()

# Answers that ask for patience; every other one from 400 to 499 will be the same the next time.
_PATIENCE = frozenset({408, 425, 429})

_STATUSES = {401: "permission", 403: "permission", 404: "not_found", 410: "not_found", 412: "changed"}

# Mistakes in code or parameters, which no further attempt mends.
_MISTAKES = (TypeError, ValueError, LookupError, AttributeError, ImportError, NotImplementedError, MemoryError)

_MOST_SAID = 300

_SECRET_IN_URL = re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)|(?<=\?)\S+")


class Broken(OSError):
    """An answer that is not what was promised: too short, or of a kind that nobody asked for."""


def tried(call: Callable[[], T], *, retries: int, timeout: float) -> T:
    """What `call` gives, after up to `retries` new attempts with growing pauses between them.

    Raises `ImageError` with a fixed code; mistakes in code or parameters pass as they are.
    """
    for attempt in range(retries + 1):
        try:
            return call()
        except layertap.LayertapError:
            raise
        except Exception as error:
            # A certificate that does not hold is a ValueError too.
            if isinstance(error, _MISTAKES) and not isinstance(error, OSError):
                raise
            reason, passing = _judged(error)
            if not passing or attempt == retries:
                raise layertap.ImageError(reason, f"{reason}: {said(error)}") from error
        time.sleep(min(timeout, _PAUSE * 3**attempt) * _JITTER.uniform(0.5, 1))
    raise AssertionError("unreachable")


@contextmanager
def told(location: str) -> Iterator[None]:
    """Turn what goes wrong over the source itself, not over one image, into a `ConfigError` of one line."""
    try:
        yield
    except layertap.ImageError as error:
        why = str(error).removeprefix(f"{error.reason}: ")
        if error.reason == "not_found":
            raise layertap.ConfigError(f"cannot read {location!r}: there is no such bucket, folder or file") from error
        advice = {
            "corrupt": "it is damaged, or no archive",
            "permission": "check the credentials in the provider's environment variables or files; "
            "`storage_options: {anon: true}` reads a public bucket without any",
        }.get(error.reason, "check the address and the network")
        raise layertap.ConfigError(f"cannot read {location!r}: {why}; {advice}") from error
    except layertap.LayertapError:
        raise
    except Exception as error:
        raise layertap.ConfigError(f"cannot read {location!r}: {said(error)}") from error


def said(error: BaseException) -> str:
    """An error in one line, or its name, without what may be secret in a URL."""
    text = getattr(error, "strerror", None) or " ".join(str(error).split())
    if not text:
        return "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__
    return _SECRET_IN_URL.sub("***", text)[:_MOST_SAID]


def _judged(error: Exception) -> tuple[str, bool]:
    """The code for an error, and whether it may be gone the next time."""
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
    if (300 <= status < 500 and status not in _PATIENCE) or any(
        "Redirect" in name or "Validation" in name for name in names
    ):
        return "network", False
    return ("timeout" if any("Timeout" in name for name in names) else "network"), True


def _status(error: BaseException) -> int:
    """The HTTP status behind an error of aiohttp, gcsfs, or botocore (which s3fs keeps as the cause); 0 for none."""
    response = getattr(error.__cause__, "response", None)
    if isinstance(response, dict):
        return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    # aiohttp's errors have a `code` as well, and warn of it.
    status = error.status if hasattr(error, "status") else getattr(error, "code", None)
    return status if isinstance(status, int) else 0
