"""The dtypes of stored values, by torch's names for them, without loading torch."""

from __future__ import annotations

from typing import Any

import numpy as np


def widened(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """A dtype that numpy itself has: float32 holds every bfloat16 exactly."""
    return np.dtype(np.float32) if dtype.name == "bfloat16" else dtype


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype of a torch dtype's name; bfloat16 is `ml_dtypes.bfloat16`."""
    if name == "bfloat16":
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(name)
