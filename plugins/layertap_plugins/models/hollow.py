"""Building a model whose parameters all come from a file: their initial values are never computed.

Drawing them takes seconds for a large model, and then every one is overwritten. Everything else that a library
computes, such as masks and position tables, is computed as usual. Only factories and copies of this thread are
affected, and nothing in torch or in a library is replaced.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from layertap_plugins.models import building

if TYPE_CHECKING:
    from torch import Tensor, nn

Built = TypeVar("Built")


def built(build: Callable[[], Built], module: Callable[[Built], nn.Module], *, loads: bool) -> Built:
    """What `build` gives inside `building.seeded`, except for the initial values of the parameters of its `module`.

    The caller must load every one of them, unless `build` `loads` them itself. A model that cannot be built like this,
    or whose other values would be different, is built in the ordinary way.
    """
    try:
        found = _hollow(build, module, loads)
    except Exception:  # a library may do anything to a tensor without values; the ordinary way reports other faults
        found = None
    if found is None:
        with building.seeded():
            found = build()
    return found


def _hollow(build: Callable[[], Built], module: Callable[[Built], nn.Module], loads: bool) -> Built | None:
    import torch
    from torch.overrides import TorchFunctionMode

    copied: dict[int, tuple[Tensor, Tensor]] = {}  # by the identity of the target, which it keeps alive

    class WithoutValues(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func is torch.empty and kwargs.get("device") is None:
                return func(*args, **{**kwargs, "device": "meta"})
            if func is torch.Tensor.copy_:
                target, value = args[:2]
                copied[id(target)] = target, value
                return target if target.is_meta else func(*args, **kwargs)
            name = getattr(func, "__name__", "")
            if args and name.endswith("_") and name != "__get__":
                copied.pop(id(args[0]), None)  # changed after it was loaded
            return func(*args, **kwargs)

    with building.seeded(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "for .*: copying from a non-meta parameter")  # kept, and copied below
        fresh = torch.default_generator.get_state()
        with WithoutValues():
            found = build()
        drew = not torch.equal(fresh, torch.default_generator.get_state())
    whole = module(found)
    if loads and any(id(parameter) not in copied for parameter in whole.parameters()):
        return None
    for parameter in list(whole.parameters()):
        if parameter.is_meta:
            filled = torch.nn.Parameter(torch.empty_like(parameter, device="cpu"), parameter.requires_grad)
            if loads:
                filled.data.copy_(copied[id(parameter)][1])
            filled.__dict__.update(parameter.__dict__)
            # The object stays, for it may be tied to another layer or listed elsewhere.
            torch.utils.swap_tensors(parameter, filled)  # type: ignore[no-untyped-call]
    others = _unsaved(whole)
    # Where numbers were drawn, fewer came before them than in the ordinary way.
    if any(value.is_meta or drew for value in others):
        return None
    return found


def _unsaved(module: nn.Module) -> list[Tensor]:
    """The tensors of a module that a checkpoint need not have, and any that still has no values."""
    from torch import Tensor

    saved = {value.data_ptr() for value in module.state_dict().values() if not value.is_meta}
    held = [value for layer in module.modules() for value in vars(layer).values() if isinstance(value, Tensor)]
    values = [*module.parameters(), *module.buffers(), *held]
    return [value for value in values if value.is_meta or (value.numel() and value.data_ptr() not in saved)]
