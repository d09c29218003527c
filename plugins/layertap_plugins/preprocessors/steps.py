"""The torchvision transforms that a configuration may name, and the plain data that each takes.

In each of them one image gives one image, nothing is random, and no argument is code.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, get_args

from pydantic import Field, model_serializer, model_validator

import layertap

if TYPE_CHECKING:
    from pydantic import GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema

Side: TypeAlias = Annotated[int, Field(ge=1, le=8192)]
Border: TypeAlias = Annotated[int, Field(ge=0, le=8192)]
Sides: TypeAlias = Annotated[list[Side], Field(min_length=1, max_length=2)]
Borders: TypeAlias = Annotated[list[Border], Field(min_length=2, max_length=4)]
Floats: TypeAlias = Annotated[list[float], Field(min_length=1, max_length=3)]
Deviations: TypeAlias = Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1, max_length=3)]
Filter: TypeAlias = Literal["nearest", "nearest-exact", "bilinear", "bicubic", "lanczos", "box", "hamming"]


_CROPS = {"FiveCrop": "five", "TenCrop": "ten"}


class Arguments(layertap.Params):
    """The arguments of a transform. A value that is not a mapping is the first argument, as in `CenterCrop: 224`."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        first = next(iter(cls.model_fields), None)
        if isinstance(value, Mapping):
            for name in value:
                _refuse_unknown(str(name), cls.model_fields, "an argument")
        return {first: value} if first is not None and not isinstance(value, Mapping) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        named = handler.resolve_ref_schema(handler(core))
        return {"anyOf": [named, *list(named.get("properties", {}).values())[:1]]}


class Nothing(Arguments):
    """No arguments."""


class Cropping(Arguments):
    size: Side | Sides = Field(description="the side of the result, or its height and width, in pixels")


class Resizing(Arguments):
    size: Side | Sides | None = Field(
        description="the shorter side after resizing, or height and width, in pixels; null: the longer is `max_size`"
    )
    interpolation: Filter = Field("bilinear", description="the filter: all are available for images, fewer for tensors")
    max_size: Side | None = Field(None, description="the largest length of the longer side")
    antialias: bool = Field(True, description="whether tensors are smoothed before being made smaller")


class Padding(Arguments):
    padding: Border | Borders = Field(
        description="pixels on every side; left and right, top and bottom; or left, top, right, bottom"
    )
    fill: int | float | Floats = Field(0, description="the value that fills the border")
    padding_mode: Literal["constant", "edge", "reflect", "symmetric"] = Field(
        "constant", description="whether the border is filled or continues the image"
    )


class Channels(Arguments):
    num_output_channels: Literal[1, 3] = Field(1, description="one channel, or three identical ones")


class Dtype(Arguments):
    dtype: Literal["uint8", "float16", "bfloat16", "float32", "float64"] = Field(description="the name of the dtype")


class ScaledDtype(Dtype):
    scale: bool = Field(False, description="whether values are scaled to the usual range of the dtype")


class MeanAndStd(Arguments):
    mean: Floats = Field(description="subtracted from each channel")
    std: Deviations = Field(description="each channel is divided by it after the mean is subtracted")


class Step(layertap.Params):
    """One transform by its name: `{CenterCrop: 224}`, `{Resize: {size: 256}}`, or `ToImage` without arguments."""

    CenterCrop: Cropping | None = Field(None, description="crop the centre, padding with black if the image is smaller")
    ConvertImageDtype: Dtype | None = Field(None, description="ToDtype with `scale: true`")
    Grayscale: Channels | None = Field(None, description="convert colours to grey")
    Identity: Nothing | None = Field(None, description="nothing")
    Normalize: MeanAndStd | None = Field(None, description="subtract the mean, divide by the standard deviation")
    PILToTensor: Nothing | None = Field(None, description="convert to a tensor, with unchanged values")
    Pad: Padding | None = Field(None, description="add a border")
    RGB: Nothing | None = Field(None, description="convert to three channels")
    Resize: Resizing | None = Field(None, description="resize, keeping the aspect if only one side is given")
    ToDtype: ScaledDtype | None = Field(None, description="convert to another dtype")
    ToImage: Nothing | None = Field(None, description="convert to a tensor, with unchanged values")
    ToPureTensor: Nothing | None = Field(None, description="convert to a tensor without metadata")

    @property
    def name(self) -> str:
        """The name of the transform."""
        return next(iter(self.model_fields_set))

    @property
    def arguments(self) -> Arguments:
        """The arguments of the transform."""
        found: Arguments = getattr(self, self.name)
        return found

    @model_validator(mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {value: None}
        if not isinstance(value, Mapping) or len(value) != 1:
            raise ValueError("must be one transform by name, such as `ToImage` or `CenterCrop: 224`")
        ((name, arguments),) = value.items()
        if name == "ToTensor":
            raise ValueError("instead of 'ToTensor' write `ToImage` and `ToDtype: {dtype: float32, scale: true}`")
        if name in _CROPS:
            raise ValueError(
                f"{name!r} gives {_CROPS[name]} crops per image, and an output has one row per image; use `CenterCrop`"
            )
        _refuse_unknown(str(name), cls.model_fields, "a transform that can be named here")
        if arguments is None and (needed := cls._needed(name)):
            raise ValueError(f"{name} needs its {' and '.join(needed)}")
        return {name: {} if arguments is None else arguments}

    @model_serializer
    def _as_written(self) -> dict[str, Any]:
        return {self.name: self.arguments}

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        one = handler.resolve_ref_schema(handler(core))
        bare = []
        for name, schema in one["properties"].items():
            del schema["default"]
            if cls._needed(name):
                schema["anyOf"].remove({"type": "null"})
            else:
                bare.append(name)
        return {"anyOf": [{"enum": bare}, {**one, "minProperties": 1, "maxProperties": 1}]}

    @classmethod
    def _needed(cls, name: str) -> list[str]:
        """The required arguments of a transform."""
        arguments, _ = get_args(cls.model_fields[name].annotation)
        return [key for key, argument in arguments.model_fields.items() if argument.is_required()]


def _refuse_unknown(name: str, known: Iterable[str], what: str) -> None:
    known = list(known)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f" (known: {', '.join(known)})" if known else ""
        raise ValueError(f"{name!r} is not {what}{hint}")
