"""What reducers share: which axes are space, tokens or channels, where the patches begin, and how to refuse."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

import layertap

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SPACE: Mapping[str, tuple[int, ...]] = {"NCHW": (2, 3), "NHWC": (1, 2), "NLC": (1,), "NC": ()}
"""Which axes are space or tokens, by the names of all."""


class OnFloats(layertap.Reducer):
    """A reducer that computes with floats, in float32 at least, and names the layer in what it refuses."""

    name: ClassVar[str]
    layer: str

    def bind(self, tap: layertap.TapInfo) -> None:
        self.layer = tap.layer

    def refusal(self, why: str, way_out: str) -> layertap.TapError:
        return layertap.TapError(f"{self.name}: the layer {self.layer!r} {why}; {way_out}")

    def wide(self, activation: Tensor) -> torch.dtype:
        """The dtype to compute in. Raises `TapError` for values that are not floats."""
        import torch

        if not activation.is_floating_point():
            dtype = str(activation.dtype).removeprefix("torch.")
            raise self.refusal(f"gives {dtype}, and {self.name} is for floats", "keep it as it is or `flatten` it")
        return torch.float64 if activation.dtype == torch.float64 else torch.float32

    def rows(self, activation: Tensor) -> Tensor:
        """The activation, if it is `(N, C)`. Raises `TapError` for anything else."""
        if activation.ndim != 2 or not activation.shape[1]:
            raise self.refusal(
                f"brings {_shape(activation)}, which is not one row of values an image",
                f"put `flatten` or a pool first, such as `reduce: [mean_pool, {self.name}]`",
            )
        return activation


class AxesParams(layertap.Params):
    """The parameters of a reducer that has to know the axes."""

    axes: Literal["NCHW", "NHWC", "NLC"] | None = Field(
        None, description="what the axes of the value are, where the model does not say or is wrong about this layer"
    )


class OnAxes(OnFloats):
    """A reducer over space or tokens, whose axes the user or the model knows."""

    Params = AxesParams
    params: AxesParams
    serves: ClassVar[tuple[str, ...]] = ("NCHW", "NHWC", "NLC", "NC")
    axes: str

    def bind(self, tap: layertap.TapInfo) -> None:
        """Raises `TapError` where nobody knows the axes, or this reducer has no use for them."""
        super().bind(tap)
        self.axes = self.params.axes or tap.axes
        found = f"(one image's value has the shape {tap.shape})"
        if self.axes not in SPACE:
            example = {3: "`axes: NCHW` or `axes: NHWC`", 2: "`axes: NLC`"}.get(len(tap.shape))
            raise self.refusal(
                f"has axes that nobody has named {found}, so which are space or tokens is not known",
                f"{f'say {example}, or ' if example else ''}use `reduce: [flatten]` to keep all of it",
            )
        if self.axes not in self.serves:
            raise self.refusal(
                f"has the axes {self.axes} {found}, not {' or '.join(self.serves)}", "leave it out there"
            )

    def positions(self, activation: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """A view of the activation and which of its axes are space or tokens; `(N, C)` becomes one position.

        Raises `TapError` where its shape cannot have these axes.
        """
        if activation.ndim != len(self.axes):
            raise self.refusal(
                f"has the axes {self.axes}, and what {self.name} is given is {_shape(activation)}",
                "put it before the reducers that change the axes, or say with `axes` what they are there",
            )
        if 0 in activation.shape[1:]:
            raise self.refusal(f"brings {_shape(activation)}, which holds no value", "leave it out there")
        if self.axes == "NC":
            return activation.unsqueeze(2), (2,)
        return activation, SPACE[self.axes]


class TokenParams(AxesParams):
    """The parameters of a reducer that has to know where the patch tokens begin."""

    num_prefix_tokens: int | None = Field(
        None,
        ge=0,
        description="class and register tokens before the patches, where the model does not say or is wrong about this "
        "layer",
    )


class OnTokens(OnAxes):
    """A reducer that tells patch tokens from the class and register tokens before them."""

    Params = TokenParams
    params: TokenParams
    prefix: int | None

    def bind(self, tap: layertap.TapInfo) -> None:
        """Raises `TapError` where nobody knows how many tokens come before the patches: that is not guessed."""
        super().bind(tap)
        said = self.params.num_prefix_tokens
        self.prefix = tap.about.get("num_prefix_tokens") if said is None else said
        if self.axes == "NLC" and self.prefix is None:
            raise self.refusal(
                "has tokens, and how many come before the patches is not known: the model does not say", self._say()
            )

    def patches(self, activation: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """As `positions`, without the tokens before the patches."""
        values, dims = self.positions(activation)
        return (values[:, self.first_patch(values) :] if self.axes == "NLC" else values), dims

    def first_patch(self, tokens: Tensor) -> int:
        """How many tokens come before the patches. Raises `TapError` where this layer cannot have them."""
        assert self.prefix is not None
        count = tokens.shape[1]
        found = f"brings {count} token{'' if count == 1 else 's'}, and {self.prefix} should come before its patches"
        if count <= self.prefix:
            raise self.refusal(f"{found}: none would be left", self._say())
        if self.params.num_prefix_tokens is None and _is_square(count) and not _is_square(count - self.prefix):
            # What a patch embedding gives, before the class token is put in front of it.
            raise self.refusal(f"{found}: these look like the patches alone", self._say())
        return self.prefix

    def _say(self) -> str:
        return f"say how many this layer has, such as {{type: {self.name}, num_prefix_tokens: 1}}"


def _is_square(number: int) -> bool:
    return math.isqrt(number) ** 2 == number


def _shape(activation: Tensor) -> str:
    return f"({', '.join(['N', *map(str, activation.shape[1:])])})"
