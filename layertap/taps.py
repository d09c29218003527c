"""TappedModel: find layers, attach hooks, keep and reduce what they give, stop early, detach."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from layertap.captures import Capture, Forward
from layertap.errors import TapError, did_you_mean
from layertap.grammar import ROOT, Tap, TapsLike, matcher, matches, parse_taps
from layertap.plugins import Plugins
from layertap.records import TapInfo


class _Stop(BaseException):
    """Ends a forward after the last tap. Not an `Exception`, so that a model's own `except Exception` lets it pass."""

    def __init__(self, owner: TappedModel) -> None:
        super().__init__("layertap stops the forward after its last tap")
        self.owner = owner


class _Listener:
    """One side of one module: counts its calls and offers each value to the taps on it."""

    def __init__(self, module: nn.Module, side: str) -> None:
        self.module = module
        self.side = side
        self.captures: list[Capture] = []
        self.calls = 0
        self.expected: int | None = None

    def hear(self, value: Any) -> None:
        call, self.calls = self.calls, self.calls + 1
        for capture in self.captures:
            capture.offer(call, value, self.expected)

    @property
    def is_done(self) -> bool:
        """Whether every tap here has what the first forward says it will get."""
        expected = self.expected
        if expected is None:
            return False
        return self.calls >= min(expected, max(capture.calls_needed(expected) for capture in self.captures))


