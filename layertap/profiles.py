"""How exact a run has to be: what it may do otherwise than the plain loop, in exchange for speed."""

from __future__ import annotations

from typing import Any, Literal

import pydantic
from pydantic import ConfigDict, Field


class Profile(pydantic.BaseModel):
    """The switches that change values a little; by default all are as in the plain loop."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    memory_format: Literal["contiguous", "channels_last"] = Field(
        "contiguous", description="how the model's input and weights lie in memory"
    )
    resize: Literal["exact", "tensor"] = Field(
        "exact", description="by the preprocessor's own filter, or by torch's on bytes, off by a level, seldom two"
    )
    decode: Literal["whole", "scaled"] = Field(
        "whole",
        description="JPEGs at their size, or at a half, a quarter or an eighth where that is enough: a few percent off",
    )
    tf32: bool | None = Field(None, description="whether NVIDIA GPUs may round to TF32; null leaves torch as it is set")


PROFILES = {
    "exact": Profile(),
    "fast": Profile(memory_format="channels_last", resize="tensor", decode="scaled", tf32=True),
}


def named(value: Any) -> Any:
    """The profile of that name; anything else as it is."""
    if isinstance(value, str):
        if value not in PROFILES:
            raise ValueError(f"is {' or '.join(PROFILES)}, or a mapping of switches, not {value!r}")
        return PROFILES[value]
    return value
