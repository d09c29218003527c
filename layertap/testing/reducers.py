"""What a reducer promises."""

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
# A processor may round the values at the end of an array otherwise than those in its middle.
_ROUNDING = 1e-5
_SHAPES = {"NC": (24,), "NLC": (17, 8), "NCHW": (8, 6, 6), "NHWC": (6, 6, 8)}


class ReducerSuite(Suite[Reducer]):
    """A reducer makes each image's value smaller by itself, and refuses with `TapError` what it cannot serve."""

    kind = Reducer

    def facts(self) -> Mapping[str, Any]:
        """What the model is taken to say about itself; override it for a reducer that needs to know more."""
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
                    f"values of the axes {axes} raise {type(error).__name__}: {error}",
                    "look at the tap in bind(), and raise layertap.TapError for one that cannot be served",
                )
        promise(served, f"no tap is served, of {', '.join(_SHAPES)}", "test it with parameters that suit one of them")

    def test_axis_0_stays_the_batch(self) -> None:
        for axes, values in self._served().items():
            reduced = self._reduced(axes, values)
            promise(isinstance(reduced, Tensor), f"it gives a {type(reduced).__name__}", "give a torch tensor")
            promise(
                reduced.shape[:1] == (_ROWS,),
                f"{_ROWS} images of the axes {axes} become {tuple(reduced.shape)}",
                "reduce the axes behind the first, and keep one row an image",
            )

    def test_activation_is_left_as_it_is(self) -> None:
        for axes, values in self._served().items():
            given = values.clone()
            self._reduced(axes, given)
            promise(
                torch.equal(given, values),
                "the activation is changed, and with it what the model computes next",
                "use no in-place operation (a name that ends in _) on what is given",
            )

    def test_batch_is_reduced_as_its_rows(self) -> None:
        for axes, values in self._served().items():
            reducer = self._bound(axes)
            whole = reducer(values.clone())
            parts = torch.cat([reducer(values[:2].clone()), reducer(values[2:].clone())])
            promise(
                whole.shape == parts.shape and torch.allclose(whole, parts, rtol=_ROUNDING, atol=_ROUNDING),
                f"2 and 3 images of the axes {axes} are reduced to other values than the 5 together",
                "use nothing of the other images: no mean over the batch, nothing kept from one call to the next",
            )

    def test_two_of_them_reduce_alike(self) -> None:
        for axes, values in self._served().items():
            promise(
                torch.equal(self._reduced(axes, values.clone()), self._reduced(axes, values.clone())),
                "two instances with the same parameters give different values",
                "draw nothing at random, or from a generator that a parameter seeds",
            )

    def _served(self) -> dict[str, Tensor]:
        """Values for the axes that the reducer takes."""
        found = {}
        for axes in _SHAPES:
            try:
                self._reduced(axes, _values(axes))
            except Exception:  # what it is, is another test's to tell
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
