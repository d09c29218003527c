"""A function that a layer calls: its name, and what it was given and returned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(slots=True)
class Operation:
    """One operation that a layer itself runs: run number `index` of this name in call number `call` of the layer.

    `is_inner` is one of a softmax layer directly inside it, which is of interest as its attention only.
    """

    name: str
    index: int
    call: int
    func: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    is_inner: bool = False
    result: Any = None

    @property
    def value(self) -> Any:
        """What it made: its result, or what it wrote into."""
        return self.args[0] if self.result is None else self.result

    @property
    def makes_tensors(self) -> bool:
        """Whether it is an operation at all: a size or a flag is not a value of a forward."""
        if isinstance(self.result, Tensor):
            return True
        if isinstance(self.result, (tuple, list)):
            return any(isinstance(part, Tensor) for part in self.result)
        return self.result is None and self.name == "setitem"


def name_of(func: Callable[..., Any]) -> str:
    """A function's name without the underscores around it and without an overload: `relu_` is `relu`."""
    name: str = getattr(func, "__name__", "")
    if name == "__get__":
        # An attribute that is a tensor, such as `mT`.
        name = getattr(getattr(func, "__self__", None), "__name__", "")
    return name.partition(".")[0].strip("_")


def listed(names: Sequence[str], most: int = 12) -> str:
    """Operations by name, numbered where a name is there more than once."""
    seen: dict[str, int] = {}
    numbered: list[str] = []
    for name in names:
        seen[name] = index = seen.get(name, -1) + 1
        numbered.append(f"{name}:{index}" if names.count(name) > 1 else name)
    return ", ".join(numbered[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
