"""The switches of a run that may change values a little."""

from __future__ import annotations

from typing import Literal

import pydantic
from pydantic import ConfigDict, Field


class Profile(pydantic.BaseModel):
    """The switches that change values a little; by default none does: values are those of the plain loop."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    memory_format: Literal["contiguous", "channels_last"] = Field(
        "contiguous", description="the memory layout of the model's input and weights"
    )
    resize: Literal["exact", "tensor"] = Field(
        "exact", description="the preprocessor's own filter, or torch's on bytes, which is off by one level, rarely two"
    )
    decode: Literal["whole", "scaled"] = Field(
        "whole",
        description="JPEGs at full size, or at a half, a quarter or an eighth where that is enough (a few percent off)",
    )
    tf32: bool | None = Field(None, description="whether NVIDIA GPUs may round to TF32; null keeps torch's setting")


PROFILES = {
    "exact": Profile(),
    "fast": Profile(memory_format="channels_last", resize="tensor", decode="scaled", tf32=True),
}
