"""What the page takes: blocks of JSON, with arrays as the base64 of their bytes."""

from __future__ import annotations

import base64
import json
import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Packed: TypeAlias = dict[str, Any]

# The dtypes that a browser has a typed array for.
_TYPED = {"uint8", "int16", "int32", "float32", "float64"}

# These could end the script that holds the text, or begin a comment in it.
_UNSAFE = str.maketrans({"<": r"\u003c", ">": r"\u003e", "&": r"\u0026"})


def packed(values: NDArray[Any]) -> Packed:
    """An array as data for JSON: `dtype`, `shape`, and `data` in little-endian C order."""
    if values.dtype.name not in _TYPED:
        raise TypeError(f"a page has no arrays of {values.dtype}")
    plain = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    data = base64.b64encode(plain.tobytes()).decode("ascii")
    return {"dtype": values.dtype.name, "shape": list(values.shape), "data": data}


def json_text(value: Any) -> str:
    """A value as JSON that can be put into a script of a page: ASCII, without `<`, `>` and `&`."""
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":")).translate(_UNSAFE)


def number(value: float) -> float | None:
    """A number for JSON, which has neither NaN nor infinity."""
    return float(value) if math.isfinite(value) else None
