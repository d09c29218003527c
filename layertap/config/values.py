"""What the values of single keys may be, and how they are read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field

from layertap.images.decoding.formats import Format
from layertap.records import PROFILES, Profile
from layertap.store.paths import expanded
from layertap.taps.grammar import Spec, Tap, Taps

DEVICE = re.compile(r"auto|cpu|mps|cuda(:[0-9]{1,3})?")


def model_short(value: Any) -> Any:
    """`torchvision/alexnet` is `{type: torchvision, name: alexnet}`."""
    if isinstance(value, str) and "/" in value:
        kind, _, name = value.partition("/")
        return {"type": kind, "name": name}
    return value


def with_home(spec: Spec) -> Spec:
    """The part with `~` expanded in its parameters."""
    # When it is read, so that a manifest keeps the path that was used, whoever reads it.
    return spec.model_copy(update={"params": expanded(spec.params)})


def _taps_with_home(taps: tuple[Tap, ...]) -> tuple[Tap, ...]:
    return tuple(tap.model_copy(update={"reduce": tuple(map(with_home, tap.reduce))}) for tap in taps)


def _spec_list(value: Any) -> Any:
    return [value] if isinstance(value, (str, Mapping)) else value


def _upper_list(value: Any) -> Any:
    value = [value] if isinstance(value, str) else value
    return [item.upper() if isinstance(item, str) else item for item in value] if isinstance(value, list) else value


def _device(value: Any) -> Any:
    if isinstance(value, str) and not DEVICE.fullmatch(value):
        raise ValueError(f"must be auto, cpu, cuda, cuda:N or mps, not {value!r}")
    return value


def _profile(value: Any) -> Any:
    """The profile of that name; anything else unchanged."""
    if isinstance(value, str):
        if value not in PROFILES:
            raise ValueError(f"must be {' or '.join(PROFILES)}, or a mapping of switches, not {value!r}")
        return PROFILES[value]
    return value


Positive: TypeAlias = Annotated[int, Field(strict=True, ge=1, le=10**18)]
Threads: TypeAlias = Annotated[int, Field(strict=True, ge=1, le=1_024)]
PathSpec: TypeAlias = Annotated[Spec, AfterValidator(with_home)]
ModelSpec: TypeAlias = Annotated[PathSpec, BeforeValidator(model_short)]
Specs: TypeAlias = Annotated[tuple[PathSpec, ...], BeforeValidator(_spec_list)]
Formats: TypeAlias = Annotated[tuple[Format, ...], BeforeValidator(_upper_list)]
Mebibytes: TypeAlias = Annotated[int, Field(strict=True, ge=16, le=2**20)]
Seconds: TypeAlias = Annotated[float, Field(gt=0, le=86_400)]
Share: TypeAlias = Annotated[float, Field(strict=True, ge=0, le=1)]
TapsWithHome: TypeAlias = Annotated[Taps, AfterValidator(_taps_with_home)]
Device: TypeAlias = Annotated[str, BeforeValidator(_device)]
NamedProfile: TypeAlias = Annotated[Profile, BeforeValidator(_profile)]
