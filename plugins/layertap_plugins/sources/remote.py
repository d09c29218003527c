"""Images on other machines and in archives, as records' data: any URL that fsspec knows, and `zip://INSIDE::FILE`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator

import layertap
from layertap_plugins.sources import remote_reading
from layertap_plugins.sources.remote_service import URL, Remote

TIMEOUT = 10.0
RETRIES = 4

_SECRET_KEY = re.compile(
    r"key|.*(secret|passw|token|credential|cookie|signature|api_?key|(account|access|private|shared)_?key|"
    r"connection_?string).*|(.*_)?(auth|authorization|sas|sig|pwd)(_.*)?",
    re.IGNORECASE,
)

# The values besides tokens that gcsfs accepts as its `token`.
_NO_SECRETS = (None, True, False, "", "anon", "browser", "cache", "cloud", "google_default")

_INSTEAD = "use the provider's own environment variables or credential files, because parameters are written into the "
_INSTEAD += "manifest"


def _without_secrets(value: Any) -> Any:
    """The value of a parameter, as the manifest will show it. Raises `ValueError` naming the key of a secret."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ValueError(f"holds the key {key!r}; keys must be text")
            if _SECRET_KEY.fullmatch(key.replace("-", "_")) and inner not in _NO_SECRETS:
                raise ValueError(f"holds a secret ({key}): {_INSTEAD}")
            _without_secrets(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _without_secrets(inner)
    elif isinstance(value, str):
        if "://" in value and _has_secret(value):
            raise ValueError(f"holds a URL with a secret in it: {_INSTEAD}")
    elif not isinstance(value, (bool, int, float, type(None))):
        raise ValueError(f"holds a {type(value).__name__}; only plain data can be written into the manifest")
    return value


def _has_secret(url: str) -> bool:
    try:
        parts = urlsplit(url.rpartition("::")[2])
    except ValueError:
        return False  # not a URL after all, which is reported where it is used
    return bool(parts.password) or any(
        _SECRET_KEY.fullmatch(key.replace("-", "_")) for key, _ in parse_qsl(parts.query)
    )


StorageOptions: TypeAlias = Annotated[dict[str, Any], AfterValidator(_without_secrets)]
"""The type of a parameter for fsspec's options: plain data without secrets."""

Location: TypeAlias = Annotated[str, AfterValidator(_without_secrets)]
"""The type of a parameter for a path or a URL, without a password or signature in it."""


def is_url(location: str) -> bool:
    """Whether fsspec should open it; a `file://` URL is a local path."""
    return "://" in location and URL.match(location) is not None and not location.startswith("file://")


def data_of(
    location: str,
    storage_options: Mapping[str, Any] = {},
    *,
    timeout: float = TIMEOUT,
    retries: int = RETRIES,
) -> Path | Fetch:
    """A record's data: the path of a local file, or a callable that fetches the whole object at a URL.

    This makes no network request yet. Raises `ConfigError` for a protocol that is unknown, not supported, or needs a
    missing package.
    """
    if not is_url(location):
        return Path(location.removeprefix("file://"))
    if location.startswith("zip://"):
        raise layertap.ConfigError(
            f"cannot use {location!r}: use the source `folder` for the images in an archive", where=("path",)
        )
    remote = Remote.of(location, storage_options, timeout=timeout, retries=retries)
    return Fetch(remote, remote.path_of(location))


@dataclass(frozen=True, slots=True)
class Fetch:
    """One object on another machine, as a record's data: calling it gives all its bytes.

    `stamp` identifies the object's version: its ETag, or its size and time; None where that is not known beforehand.
    Can be pickled, and called on any thread. Raises `ImageError`: `not_found`, `permission`, `changed`,
    `file_too_large`, and `network` or `timeout` if no attempt received the whole object.
    """

    remote: Remote
    path: str
    stamp: str | None = None
    size: int | None = None

    def __call__(self) -> bytes:
        return self.remote.tried(lambda: remote_reading.body(self.remote, self.path, self.stamp, self.size))
