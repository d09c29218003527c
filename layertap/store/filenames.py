"""Tap names -> file names that are safe and distinct on Linux, macOS and Windows."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

_PLAIN = re.compile(rb"[A-Za-z0-9._-]")

# Names in the output folder that do not belong to taps, and the device names that Windows reserves with any suffix
# (https://learn.microsoft.com/windows/win32/fileio/naming-a-file).
_IN_USE = {"manifest", "index", "failures", "parts", "commits", "rows", "table", "lock", "merge"}
_IN_USE |= {"manifest.json", "index.csv", "failures.csv", "merge.tmp"}
_WINDOWS = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}

# File systems limit names to 255 bytes; this leaves room for a hash, a suffix and a temporary ending.
_LONGEST = 200


def stems(names: Iterable[str]) -> dict[str, str]:
    """A file name without a suffix for every name.

    Characters outside `[A-Za-z0-9._-]` become `%XX`, one per byte, and so does a dot at the beginning, which would hide
    the file (the tap `.` is `%2E`), or at the end, which Windows drops. A name that is reserved, too long, or differs
    from an earlier one only in case gets `~` and 8 hex digits of its own hash.
    """
    result: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        stem = _escaped(name)
        if _is_reserved(stem) or stem.lower() in taken:
            stem = _marked(stem[:_LONGEST], hashlib.sha256(_raw(name)).hexdigest()[:8])
        result[name] = stem
        taken.add(stem.lower())
    return result


def _escaped(name: str) -> str:
    raw = _raw(name)
    stem = "".join(chr(byte) if _PLAIN.match(bytes([byte])) else f"%{byte:02X}" for byte in raw)
    if stem.startswith("."):
        stem = f"%2E{stem[1:]}"
    return f"{stem[:-1]}%2E" if stem.endswith(".") else stem


def _raw(name: str) -> bytes:
    # A name may hold half a surrogate pair: Python lets a module be called anything.
    return name.encode(errors="surrogatepass")


def _is_reserved(stem: str) -> bool:
    return _is_device(stem) or stem.lower() in _IN_USE or stem == "" or len(stem) > _LONGEST


def _is_device(stem: str) -> bool:
    return stem.lower().partition(".")[0] in _WINDOWS


def _marked(stem: str, digits: str) -> str:
    if not _is_device(stem):
        return f"{stem}~{digits}"
    # Windows checks the part before the first dot, and nothing after it makes `aux.0` valid.
    head, dot, rest = stem.partition(".")
    return f"{head}~{digits}{dot}{rest}"
