"""The values that one tap keeps of one forward, reduced, in memory of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pydantic
import torch
from torch import Tensor, nn

from layertap.contracts import Reducer
from layertap.errors import ConfigError, LayertapError, TapError, Where, combined, faults_of, set_within, within
from layertap.plugins import Plugins, guard
from layertap.records import TapInfo, dtype_name
from layertap.taps.axes import NHWC, Evidence, axes_of
from layertap.taps.choosing import choices, first, where
from layertap.taps.gradients import Gradients
from layertap.taps.grammar import Tap
from layertap.taps.layers import why_empty
from layertap.taps.nested import Received, item_of, tensors_of
from layertap.taps.reducing import reduced, without_autocast
from layertap.taps.windows import merged

Hint = Callable[[str], str]
"""Why a layer that exists may not have run, given its path."""


@dataclass(slots=True)
class Forward:
    """What all captures of a tapped model share, and the progress of the latest forward."""

    model: nn.Module
    detach: bool
    about: Mapping[str, Any]
    plugins: Plugins | None
    evidence: Evidence
    grad: bool = False
    began: bool = False
    finished: bool = False

    def reducer(self, name: str, params: Mapping[str, Any]) -> Reducer:
        if self.plugins is None:
            self.plugins = Plugins.load()
        cls = self.plugins.find("reducer", name).cls
        try:
            checked = cls.Params.model_validate(dict(params))
        except pydantic.ValidationError as error:
            faults = faults_of(error, params)
            raise combined([ConfigError(fault.what, where=fault.where) for fault in faults]) from error
        with guard(cls):
            reducer = cls(checked)
        assert isinstance(reducer, Reducer)
        return reducer


@dataclass(slots=True)
class _Way:
    """How one call's values are processed: reducers bound to its first value, and the shape of its latest value.

    Each call has its own, because the calls of one layer may differ in shape.
    """

    reducers: list[Reducer]
    info: TapInfo | None = None
    shape: tuple[int, ...] = ()


class Capture:
    """One tap on one layer: keeps the values of its calls, and says what is wrong with them when they are read."""

    def __init__(
        self, tap: Tap, name: str, layer: nn.Module, forward: Forward, *, pattern: Tap | None, where: Where = ()
    ) -> None:
        self.tap = tap
        self.where = where
        """Where its tap is among the taps asked for."""
        self.name = name
        self.pattern = pattern
        """The glob or regular expression that matched its layer."""
        self.calls = 0
        self.ran_in_method = False
        """Whether another method of the model ran the layer since the latest forward."""
        self.ran_elsewhere = False
        """Whether the layer ran in another thread or asyncio task since the latest forward began here."""
        self.layer = layer
        self.batch_axis = tap.batch_axis or 0
        """Which axis of its values is the batch; it is moved to the front."""
        self._forward = forward
        self._ways = {0: _Way(self._reducers())}
        self._dtype: torch.dtype | None = getattr(torch, tap.dtype) if tap.dtype else None
        self._kept: dict[int, Tensor] = {}
        self._error: Exception | None = None
        self.gradients = Gradients() if forward.grad else None

    def forget(self) -> None:
        """Drop everything of the latest forward: none of it may be read as a value of the next."""
        self.calls = 0
        self.ran_in_method = False
        self.ran_elsewhere = False
        self._kept = {}
        self._error = None
        if self.gradients is not None:
            self.gradients.forget()

    def offer(self, call: int, value: Any, expected: int | None) -> None:
        """Keep call number `call`'s value if this tap wants it; `expected` is how many there will be, if known."""
        self.calls = call + 1
        if not self._wants(call, expected):
            return
        if self.tap.call == "last":
            # An earlier call's value, or its fault, is not wanted.
            self._kept.clear()
            self._error = None
        if self.tap.call is None and call:
            self._kept.clear()
        elif self._error is None:
            try:
                self._kept[call] = self._keep(call, self._choose(value))
            except (LayertapError, torch.OutOfMemoryError) as error:
                # Raised when the value is read: inside the forward, the model could swallow it.
                self._error = error
                if isinstance(error, LayertapError):
                    set_within(error, self.where)
            except Exception as error:
                first = (str(error).splitlines() or [""])[0]
                what = f"tap {self.name!r}: its value cannot be kept: {type(error).__name__}: {first}"
                self._error = TapError(what, where=self.where)
                self._error.__cause__ = error

    def calls_needed(self, expected: int) -> int:
        """After how many calls of the layer this tap has everything it wants, given how many there will be."""
        if isinstance(self.tap.call, int):
            return self.tap.call + 1
        return expected

    def move_batch(self, axis: int) -> None:
        """Take this axis of its values as the batch from now on."""
        self.batch_axis = axis
        self._ways = {0: _Way(self._reducers())}

    @property
    def is_silent(self) -> bool:
        """Whether a pattern matched its layer and the layer did not run in a whole forward: it is left out."""
        return self.pattern is not None and self._forward.finished and not self.calls and not self.ran_in_method

    @property
    def infos(self) -> dict[str, TapInfo]:
        """What its values are, by name; empty where it has none."""
        ways = {self._name_of(call): self._ways[call].info for call in self._kept}
        return {name: info for name, info in ways.items() if info is not None}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of its values before reduction, batch included, by name."""
        return {self._name_of(call): self._ways[call].shape for call in self._kept}

    def values(self, hint: Hint) -> dict[str, Callable[[], Tensor]]:
        """Functions that return its values, by name; empty where it is silent."""
        if self.is_silent:
            return {}
        if self.tap.call == "all" and self.calls:
            return {self._name_of(call): partial(self.value, hint, call) for call in range(self.calls)}
        return {self.name: partial(self.value, hint)}

    def value(self, hint: Hint, call: int | None = None) -> Tensor:
        """The value it kept. Raises if there is no value, or more than one candidate."""
        fault = self.fault(hint)
        if fault is not None:
            raise fault
        return self._kept[call] if call is not None else next(iter(self._kept.values()))

    def gradient(self, hint: Hint, name: str) -> Tensor:
        """The gradient of the value of that name. Raises as `value` does, and `TapError` if it has none."""
        self.values(hint)[name]()
        if self.gradients is None:
            raise TapError("gradients are not kept: open the taps with `layertap.tap(..., grad=True)`")
        return self.gradients.of(next(call for call in self._kept if self._name_of(call) == name), name)

    def fault(self, hint: Hint) -> Exception | None:
        """What is wrong with the values of the latest forward, if anything is."""
        if self._error is not None and not self.ran_in_method:
            return self._error
        fault = self._fault(hint)
        if fault is not None:
            set_within(fault, self.where)
        return fault

    def _fault(self, hint: Hint) -> TapError | None:
        layer, forward = self.tap.layer, self._forward
        if self.ran_in_method:
            return TapError(
                f"layer {layer!r} ran in another method than the model's forward, where it is not known which calls "
                "belong together: use `taps.run(..., call=model.METHOD)`"
            )
        if not self.calls:
            if self.ran_elsewhere:
                return TapError(
                    f"layer {layer!r} ran only in another thread or asyncio task than these taps belong to: enter a "
                    "`layertap.tap(...)` there, or use `taps.run(...)` there"
                )
            if not forward.began:
                return TapError(
                    f"layer {layer!r} did not run in a forward: the model itself has not been called since the block "
                    "was entered; use `taps.run(..., call=...)` for another entry"
                )
            return TapError(f"layer {layer!r} did not run in the latest forward; {hint(layer)}")
        if self.tap.call is None and self.calls > 1:
            return TapError(f"layer {layer!r} runs {self.calls} times in one forward; choose {self._calls()}")
        if not forward.finished and not isinstance(self.tap.call, int):
            return TapError(
                f"layer {layer!r}: the latest forward did not finish, so the number of its calls is not known; "
                f"only a numbered call can be read, such as {self._string(0)}"
            )
        return self._absence()

    def _absence(self) -> TapError | None:
        """What is missing where a call that was asked for has no value."""
        if self._kept:
            return None
        calls, last = self.calls, self.calls - 1
        return TapError(f"{str(self.tap)!r}: layer {self.tap.layer!r} runs {calls} times: its calls are 0 to {last}")

    def _wants(self, call: int, expected: int | None) -> bool:
        wanted = self.tap.call
        if wanted == "last":
            return expected is None or call == expected - 1
        return wanted in (None, "all", call)

    def _string(self, call: int | str) -> str:
        return str(self.tap.model_copy(update={"call": call}))

    def _calls(self) -> str:
        numbered = ", ".join(self._string(call) for call in range(min(self.calls, 3)))
        choices = f"{numbered}{' ...' if self.calls > 3 else ''}, {self._string('last')} or {self._string('all')}"
        if self.pattern is None:
            return choices
        return f"{choices}; for all layers that match, {self.pattern.model_copy(update={'call': 'all'})}"

    def _name_of(self, call: int) -> str:
        """The name of one call's value: `:all` gives each its own."""
        if self.tap.call != "all":
            return self.name
        return self._string(call) if self.tap.name is None else f"{self.tap.name}:{call}"

    def _choose(self, value: Any) -> Tensor:
        """The one tensor that the tap selects from what the layer returned or received."""
        keys = self.tap.select
        if self.tap.side == "input":
            args, kwargs = value
            value = Received({**dict(enumerate(args)), **kwargs})
            if not keys:
                return first(value, self.tap)
        for done, key in enumerate(keys):
            try:
                value = item_of(value, key)
            except (LookupError, AttributeError):
                cure = why_empty(self._forward.model, self.layer, keys) or choices(value, self.tap, done)
                raise TapError(f"{where(self.tap, done)} has no [{key}]{cure}") from None
        tensors = [tensor for _, tensor in tensors_of(value)]
        if len(tensors) == 1:
            return tensors[0]
        if not tensors:
            cure = why_empty(self._forward.model, self.layer, keys)
            raise TapError(f"{where(self.tap, len(keys))} holds no tensor but {type(value).__name__}{cure}")
        found = choices(value, self.tap, len(keys))
        raise TapError(f"{where(self.tap, len(keys))} holds {len(tensors)} tensors{found}")

    def _keep(self, call: int, tensor: Tensor) -> Tensor:
        """The tensor, reduced and cast, in memory that nothing else changes or keeps."""
        if tensor.is_nested:
            raise TapError(f"tap {self.name!r}: its value is a nested tensor, whose rows differ in shape")
        grad = torch.is_grad_enabled() and not self._forward.detach
        if self.gradients is not None:
            self.gradients.watch(call, tensor)
        # Inside inference mode a copy would be an inference tensor, which cannot train a probe later. Leaving that
        # mode turns gradients on, even inside no_grad.
        with torch.inference_mode(False), torch.set_grad_enabled(grad):
            kept = self._by_image(tensor.detach() if self._forward.detach else tensor)
            way = self._way(call, kept)
            for number, reducer in enumerate(way.reducers):
                with within("reduce", number), guard(reducer), without_autocast(kept.device.type):
                    kept = reduced(reducer, kept)
            cast = self._cast(kept)
            # A cast is a copy that nothing else holds. Anything else may be a view of the layer's memory, or a buffer
            # that a reducer uses again; clone() also frees a storage of which only a part is needed.
            return cast if cast is not kept else kept.clone()

    def _by_image(self, value: Tensor) -> Tensor:
        """The value with one row per image."""
        if self.tap.windows is not None:
            return merged(value, self._forward.model, self.tap.layer)
        axis = self.batch_axis
        if axis >= max(value.ndim, 1):
            raise TapError(f"tap {self.name!r}: its value has the shape {tuple(value.shape)}, and no axis {axis}")
        return value.movedim(axis, 0) if axis else value

    def _cast(self, kept: Tensor) -> Tensor:
        if self._dtype is None:
            return kept
        if kept.is_complex():
            raise TapError(
                f"tap {self.name!r}: its value is complex, and {self.tap.dtype} would drop its imaginary part"
            )
        return kept.to(self._dtype)

    def _way(self, call: int, tensor: Tensor) -> _Way:
        way = self._ways.get(call)
        if way is None:
            way = self._ways[call] = _Way(self._reducers())
        way.shape = tuple(tensor.shape)
        if way.info is None:
            info = self._described(call, tensor)
            for number, reducer in enumerate(way.reducers):
                with within("reduce", number), guard(reducer):
                    reducer.bind(info)
            way.info = info
        return way

    def _reducers(self) -> list[Reducer]:
        reducers: list[Reducer] = []
        for number, spec in enumerate(self.tap.reduce):
            with within("reduce", number):
                reducers.append(self._forward.reducer(spec.type, spec.params))
        return reducers

    def _described(self, call: int, tensor: Tensor) -> TapInfo:
        forward = self._forward
        return TapInfo(
            name=self._name_of(call),
            layer=self.tap.layer,
            side=self.tap.side,
            call=call if self.tap.call == "all" else self.tap.call,
            select=self.tap.select,
            shape=tuple(tensor.shape[1:]),
            dtype=dtype_name(tensor),
            axes=NHWC if self.tap.windows is not None else axes_of(tensor, self.layer, forward.evidence, forward.about),
            about=forward.about,
            reduce=tuple(spec.type for spec in self.tap.reduce),
            op=self.tap.op,
            index=self.tap.index,
            batch_axis=self.batch_axis,
        )
