"""A service that images come from: fsspec's filesystem for one protocol, its options, timeout and retries."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import layertap
from layertap_plugins.sources.remote_faults import tried

T = TypeVar("T")

HTTP = frozenset({"http", "https"})
S3 = frozenset({"s3", "s3a"})
_GCS = frozenset({"gs", "gcs"})

URL = re.compile(r"([a-z][a-z0-9+.-]*)(://|::)", re.IGNORECASE)

# These would wrap another URL, write to this machine, or follow references in a file.
_NOT_OPENED = {
    *("arrow_hdfs", "async_wrapper", "asynclocal", "asyncwrapper", "blockcache", "cached", "dask", "data", "dir"),
    *("filecache", "generic", "jlab", "jupyter", "libarchive", "local", "pyscript", "reference", "root", "simplecache"),
    "tar",
}


@dataclass(frozen=True, slots=True)
class Remote:
    """How to reach one service: its protocol, fsspec's options for it as JSON, timeout and retries."""

    protocol: str
    options: str
    timeout: float
    retries: int

    @classmethod
    def of(cls, location: str, storage_options: Mapping[str, Any], *, timeout: float, retries: int) -> Remote:
        """The service of a URL. Raises `ConfigError` if it cannot be opened at all."""
        found = URL.match(location)
        assert found is not None
        protocol = found[1].lower()
        if found[2] == "::" or protocol in _NOT_OPENED or "::" in location:
            raise layertap.ConfigError(
                f"cannot use {location!r}: {protocol}:// is not supported, and the only prefix allowed before :: "
                "is zip://, as in zip://INSIDE::ARCHIVE",
                where=("path",),
            )
        if protocol in S3 | _GCS and not location[found.end() :].strip("/"):
            raise layertap.ConfigError(
                f"cannot use {location!r}: it does not name a bucket, as in {protocol}://BUCKET/photos/",
                where=("path",),
            )
        options = {**_class(protocol, location)._get_kwargs_from_urls(location), **storage_options}
        try:
            return cls(protocol, json.dumps(options, sort_keys=True), timeout, retries)
        except TypeError as error:
            raise layertap.ConfigError(f"{error}; only plain data is allowed", where=("storage_options",)) from error

    def path_of(self, location: str) -> str:
        """The path by which the service knows the object at one of its URLs."""
        return str(_class(self.protocol, location)._strip_protocol(location))

    def filesystem(self) -> Any:
        """fsspec's filesystem, one for all threads of this process; a forked process has its own."""
        key = (self, os.getpid())
        found = _OPEN.get(key)
        return found if found is not None else _OPEN.setdefault(key, self._opened())

    def tried(self, call: Callable[[], T]) -> T:
        """The result of `call`, retried as often as is allowed. Raises `ImageError`."""
        return tried(call, retries=self.retries, timeout=self.timeout)

    def _opened(self) -> Any:
        options = json.loads(self.options)
        if self.protocol in HTTP:
            import aiohttp

            patience = aiohttp.ClientTimeout(total=None, sock_connect=self.timeout, sock_read=self.timeout)
            client = {"timeout": patience, **options.pop("client_kwargs", {})}
            options = {"client_kwargs": client, "simple_links": False, "encoded": True, **options}
        elif self.protocol in S3:
            config: dict[str, Any] = {
                "connect_timeout": self.timeout,
                "read_timeout": self.timeout,
                "max_pool_connections": 64,
            }
            config |= {"retries": {"max_attempts": 0}, **options.pop("config_kwargs", {})}
            options["config_kwargs"] = config
        elif self.protocol in _GCS:
            options.setdefault("requests_timeout", self.timeout)
            _silence("gcsfs")
        filesystem = _class(self.protocol, self.protocol)(**options, skip_instance_cache=True)
        if self.protocol in S3:
            filesystem.retries = 1  # otherwise each attempt here would be five attempts in s3fs
        return filesystem


# Without a lock, because a fork could leave it locked for ever: all threads use the first one that is put in.
_OPEN: dict[tuple[Remote, int], Any] = {}


def _silence(name: str) -> None:
    """Keep a package's log off the terminal unless a handler is set: each of its attempts logs a page."""
    logger = logging.getLogger(name)
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())


def _class(protocol: str, location: str) -> Any:
    """fsspec's class for a protocol. Raises `ConfigError` if there is none or a package is missing."""
    extra = "s3" if protocol in S3 else "gcs" if protocol in _GCS else "remote"
    try:
        import fsspec  # type: ignore[import-untyped]

        return fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        missing = error.__cause__ if isinstance(error.__cause__, ImportError) else error
        if protocol in HTTP | S3 | _GCS or missing.name == "fsspec":
            raise layertap.ConfigError(
                layertap.missing_extra(repr(location), missing.name, extra), where=("path",)
            ) from error
        package = f"the package {missing.name!r}" if missing.name else "another package"
        raise layertap.ConfigError(f"{location!r} needs {package}: {error}", where=("path",)) from error
    except ValueError as error:
        raise layertap.ConfigError(
            f"cannot use {location!r}: unknown protocol {protocol!r}; some known ones are s3://, gs://, https:// and zip://",
            where=("path",),
        ) from error
