"""Tap names -> file names that are safe and distinct on Linux, macOS and Windows."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

_PLAIN = re.compile(rb"[A-Za-z0-9._-]")

# Names of the output folder itself, and the device names that Windows reserves with any suffix
# (https://learn.microsoft.com/windows/win32/fileio/naming-a-file).
_OURS = {"manifest", "index", "failures", "parts", "commits", "rows", "table", "lock"}
_WINDOWS = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}

# File systems stop at 255 bytes; this leaves room for a hash, a suffix and a temporary ending.
_LONGEST = 200


def stems(names: Iterable[str]) -> dict[str, str]:
    """A file name without suffix for every name.

    Characters outside `[A-Za-z0-9._-]` become `%XX`, a byte each. A name that is reserved, too long, or differs from
    an earlier one in case alone gets `~` and 8 hex digits of its own hash.
    """
    result: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        stem = _escaped(name)
        if _is_reserved(stem) or stem.lower() in taken:
            stem = f"{stem[:_LONGEST]}~{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        result[name] = stem
        taken.add(stem.lower())
    return result


def _escaped(name: str) -> str:
    raw = name.encode()
    return "".join(chr(byte) if _PLAIN.match(bytes([byte])) else f"%{byte:02X}" for byte in raw)


def _is_reserved(stem: str) -> bool:
    head = stem.lower().partition(".")[0]
    return head in _WINDOWS or stem.lower() in _OURS or stem.strip(".") == "" or len(stem) > _LONGEST
