"""The common parts of reducers: which axes are space, tokens or channels, where the patches begin, and errors."""

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
"""The axes that are space or tokens, by the names of all axes."""


class OnFloats(layertap.Reducer):
    """A reducer that computes with floats, in float32 at least, and names the layer in its errors."""

    name: ClassVar[str]
    layer: str

    def bind(self, tap: layertap.TapInfo) -> None:
        self.layer = tap.layer

    def refusal(self, why: str, cure: str) -> layertap.TapError:
        return layertap.TapError(f"{self.name}: the layer {self.layer!r} {why}; {cure}")

    def wide(self, activation: Tensor) -> torch.dtype:
        """The dtype to compute in. Raises `TapError` for values that are not floats."""
        import torch

        if not activation.is_floating_point():
            dtype = str(activation.dtype).removeprefix("torch.")
            raise self.refusal(f"gives {dtype}, but {self.name} is for floats", "keep it unreduced or `flatten` it")
        return torch.float64 if activation.dtype == torch.float64 else torch.float32

    def rows(self, activation: Tensor) -> Tensor:
        """The activation, if it is `(N, C)`. Raises `TapError` for anything else."""
        if activation.ndim != 2 or not activation.shape[1]:
            raise self.refusal(
                f"gives {_shape(activation)}, which is not one row of values per image",
                f"put `flatten` or a pool first, such as `reduce: [mean_pool, {self.name}]`",
            )
        return activation


class AxesParams(layertap.Params):
    """The parameters of a reducer that needs to know the axes."""

    axes: Literal["NCHW", "NHWC", "NLC"] | None = Field(
        None, description="the axes of the value, if the model does not state them or is wrong about this layer"
    )


class OnAxes(OnFloats):
    """A reducer over space or tokens; the axes are known from the user or the model."""

    Params = AxesParams
    params: AxesParams
    serves: ClassVar[tuple[str, ...]] = ("NCHW", "NHWC", "NLC", "NC")
    axes: str

    def bind(self, tap: layertap.TapInfo) -> None:
        """Raises `TapError` if the axes are unknown, or if this reducer does not support them."""
        super().bind(tap)
        self.axes = self.params.axes or tap.axes
        found = f"(one image's value has the shape {tap.shape})"
        if self.axes not in SPACE:
            example = {3: "`axes: NCHW` or `axes: NHWC`", 2: "`axes: NLC`"}.get(len(tap.shape))
            raise self.refusal(
                f"has unknown axes {found}, so it is not clear which are space or tokens",
                f"{f'set {example}, or ' if example else ''}use `reduce: [flatten]` to keep every value (attention "
                "weights have neither space nor channels)",
            )
        if self.axes not in self.serves:
            raise self.refusal(
                f"has the axes {self.axes} {found}, not {' or '.join(self.serves)}", "omit it for this layer"
            )

    def positions(self, activation: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """A view of the activation and which of its axes are space or tokens; `(N, C)` becomes one position.

        Raises `TapError` if its shape does not fit these axes.
        """
        if activation.ndim != len(self.axes):
            raise self.refusal(
                f"has the axes {self.axes}, but {self.name} receives {_shape(activation)}",
                "put it before the reducers that change the axes, or set `axes` to the axes at that point",
            )
        if 0 in activation.shape[1:]:
            raise self.refusal(f"gives {_shape(activation)}, which has no values", "omit it for this layer")
        if self.axes == "NC":
            return activation.unsqueeze(2), (2,)
        return activation, SPACE[self.axes]


class TokenParams(AxesParams):
    """The parameters of a reducer that needs to know where the patch tokens begin."""

    num_prefix_tokens: int | None = Field(
        None,
        ge=0,
        description="the number of class and register tokens before the patches, if the model does not state it or is "
        "wrong about this layer",
    )


class OnTokens(OnAxes):
    """A reducer that distinguishes patch tokens from the class and register tokens before them."""

    Params = TokenParams
    params: TokenParams
    prefix: int | None

    def bind(self, tap: layertap.TapInfo) -> None:
        """Raises `TapError` if the number of tokens before the patches is unknown: it is not guessed."""
        super().bind(tap)
        said = self.params.num_prefix_tokens
        self.prefix = tap.about.get("num_prefix_tokens") if said is None else said
        if self.axes == "NLC" and self.prefix is None:
            raise self.refusal(
                "has tokens, but the model does not state how many of them come before the patches", self._cure()
            )

    def patches(self, activation: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """As `positions`, without the tokens before the patches."""
        values, dims = self.positions(activation)
        return (values[:, self.first_patch(values) :] if self.axes == "NLC" else values), dims

    def first_patch(self, tokens: Tensor) -> int:
        """The number of tokens before the patches. Raises `TapError` if this layer cannot have that many."""
        assert self.prefix is not None
        count = tokens.shape[1]
        found = f"gives {count} token{'' if count == 1 else 's'}, but {self.prefix} should come before its patches"
        if count <= self.prefix:
            raise self.refusal(f"{found}: no patches would be left", self._cure())
        if self.params.num_prefix_tokens is None and _is_square(count) and not _is_square(count - self.prefix):
            # This is the output of a patch embedding, before the class token is prepended.
            raise self.refusal(f"{found}: these look like patches only", self._cure())
        return self.prefix

    def _cure(self) -> str:
        return f"set the number for this layer, such as {{type: {self.name}, num_prefix_tokens: 1}}"


def _is_square(number: int) -> bool:
    return math.isqrt(number) ** 2 == number


def _shape(activation: Tensor) -> str:
    return f"({', '.join(['N', *map(str, activation.shape[1:])])})"
