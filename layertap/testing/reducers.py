"""The promises of a reducer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from layertap.contracts import Reducer
from layertap.errors import LayertapError
from layertap.records import TapInfo
from layertap.testing.promises import Suite, promise

_ROWS = 5
# A processor may round the values at the end of an array differently from those in its middle.
_ROUNDING = 1e-5
_SHAPES = {"NC": (24,), "NLC": (17, 8), "NCHW": (8, 6, 6), "NHWC": (6, 6, 8), "NHQK": (2, 17, 17)}


class ReducerSuite(Suite[Reducer]):
    """A reducer reduces each image's value on its own, and refuses with `TapError` values that it cannot handle."""

    kind = Reducer

    def facts(self) -> Mapping[str, Any]:
        """The facts that the model states about itself; override this for a reducer that needs more of them."""
        return {"num_prefix_tokens": 1}

    def test_refuses_only_with_a_layertap_error(self) -> None:
        served = []
        for axes in _SHAPES:
            try:
                self._reduced(axes, _values(axes))
                served.append(axes)
            except LayertapError:
                continue
            except Exception as error:
                promise(
                    False,
                    f"values with the axes {axes} raise {type(error).__name__}: {error}",
                    "check the tap in bind(), and raise layertap.TapError for one that is not supported",
                )
        promise(
            served,
            f"none of the axes {', '.join(_SHAPES)} is supported",
            "test it with parameters that suit one of them",
        )

    def test_axis_0_stays_the_batch(self) -> None:
        for axes, values in self._served().items():
            reduced = self._reduced(axes, values)
            promise(isinstance(reduced, Tensor), f"it gives a {type(reduced).__name__}", "return a torch tensor")
            promise(
                reduced.shape[:1] == (_ROWS,),
                f"{_ROWS} images with the axes {axes} become {tuple(reduced.shape)}",
                "reduce the axes after the first, and keep one row per image",
            )

    def test_activation_is_left_as_it_is(self) -> None:
        for axes, values in self._served().items():
            given = values.clone()
            self._reduced(axes, given)
            promise(
                torch.equal(given, values),
                "the activation is changed, and with it the rest of the model's computation",
                "do not use in-place operations (names that end in _) on the argument",
            )

    def test_batch_is_reduced_as_its_rows(self) -> None:
        for axes, values in self._served().items():
            reducer = self._bound(axes)
            whole = reducer(values.clone())
            parts = torch.cat([reducer(values[:2].clone()), reducer(values[2:].clone())])
            promise(
                whole.shape == parts.shape and torch.allclose(whole, parts, rtol=_ROUNDING, atol=_ROUNDING),
                f"2 and 3 images with the axes {axes} are reduced to different values from the 5 together",
                "use nothing from other images: no mean over the batch, and no state from earlier calls",
            )

    def test_two_of_them_reduce_alike(self) -> None:
        for axes, values in self._served().items():
            promise(
                torch.equal(self._reduced(axes, values.clone()), self._reduced(axes, values.clone())),
                "two instances with the same parameters give different values",
                "use no random numbers, or only from a generator that a parameter seeds",
            )

    def _served(self) -> dict[str, Tensor]:
        """Values for the axes that the reducer supports."""
        found = {}
        for axes in _SHAPES:
            try:
                self._reduced(axes, _values(axes))
            except Exception:  # another test reports it
                continue
            found[axes] = _values(axes)
        return found

    def _bound(self, axes: str) -> Reducer:
        reducer = self.plugin()
        reducer.bind(TapInfo("tap", "layer", "output", None, (), _SHAPES[axes], "float32", axes, self.facts()))
        return reducer

    def _reduced(self, axes: str, values: Tensor) -> Tensor:
        with torch.no_grad():
            return self._bound(axes)(values)


def _values(axes: str) -> Tensor:
    return torch.randn((_ROWS, *_SHAPES[axes]), generator=torch.Generator().manual_seed(0))
