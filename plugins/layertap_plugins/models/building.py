"""Building a model of any library: on the CPU, the same each time, from arguments that fetch nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from layertap import ConfigError, LayertapError, WeightsError
from layertap_plugins.models import weights

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def seeded() -> Iterator[None]:
    """Build on the CPU, with the initial values of seed 0; the random state of the process does not change."""
    import torch

    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also reseed the accelerators, whose state is not forked here.
        torch.default_generator.manual_seed(0)
        yield


@contextmanager
def suited(name: str, args: Mapping[str, Any], *, published: bool = False) -> Iterator[None]:
    """Turn what a library raises into `ConfigError` where the user's `args` are the likely reason.

    Without arguments, the likely reason is a config that somebody `published`, and that raises `WeightsError`.
    """
    try:
        yield
    except (LayertapError, ModuleNotFoundError):
        raise
    except Exception as error:
        if args:
            raise ConfigError(f"{dict(args)} does not suit {name}: {weights.brief(error)}", where=("args",)) from error
        if published:
            raise WeightsError(
                f"the config of {name} does not suit the library: {weights.brief(error)}", where=("name",)
            ) from error
        raise


def refuse(args: Mapping[str, Any], ours: Collection[str]) -> None:
    """Raise `ConfigError` for an argument that would make a library fetch or unpickle weights past every check here."""
    for key in args:
        if key in ours:
            raise ConfigError(f"{key!r} is not for the architecture; set model.weights instead", where=("args",))


def overridden(args: Mapping[str, Any], known: Collection[str], what: str) -> None:
    """Raise `ConfigError` for an argument that is not among the `known` fields: libraries ignore some silently."""
    for key in args:
        if key not in known:
            near = weights.nearest(key, known) or f" (it has {', '.join(sorted(known))})"
            raise ConfigError(f"{what} has no {key!r}{near}", where=("args",))


def layout(module: nn.Module, head: nn.Module | None = None) -> str | None:
    """`NCHW` for a network of convolutions and batch norms up to its `head`; None where that is not certain.

    Linear layers, layer norms and attention have channels last, windows or heads in 4 dimensions; a model with any of
    them has no single layout, even where most of its maps are NCHW.
    """
    from torch import nn

    flat = set(head.modules()) if head is not None else set()
    maps = (nn.Conv2d, nn.BatchNorm2d, nn.GroupNorm)
    for layer in module.modules():
        if layer in flat or isinstance(layer, maps):
            continue
        if hasattr(layer, "num_heads") or next(layer.parameters(recurse=False), None) is not None:
            return None
    return "NCHW"
