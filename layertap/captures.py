"""Capture: what one tap keeps of one forward, reduced, in memory of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from layertap.contracts import Reducer
from layertap.errors import TapError
from layertap.grammar import Tap
from layertap.plugins import Plugins, guard
from layertap.records import TapInfo

_AXES = {1: "N", 2: "NC", 3: "NLC"}


@dataclass(slots=True)
class Forward:
    """What all captures of a tapped model share."""

    detach: bool
    about: Mapping[str, Any]
    plugins: Plugins | None

    def reducer(self, name: str, params: Mapping[str, Any]) -> Reducer:
        if self.plugins is None:
            self.plugins = Plugins.load()
        cls = self.plugins.find("reducer", name).cls
        reducer = cls.of(**params)
        assert isinstance(reducer, Reducer)
        return reducer


class Capture:
    """One tap on one layer: takes its calls' values as they come, and says what is wrong with them when asked."""

    def __init__(self, tap: Tap, name: str, forward: Forward, *, of_pattern: bool) -> None:
        self.tap = tap
        self.name = name
        self.of_pattern = of_pattern
        self.calls = 0
        self.shape: tuple[int, ...] = ()
        self.info: TapInfo | None = None
        self._forward = forward
        self._reducers = [forward.reducer(spec.type, spec.params) for spec in tap.reduce]
        self._dtype: torch.dtype | None = getattr(torch, tap.dtype) if tap.dtype else None
        self._kept: dict[int, Tensor] = {}
        self._error: Exception | None = None

    def forget(self) -> None:
        """Make ready for the next forward: nothing of the last one may be read as the next one's."""
        self.calls = 0
        self._kept = {}
        self._error = None

    def offer(self, call: int, value: Any, expected: int | None) -> None:
        """Keep call number `call`'s value if this tap wants it."""
        self.calls = call + 1
        if self._error is not None or not self._wants(call, expected):
            return
        try:
            if self.tap.call in (None, "last"):
                self._kept.clear()
            if call and self.tap.call is None:
                return
            self._kept[call] = self._keep(self._choose(value))
        except Exception as error:
            # Raised when the value is read: inside the forward, the model could swallow it.
            self._error = error

    def calls_needed(self, expected: int) -> int:
        """After how many calls of the layer this tap has all it wants, given how many there will be."""
        if isinstance(self.tap.call, int):
            return self.tap.call + 1
        return expected

    def names(self) -> list[str]:
        """The names of its values: `:all` gives one a call."""
        if self.tap.call != "all":
            return [self.name]
        if self.tap.name is not None:
            return [f"{self.tap.name}:{call}" for call in range(self.calls)]
        return [str(self.tap.model_copy(update={"call": call})) for call in range(self.calls)]

    @property
    def is_silent(self) -> bool:
        """Whether a pattern brought it in and its layer did not run: it is passed over."""
        return self.of_pattern and not self.calls

    def values(self) -> dict[str, Callable[[], Tensor]]:
        """Its values by name, each to be called for; empty where it is silent."""
        if self.is_silent:
            return {}
        if self.tap.call == "all" and self.calls:
            return {name: partial(self.value, call) for call, name in enumerate(self.names())}
        return {self.name: self.value}

    def value(self, call: int | None = None) -> Tensor:
        """What it kept. Raises `TapError` where there is nothing, or nothing clear."""
        self.check(lambda layer: "was the model itself called since the block was entered?")
        return self._kept[call] if call is not None else next(iter(self._kept.values()))

    def check(self, hint: Callable[[str], str]) -> None:
        """Raise what is wrong with the values of the latest forward, if anything is."""
        layer = self.tap.layer
        if self._error is not None:
            raise self._error
        if not self.calls:
            if not self.of_pattern:
                raise TapError(f"layer {layer!r} did not run in the latest forward; {hint(layer)}")
            return
        if self.tap.call is None and self.calls > 1:
            choices = ", ".join(f"{layer}:{call}" for call in range(min(self.calls, 3)))
            raise TapError(
                f"layer {layer!r} runs {self.calls} times in one forward; choose {choices}"
                f"{' ...' if self.calls > 3 else ''}, {layer}:last or {layer}:all"
            )
        if not self._kept:
            last = self.calls - 1
            raise TapError(f"{str(self.tap)!r}: layer {layer!r} runs {self.calls} times: calls go from 0 to {last}")

    def _wants(self, call: int, expected: int | None) -> bool:
        wanted = self.tap.call
        if wanted == "last":
            return expected is None or call == expected - 1
        return wanted in (None, "all", call)

    def _choose(self, value: Any) -> Tensor:
        """The one tensor that the tap asks for out of what the layer returned or received."""
        keys = self.tap.select
        if self.tap.side == "input":
            args, kwargs = value
            if not keys:
                return _first((args, kwargs), self.tap)
            value = args if isinstance(keys[0], int) else kwargs
        for done, key in enumerate(keys):
            try:
                value = _item(value, key)
            except (LookupError, AttributeError):
                raise TapError(f"{_where(self.tap, done)} has no [{key}]{_choices(value)}") from None
        tensors = dict(tensors_of(value))
        if len(tensors) == 1:
            return next(iter(tensors.values()))
        if not tensors:
            raise TapError(f"{_where(self.tap, len(keys))} holds no tensor but {type(value).__name__}")
        raise TapError(f"{_where(self.tap, len(keys))} holds {len(tensors)} tensors{_choices(value)}")

    def _keep(self, tensor: Tensor) -> Tensor:
        """The tensor reduced and cast, sharing memory with nothing that anyone may change or hold on to."""
        # Inside inference mode a copy would be an inference tensor, which cannot train a probe later.
        with torch.inference_mode(False):
            source = tensor.detach() if self._forward.detach else tensor
            self._describe(source)
            kept = source
            for reducer in self._reducers:
                with guard(reducer):
                    kept = reducer(kept)
            if self._dtype is not None:
                kept = kept.to(self._dtype)
            return kept if _is_own(kept, tensor) else kept.clone()

    def _describe(self, tensor: Tensor) -> None:
        self.shape = tuple(tensor.shape)
        if self.info is not None:
            return
        layout = self._forward.about.get("layout", "NCHW")
        self.info = TapInfo(
            name=self.name,
            layer=self.tap.layer,
            side=self.tap.side,
            call=self.tap.call,
            select=self.tap.select,
            shape=self.shape[1:],
            dtype=str(tensor.dtype).removeprefix("torch."),
            axes=(layout or "") if len(self.shape) == 4 else _AXES.get(len(self.shape), ""),
            about=self._forward.about,
        )
        for reducer in self._reducers:
            with guard(reducer):
                reducer.bind(self.info)


