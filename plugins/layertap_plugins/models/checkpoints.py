"""Checkpoints of any library: read without running anything in them, and loaded whole or not at all."""

from __future__ import annotations

import argparse
import hashlib
import io
import math
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from layertap import WeightsError
from layertap_plugins.models import entries, vetting, weights
from layertap_plugins.models.entries import Candidate

if TYPE_CHECKING:
    from torch import Tensor, nn

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state dicts in a file, on the CPU, each with the keys that lead to it; None for one at the top level."""

    path: Path
    sha256: str
    states: Sequence[tuple[str | None, entries.State]]

    def loaded(
        self, load: Callable[[Candidate], nn.Module], wanted: entries.Wanted, module: nn.Module | None = None
    ) -> tuple[nn.Module, dict[str, Any]]:
        """The module that `load` gives for the one candidate that fits, and what its `about` says of the weights.

        `module` has the names and shapes of the parameters that must be loaded; without it only whole state dicts are
        tried. Raises `WeightsError` where no candidate fits, or several do and `wanted` chooses none of them.
        """
        own = {name: tuple(value.shape) for name, value in module.named_parameters()} if module is not None else {}
        among = entries.candidates(self.states, own, wanted, self.path)
        filled, taken = entries.chosen(among, load, own, self.path)
        facts = {"weights_file": self.path.name, "weights_sha256": self.sha256}
        return filled, {**facts, **taken.facts}


def read(path: Path, pinned: str | None = None, *, named: bool = False) -> Checkpoint:
    """Every state dict in a file, at the top level or nested; nothing in the file is run.

    `pinned` is the digest that the file must have. `named`: its own name says how its digest begins. The file is read
    once, so that the bytes that are checked are the bytes that are loaded.

    Raises `UnsafeError` for a file of another digest, or one that holds more than plain tensors, `WeightsError` for one
    that is damaged or holds no state dict.
    """
    data = weights.content(path)
    digest = hashlib.sha256(data).hexdigest()
    weights.check_pin(path, digest, pinned)
    if named:
        weights.check_digest(path, digest)
    content = _safetensors(data, path) if path.suffix.lower() == ".safetensors" else _pickled(data, path)
    states = entries.found(content, path)
    _check_size((item for _, state in states for item in state.items()), len(data), path)
    return Checkpoint(path, digest, states)


def _safetensors(data: bytes, path: Path) -> Any:
    from safetensors.torch import load

    vetting.vet_safetensors(data, path)
    try:
        return load(data)
    except Exception as error:  # its own error, or a KeyError for a type that torch lacks
        raise vetting.damaged(path, weights.brief(error)) from error


def _pickled(data: bytes, path: Path) -> Any:
    import torch

    vetting.vet_pickled(data, path)
    try:
        # Many training scripts save their command line with the weights: plain attributes, which run nothing.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # about pickle protocols that it then refuses
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its message advises to read the file unsafely
        what = "an archive without a state dict" if data.startswith(vetting.ARCHIVE) else "no checkpoint of torch"
        raise vetting.damaged(path, what) from error
    except Exception as error:  # what torch raises for a damaged file depends on where the damage is
        raise vetting.damaged(path, weights.brief(error)) from error


def _check_size(values: Iterable[tuple[str, Tensor]], size: int, path: Path) -> None:
    """Raise `UnsafeError` where the tensors claim more bytes than the file has: a stride of 0 makes any number of 4."""
    import torch

    held: dict[int, int] = {}
    for key, value in values:
        is_plain = value.layout is torch.strided and value.device.type == "cpu"
        if not is_plain or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise vetting.unsafe(path, f"{key!r:.100} claims more values than the file has")
        held[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
    if sum(held.values()) > size:
        raise vetting.unsafe(path, "its tensors claim more values than the file has")


def check_finite(module: nn.Module, path: Path) -> None:
    """Raise `WeightsError` that names the first parameter of `module` that is NaN or infinite somewhere.

    `path`, the file that it is from, is for the message. Buffers may be infinite: masks are.
    """
    import torch

    for name, value in module.named_parameters():
        if value.numel() and value.is_floating_point() and value.element_size() > 1:
            low, high = torch.aminmax(value.detach())
            if not (math.isfinite(low) and math.isfinite(high)):
                raise WeightsError(
                    f"{str(path)!r} holds NaN or infinity in {name!r}; get a file of a training run that converged",
                    where=("weights",),
                )


def fit(module: nn.Module, state: entries.State, path: Path, classes: int | None = None) -> None:
    """Load `state` into `module`, every key of both.

    `path` and `classes`, the number the module was built for, are for the message. Raises `WeightsError` that lists
    what is missing, unexpected, or of another shape.
    """
    own = module.state_dict()
    versions = getattr(state, "_metadata", None)
    state = OrderedDict(state)
    # A .safetensors file has no versions, and MNASNet refuses a state that does not say its own.
    state._metadata = versions or {"": getattr(own, "_metadata", {}).get("", {})}  # type: ignore[attr-defined]
    shapes = {key: (tuple(state[key].shape), tuple(own[key].shape)) for key in own if key in state}
    # torch accepts (1,) for (): old checkpoints have it.
    differ = {key: pair for key, pair in shapes.items() if pair[0] != pair[1] and pair != ((1,), ())}
    for key in differ:
        del state[key]
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except Exception as error:  # the exception depends on the module that cannot convert a value
        raise WeightsError(
            f"{str(path)!r} does not fit the model: {weights.brief(error)}", where=("weights",)
        ) from error
    missing = [key for key in missing if key not in differ]
    if missing or unexpected or differ:
        raise misfit(path, missing, unexpected, differ, classes)


def misfit(
    path: Path,
    missing: Iterable[str],
    unexpected: Iterable[str],
    differ: Mapping[str, tuple[Shape, Shape]],
    classes: int | None = None,
) -> WeightsError:
    """What to raise where a checkpoint and a model differ; `differ` holds the shapes of the file and of the model.

    A head that differs from one of `classes` rows in nothing but their number suggests the number of the file.
    """
    faults = [_listed("missing", missing), _listed("unexpected", unexpected), _listed("of another shape", differ)]
    message = f"{str(path)!r} does not fit the model: keys {'; '.join(filter(None, faults))}"
    heads = {theirs[0] for theirs, ours in differ.values() if theirs and classes and ours == (classes, *theirs[1:])}
    if len(heads) == 1:
        message += f"; it has {max(heads)} classes: set model.args={{num_classes: {max(heads)}}}"
    return WeightsError(message, where=("weights",))


def _listed(fault: str, keys: Iterable[str] | Mapping[str, Any], most: int = 3) -> str:
    shapes = keys if isinstance(keys, Mapping) else {}
    shown = [f"{key!r} ({shapes[key][0]} for {shapes[key][1]})" if key in shapes else repr(key) for key in keys]
    more = ", ..." if len(shown) > most else ""
    return f"{len(shown)} {fault}: {', '.join(shown[:most])}{more}" if shown else ""