class TappedModel(Mapping[str, Tensor]):
    """A module whose taps keep what their layers give; a mapping of tap names to the values of the latest forward.

    Hooks are attached on entering the `with` block and removed on leaving it, whatever happens. A value is what the
    layer returned at that call, before anything changed it, in memory of its own. The module's mode, gradients and
    other hooks are left alone.

    Args:
        module: any `nn.Module` that runs eagerly.
        taps: a tap string, a list, or a mapping of name to tap.
        detach: cut the values out of the autograd graph.
        early_stop: let `run()` stop after the last tap, once its first forward has counted the calls.
        about: facts about the model that reducers need, such as `layout` and `num_prefix_tokens`.
        plugins: where reducers are looked up; the installed ones by default.

    Raises:
        TapError: a tap that names no layer, or a module whose hooks would not fire.
    """

    def __init__(
        self,
        module: nn.Module,
        taps: TapsLike,
        *,
        detach: bool = True,
        early_stop: bool = True,
        about: Mapping[str, Any] | None = None,
        plugins: Plugins | None = None,
    ) -> None:
        _refuse_deaf(module)
        self.module = module
        self.silent: list[str] = []
        """Layers that a glob or pattern matched and that did not run in the first forward of `run()`."""
        self._early_stop = early_stop
        self._forward = Forward(detach=detach, about=dict(about or {}), plugins=plugins)
        self._captures: dict[str, Capture] = {}
        self._listeners: dict[tuple[int, str], _Listener] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._entry: object = None
        self._running = False
        for tap in parse_taps(taps):
            self._add(tap)

    def __enter__(self) -> Self:
        if self._handles:
            raise TapError("these taps are open already; nest two `layertap.tap(...)` blocks instead")
        try:
            self._attach()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Remove this object's hooks, and no others. Values stay readable. May be called twice."""
        while self._handles:
            self._handles.pop().remove()

    def __getitem__(self, name: str) -> Tensor:
        """The value of the latest forward. Raises `TapError` for a tap that did not fire, or not clearly."""
        capture = self._captures.get(name)
        if capture is not None and capture.tap.call != "all":
            return capture.value()
        known = self._values_by_name()
        if name in known:
            return known[name]()
        raise TapError(f"no tap is named {name!r}{did_you_mean(name, known)} (taps: {', '.join(known)})")

    def __contains__(self, name: object) -> bool:
        return name in self._values_by_name()

    def __iter__(self) -> Iterator[str]:
        return iter(self._values_by_name())

    def __len__(self) -> int:
        return len(self._values_by_name())

    def __repr__(self) -> str:
        state = "open" if self._handles else "closed"
        return f"<TappedModel of {type(self.module).__name__}, {state}: {', '.join(self._captures)}>"

    @property
    def infos(self) -> dict[str, TapInfo]:
        """Every tap as its first value showed it; taps that have not fired yet are left out."""
        return {name: c.info for c in self._captures.values() if c.info for name in c.names()}

    @property
    def batch_sizes(self) -> dict[str, int | None]:
        """The length of axis 0 of each tap's latest value as its layer gave it; None for a scalar."""
        return {name: c.shape[0] if c.shape else None for c in self._captures.values() for name in c.names()}

    def run(self, *args: Any, call: Callable[..., Any] | None = None, **kwargs: Any) -> dict[str, Tensor]:
        """One forward, and the value of every tap, in the order asked for.

        The first call runs the whole model and counts how often each layer is called; later ones stop after the last
        tap and hold the counts against it. `call` is another entry than the model itself, such as
        `model.encode_image`.

        Raises:
            TapError: a tap that did not fire, fired more than once with no call chosen, gave several tensors with none
                chosen, or fired otherwise than in the first forward.
        """
        if not self._handles:
            raise TapError("the taps are closed: call run() inside `with layertap.tap(...) as taps:`")
        entry = self.module if call is None else call
        if entry != self._entry:
            self._forget(entry)
        counting = all(listener.expected is None for listener in self._listeners.values())
        stopped = self._walk(entry, *args, **kwargs)
        if counting:
            self._count()
        self._compare(stopped)
        return {name: value() for name, value in self._values_by_name().items()}

    def _add(self, tap: Tap) -> None:
        for layer, module in find_layers(self.module, tap):
            found = tap.model_copy(update={"layer": layer}) if layer != tap.layer else tap
            name = found.label
            if name in self._captures:
                raise TapError(f"two taps are named {name!r}: give one another `name`")
            self._captures[name] = capture = Capture(found, name, self._forward, of_pattern=layer != tap.layer)
            listener = self._listeners.setdefault((id(module), tap.side), _Listener(module, tap.side))
            listener.captures.append(capture)

    def _attach(self) -> None:
        # The root's own hook is put in front of all others: a tap on the root's input comes after it.
        for listener in self._listeners.values():
            self._handles.append(self._hook(listener))
        self._handles.append(self.module.register_forward_pre_hook(self._on_root, prepend=True))

    def _hook(self, listener: _Listener) -> torch.utils.hooks.RemovableHandle:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._hear(listener, (args, kwargs))

        def after(module: nn.Module, args: Any, output: Any) -> None:
            self._hear(listener, output)

        if listener.side == "input":
            return listener.module.register_forward_pre_hook(before, prepend=True, with_kwargs=True)
        return listener.module.register_forward_hook(after, prepend=True)

    def _hear(self, listener: _Listener, value: Any) -> None:
        listener.hear(value)
        if not (self._running and self._early_stop and listener.is_done):
            return
        if all(other.is_done for other in self._listeners.values()):
            raise _Stop(self)

    def _on_root(self, module: nn.Module, args: Any) -> None:
        # run() has begun the forward itself: its entry may call the root more than once.
        if not self._running:
            self._begin()

    def _walk(self, entry: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
        """One forward; whether it was stopped after the last tap."""
        self._begin()
        self._running = True
        try:
            entry(*args, **kwargs)
        except _Stop as stop:
            if stop.owner is not self:
                raise
            return True
        finally:
            self._running = False
        return False

    def _begin(self) -> None:
        for listener in self._listeners.values():
            listener.calls = 0
            for capture in listener.captures:
                capture.forget()

    def _forget(self, entry: object) -> None:
        self._entry = entry
        for listener in self._listeners.values():
            listener.expected = None

    def _count(self) -> None:
        """Take the first forward of an entry as the measure for the later ones."""
        for listener in self._listeners.values():
            for capture in listener.captures:
                capture.check(self._hint)
        self.silent = [str(c.tap) for c in self._captures.values() if c.is_silent]
        for listener in self._listeners.values():
            listener.expected = listener.calls

    def _compare(self, stopped: bool) -> None:
        for listener in self._listeners.values():
            if listener.calls == listener.expected:
                continue
            if stopped and listener.is_done and listener.calls < (listener.expected or 0):
                continue
            raise TapError(
                f"layer {listener.captures[0].tap.layer!r} ran {listener.calls} times in this forward and "
                f"{listener.expected} times in the first one: a tap needs a layer that runs the same way every time"
            )

    def _values_by_name(self) -> dict[str, Callable[[], Tensor]]:
        return {name: value for c in self._captures.values() for name, value in c.values().items()}

    def _hint(self, layer: str) -> str:
        """Why a layer that exists did not run, where the reason is known."""
        parent, _, child = layer.rpartition(".")
        if child == "out_proj" and isinstance(self.module.get_submodule(parent), nn.MultiheadAttention):
            return f"nn.MultiheadAttention uses its weights without calling it; tap {parent!r} instead"
        ran = [c.tap.layer for c in self._captures.values() if c.calls]
        return f"taps that did: {', '.join(ran)}" if ran else "was the model itself called? else run(..., call=...)"


def tap(module: nn.Module, taps: TapsLike, *, detach: bool = True) -> TappedModel:
    """Listen to layers of any module: `with layertap.tap(model, ["classifier.5"]) as taps: model(x)`.

    Gives a `TappedModel`: a mapping of tap names to the tensors of the latest forward, in the order asked for, each in
    memory of its own. With `detach=False` they stay in the autograd graph. Raises `TapError`.
    """
    return TappedModel(module, taps, detach=detach)


def find_layers(root: nn.Module, tap: Tap) -> Sequence[tuple[str, nn.Module]]:
    """The layers of a tap, by path. An exact path wins over a pattern, so that odd module names stay reachable."""
    if tap.layer == ROOT:
        return [(ROOT, root)]
    every = dict(root.named_modules(remove_duplicate=False))
    del every[""]
    if tap.layer in every:
        return [(tap.layer, every[tap.layer])]
    if not tap.is_pattern:
        raise TapError(f"the model has no layer {tap.layer!r}{did_you_mean(tap.layer, every) or _inside(tap, every)}")
    pattern = matcher(tap.layer)
    found = [(p, m) for p, m in root.named_modules() if p and matches(pattern, tap.layer, p)]
    if not found:
        raise TapError(f"no layer matches {tap.layer!r}; the model has {', '.join(dict(root.named_children()))}")
    if len(found) > 1 and tap.name is not None:
        raise TapError(f"{tap.layer!r} matches {len(found)} layers, which cannot all be named {tap.name!r}")
    return found


def _inside(tap: Tap, every: Mapping[str, nn.Module]) -> str:
    """The children of the longest part of the path that does exist."""
    parent = tap.layer
    while parent and parent not in every:
        parent = parent.rpartition(".")[0]
    head = f"{parent}." if parent else ""
    children = [p for p in every if p.startswith(head) and "." not in p[len(head) :]]
    listed = ", ".join(children[:12]) + (", ..." if len(children) > 12 else "")
    return f"; {parent or 'the model'} has {listed}" if children else f"; {parent!r} has no layers inside"


def _refuse_deaf(root: nn.Module) -> None:
    """Refuse modules whose hooks would not fire, or would see a part of the batch."""
    for path, module in root.named_modules():
        where = f"layer {path!r}" if path else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise TapError(f"{where} is a ScriptModule, whose layers take no hooks: tap the eager model instead")
        if isinstance(module, nn.DataParallel):
            raise TapError(f"{where} is wrapped in DataParallel, which splits the batch: tap its `.module` instead")
        if hasattr(module, "_orig_mod"):
            raise TapError(f"{where} is compiled, and would pass over new hooks: tap its `._orig_mod` instead")
        if getattr(module, "_compiled_call_impl", None) is not None:
            raise TapError(f"{where} was compiled in place, and would pass over new hooks: tap it before `.compile()`")