def _is_own(kept: Tensor, original: Tensor) -> bool:
    """Whether `kept` has a storage of its own, and no larger one than it needs."""
    storage = kept.untyped_storage()
    if storage.data_ptr() == original.untyped_storage().data_ptr():
        return False
    return storage.nbytes() <= kept.numel() * kept.element_size()


def tensors_of(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in a nest of mappings, sequences and dataclasses, with the selector that leads to it."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from tensors_of(item, f"{path}[{key}]")
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from tensors_of(item, f"{path}[{index}]")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors_of(getattr(value, field.name), f"{path}[{field.name}]")


def _item(value: Any, key: int | str) -> Any:
    if isinstance(value, Mapping):
        if key in value or isinstance(key, str):
            return value[key]
        return list(value.values())[key]
    if isinstance(value, (tuple, list)) and isinstance(key, int):
        return value[key]
    if isinstance(key, str) and (
        key in getattr(value, "_fields", ()) or key in getattr(value, "__dataclass_fields__", ())
    ):
        return getattr(value, key)
    raise LookupError(key)


def _first(received: tuple[tuple[Any, ...], dict[str, Any]], tap: Tap) -> Tensor:
    for _, tensor in tensors_of(received):
        return tensor
    raise TapError(f"layer {tap.layer!r} receives no tensor")


def _where(tap: Tap, keys: int) -> str:
    return f"tap {str(tap.model_copy(update={'select': tap.select[:keys]}))!r}"


def _choices(value: Any) -> str:
    paths = [path for path, _ in tensors_of(value)]
    return f"; choose {', '.join(paths[:8])}{' ...' if len(paths) > 8 else ''}" if paths else ""
