"""TappedModel: finds layers, attaches hooks, keeps their values, stops early, and removes the hooks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from layertap.errors import TapError, Where, did_you_mean
from layertap.plugins import Plugins
from layertap.records import TapInfo
from layertap.taps import hooks
from layertap.taps.axes import Evidence
from layertap.taps.capture import Capture, Forward
from layertap.taps.captures import find_captures, values_by_name
from layertap.taps.faults import hint, refuse_faults, refuse_idle_patterns
from layertap.taps.grammar import Tap, TapsLike, parse_taps, where_of
from layertap.taps.hooks import ATTACHING, Hook, refuse_unhookable
from layertap.taps.listener import Listener
from layertap.taps.listeners import listeners_of, refuse_differences
from layertap.taps.operations.listener import OperationListener
from layertap.taps.operations.mode import Operations, drop_dead
from layertap.taps.place import Place
from layertap.taps.stop import Stop, is_stop_of


class TappedModel(Mapping[str, Tensor]):
    """A module whose taps keep what their layers give; a mapping of tap names to the values of the latest forward.

    Hooks are attached on entering the `with` block and removed on leaving it, whatever happens. A value is what the
    layer returned at that call, or was called with, before anything changed it, in memory of its own. The module's
    mode, gradients and other hooks are left alone. A forward is one call of the module itself, or of what `run()` is
    given.

    The block belongs to the thread, and within it to the asyncio task, that entered it or that called `run()` last:
    forwards and values in others are separate. In several threads, enter a block in each or use what `run()` returns.

    Args:
        module: any `nn.Module` that runs eagerly.
        taps: a tap string, a list, or a mapping of name to tap.
        detach: cut the values out of the autograd graph.
        grad: keep the gradients of the layers' own values, for `gradient()`.
        early_stop: let `run()` stop after the last tap, as soon as its first forward has counted the calls.
        about: facts about the model that reducers need, such as `layout` and `num_prefix_tokens`.
        plugins: where reducers are looked up; the installed ones by default.

    Raises:
        TapError: a tap that names no layer, or a module whose hooks would not run.
    """

    def __init__(
        self,
        module: nn.Module,
        taps: TapsLike,
        *,
        detach: bool = True,
        grad: bool = False,
        early_stop: bool = True,
        about: Mapping[str, Any] | None = None,
        plugins: Plugins | None = None,
    ) -> None:
        refuse_unhookable(module)
        self.module = module
        self.silent: list[str] = []
        """Taps of layers that a glob or pattern matched and that did not run in the first forward of `run()`."""
        self.last: tuple[Tap, int] | None = None
        """The last tap to get a value, and the call of its layer: later forwards of `run()` stop there."""
        self._early_stop = early_stop
        self._forward = Forward(module, detach, dict(about or {}), plugins, Evidence(module), grad)
        asked = [(tap, where_of(taps, number, tap)) for number, tap in enumerate(parse_taps(taps))]
        self._captures = find_captures(module, asked, self._forward)
        self._listeners = listeners_of(self._captures.values(), self._is_counted, self._received)
        self._operations = Operations()
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._entry: object = None
        self._place: Place | None = None
        self._lock = threading.RLock()
        self._in_order: list[Listener] = []
        self._waiting = 0
        self._running = False
        self._calls_of_root: list[FrameType] = []

    def __enter__(self) -> Self:
        if self._handles:
            raise TapError("these taps are already open; nest two `layertap.tap(...)` blocks instead")
        self._place = Place()
        self._begin()
        self._forget(None)
        self._forward.began = False
        try:
            with ATTACHING:
                self._attach()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Remove this object's hooks and no others, and free gradients. Values stay readable. May be called twice."""
        self._calls_of_root.clear()
        self._operations.stop()
        self._forward.evidence.detach()
        while self._handles:
            self._handles.pop().remove()
        for capture in self._captures.values():
            if capture.gradients is not None:
                capture.gradients.forget()

    def __getitem__(self, name: str) -> Tensor:
        """The value of the latest forward. Raises `TapError` for a tap without a value, or with several candidates."""
        if self._handles and not self._is_here():
            raise TapError(
                "these taps are in use in another thread or asyncio task: read them there, or use what run() returned"
            )
        capture = self._captures.get(name)
        if capture is not None and capture.tap.call != "all":
            return capture.value(self._hint)
        known = self._values_by_name()
        if name in known:
            return known[name]()
        raise TapError(f"no tap is named {name!r}{did_you_mean(str(name), known)} (taps: {', '.join(known)})")

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
    def captures(self) -> list[Capture]:
        """What keeps the values, one for each layer of each tap, in the order asked for."""
        return list(self._captures.values())

    def gradient(self, name: str) -> Tensor:
        """What the latest backward gave the layer's value of the latest forward: its shape is that before reducers.

        It is in memory of its own, and freed with the block. Raises `TapError` if the value has none.
        """
        self[name]
        found = (c for c in self._captures.values() if name in c.values(self._hint))
        return next(found).gradient(self._hint, name)

    @property
    def infos(self) -> dict[str, TapInfo]:
        """What each value of the latest forward is, as the first one under its name showed it."""
        return {name: info for capture in self._captures.values() for name, info in capture.infos.items()}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The whole shape of each value of the latest forward as its layer gave it, before reducers."""
        return {name: shape for capture in self._captures.values() for name, shape in capture.shapes.items()}

    @property
    def places(self) -> dict[str, Where]:
        """Where the tap of each value is among the taps asked for, such as `("taps", 1)`."""
        return {name: capture.where for capture in self.captures for name in capture.values(self._hint)}

    def run(self, *args: Any, call: Callable[..., Any] | None = None, **kwargs: Any) -> dict[str, Tensor]:
        """One forward, and the value of every tap, in the order asked for.

        The first call runs the whole model and counts the calls of each layer; later ones stop after the last
        tap and compare their counts with it. `call` is an entry other than the model itself, such as
        `model.encode_image`.

        It may be called in any thread, and waits while another thread is in it.

        Raises:
            TapError: a tap whose layer did not run, ran more than once with no call chosen, gave several tensors with
                none chosen, or ran differently from the first forward.
        """
        if not self._handles:
            raise TapError("the taps are closed: call run() inside `with layertap.tap(...) as taps:`")
        entry = self.module if call is None else call
        with self._lock:
            self._take_over()
            if entry != self._entry:
                self._forget(entry)
            counting = all(listener.expected is None for listener in self._listeners)
            stopped = self._walk(entry, *args, **kwargs)
            if counting:
                self._count()
            refuse_differences(self._listeners, stopped=stopped)
            return {name: value() for name, value in self._values_by_name().items()}

    def _attach(self) -> None:
        # Each is put before all others. So the end of a forward comes after the root's own taps and before other
        # hooks, and its beginning comes before a tap on the root's input.
        root = self.module
        self._handles.append(root.register_forward_hook(Hook(root, self._on_root_done, self._is_here), prepend=True))
        watchers = [listener for listener in self._listeners if isinstance(listener, OperationListener)]
        for listener in self._listeners[: len(self._listeners) - len(watchers)]:
            self._handles.append(listener.attach(partial(self._receive, listener), partial(self._is_here, listener)))
        self._operations.attach(watchers, self._is_here, self._handles)
        self._handles.append(root.register_forward_pre_hook(Hook(root, self._on_root, self._is_here), prepend=True))
        self._forward.evidence.attach(self._is_here)

    def _is_here(self, listener: Listener | None = None) -> bool:
        """Whether the caller is where these taps belong; a call of `listener` elsewhere is recorded."""
        if self._place is not None and self._place.is_here():
            return True
        for capture in listener.captures if listener is not None else ():
            capture.ran_elsewhere = True
        return False

    def _take_over(self) -> None:
        """Make the caller's place the place of these taps."""
        if self._running:
            raise TapError("run() was called inside a run() of the same taps; nest two `layertap.tap(...)` blocks")
        if not self._is_here():
            if any(hooks.is_running_anywhere(call) for call in self._calls_of_root):
                raise TapError("a forward of these taps runs in another thread: give each thread a `layertap.tap(...)`")
            self._place = Place()

    def _receive(self, listener: Listener, value: Any) -> None:
        if self._is_counted(listener):
            listener.receive(value)
            self._received(listener)

    def _is_counted(self, listener: Listener) -> bool:
        """Whether a call of the listener's layer that happens now is part of a forward."""
        if self._running or self._calls_of_root:
            return True
        # A call of a single layer is not a forward; a call inside a method of the model may be part of one.
        if hooks.is_method_running(self.module):
            for capture in listener.captures:
                capture.ran_in_method = True
        return False

    def _received(self, listener: Listener) -> None:
        """Stop the forward if everything has been received now."""
        if self._running and listener.expected is None:
            self._in_order.append(listener)
        elif self._running:
            self._waiting -= listener.calls == listener.needed
            if self._early_stop and not self._waiting:
                raise Stop(self)

    def _on_root(self, args: Any) -> None:
        # run() has begun the forward itself: its entry may call the root more than once, or never.
        if self._running or not self._lock.acquire(blocking=False):
            return
        try:
            # Another thread may have called run() since the hook looked.
            if not self._is_here():
                return
            self._drop_dead_calls()
            if not self._calls_of_root:
                self._begin()
            self._calls_of_root.append(hooks.calling_frame())
        finally:
            self._lock.release()

    def _on_root_done(self, args: Any, output: Any) -> None:
        if self._running:
            return
        self._drop_dead_calls()
        del self._calls_of_root[-1:]
        self._forward.finished = not self._calls_of_root
        if self._forward.finished:
            self._forward.evidence.detach()

    def _drop_dead_calls(self) -> None:
        """Forget calls of the root that ended in an exception, after which no hook runs."""
        while self._calls_of_root and not hooks.is_running(self._calls_of_root[-1]):
            self._calls_of_root.pop()

    def _walk(self, entry: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
        """One forward; whether it was stopped after the last tap."""
        self._begin(compared=True)
        self._running = True
        try:
            entry(*args, **kwargs)
            stopped = False
        except (Stop, Exception) as error:
            if not is_stop_of(self, error):
                raise
            drop_dead()
            stopped = True
        finally:
            self._running = False
            self._operations.stop()
        self._forward.finished = True
        self._forward.evidence.detach()
        return stopped

    def _begin(self, *, compared: bool = False) -> None:
        self._forward.began, self._forward.finished = True, False
        self._calls_of_root.clear()
        self._in_order.clear()
        self._operations.stop()
        self._waiting = self._count_waiting()
        for listener in self._listeners:
            # Only run() compares the later forwards with the counts of the first.
            listener.begin(compared=compared)

    def _forget(self, entry: object) -> None:
        self._entry = entry
        for listener in self._listeners:
            listener.expected = None

    def _count(self) -> None:
        """Keep the counts of the first forward of an entry, for comparison with later ones."""
        refuse_faults(self._captures.values(), self._hint)
        refuse_idle_patterns(self._captures.values(), self._hint)
        self.silent = [c.name for c in self._captures.values() if c.is_silent]
        for listener in self._listeners:
            listener.expect()
        # Replay the same calls up to the point where later forwards stop.
        waiting = self._count_waiting()
        for listener in self._in_order:
            if not waiting:
                break
            listener.expected_at_stop += 1
            waiting -= listener.expected_at_stop == listener.needed
            self.last = listener.last()

    def _count_waiting(self) -> int:
        """How many listeners wait for a value at the beginning of a forward whose calls are known."""
        return sum(1 for listener in self._listeners if listener.needed)

    def _values_by_name(self) -> dict[str, Callable[[], Tensor]]:
        return values_by_name(self._captures.values(), self._hint)

    def _hint(self, layer: str) -> str:
        return hint(self.module, layer, self._captures.values())


def tap(module: nn.Module, taps: TapsLike, *, detach: bool = True, grad: bool = False) -> TappedModel:
    """Keep what layers of any module give: `with layertap.tap(model, ["classifier.5"]) as taps: model(x)`.

    Returns a `TappedModel`: a mapping of tap names to the tensors of the latest forward, in the order asked for, each
    in memory of its own. With `detach=False` they stay in the autograd graph. With `grad=True`, after a backward,
    `taps.gradient("classifier.5")` is the gradient of what the layer gave. Raises `TapError`.
    """
    return TappedModel(module, taps, detach=detach, grad=grad)
