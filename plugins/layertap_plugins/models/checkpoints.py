"""Checkpoints, whatever the library: read without running anything in them, and loaded whole or not at all."""

from __future__ import annotations

import argparse
import hashlib
import io
import math
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from layertap import WeightsError
from layertap_plugins.models import vetting, weights

if TYPE_CHECKING:
    from torch import Tensor, nn

Shape: TypeAlias = tuple[int, ...]

WRAPPERS = ("state_dict", "model", "model_state_dict", "encoder")
# What DataParallel and torch.compile put before every key, and what a module that wraps the model often does.
WRAPPED = ("module.", "_orig_mod.")
PREFIXES = (*WRAPPED, "model.")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A state dict, on the CPU, and the file that it was in."""

    path: Path
    sha256: str
    state: dict[str, Tensor]

    @property
    def facts(self) -> dict[str, Any]:
        """What a model's `about` says of its file."""
        return {"weights_file": self.path.name, "weights_sha256": self.sha256}


def read(path: Path, pinned: str | None = None, *, named: bool = False) -> Checkpoint:
    """The state dict in a file, whether at the top or in a wrapper; nothing in the file is run.

    `pinned` is the digest that the file must have. `named`: its own name says how its digest begins. The file is read
    once, so that it cannot be another one when it is loaded than when it was checked.

    Raises `UnsafeError` for a file of another digest, or that holds more than plain tensors, `WeightsError` for one
    that is damaged or holds no state dict.
    """
    data = weights.content(path)
    digest = hashlib.sha256(data).hexdigest()
    weights.check_pin(path, digest, pinned)
    if named:
        weights.check_digest(path, digest)
    state = _state(_safetensors(data, path) if path.suffix.lower() == ".safetensors" else _pickled(data, path), path)
    _check_size(state, len(data), path)
    return Checkpoint(path, digest, state)


def _state(content: Any, path: Path) -> dict[str, Tensor]:
    from torch import Tensor

    if isinstance(content, dict):
        content = next((content[key] for key in WRAPPERS if isinstance(content.get(key), dict)), content)
    if not isinstance(content, dict):
        raise WeightsError(f"{str(path)!r} holds no state dict but a {type(content).__name__}", where=("weights",))
    for key, value in content.items():
        if not (isinstance(key, str) and isinstance(value, Tensor)):
            raise WeightsError(
                f"{str(path)!r} holds no state dict: its entry {key!r:.100} is a {type(value).__name__} "
                f"(a state dict lies at the top, or under {', '.join(WRAPPERS)})",
                where=("weights",),
            )
    return content


def _safetensors(data: bytes, path: Path) -> Any:
    from safetensors.torch import load

    vetting.vet_safetensors(data, path)
    try:
        return load(data)
    except Exception as error:  # beside its own error, a KeyError for a type that torch lacks
        raise vetting.damaged(path, weights.brief(error)) from error


def _pickled(data: bytes, path: Path) -> Any:
    import torch

    vetting.vet_pickled(data, path)
    try:
        # Many training scripts save their command line beside the weights: plain attributes, which run nothing.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # about pickle protocols that it then refuses
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its message advises to read the file unsafely
        what = "an archive without a state dict" if data.startswith(vetting.ARCHIVE) else "no checkpoint of torch"
        raise vetting.damaged(path, what) from error
    except Exception as error:  # what torch raises for a damaged file depends on where the damage is
        raise vetting.damaged(path, weights.brief(error)) from error


def _check_size(state: Mapping[str, Tensor], size: int, path: Path) -> None:
    """Raise `UnsafeError` where the tensors claim more bytes than the file has: a stride of 0 makes any number of 4."""
    import torch

    held: dict[int, int] = {}
    for key, value in state.items():
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
                    f"{str(path)!r} holds NaN or infinity in {name!r}; get a file of a training that went well",
                    where=("weights",),
                )


def fit(module: nn.Module, state: Mapping[str, Tensor], path: Path, classes: int | None = None) -> None:
    """Load `state` into `module`, every key of both; a prefix such as `module.` on all keys is dropped first.

    `path` and `classes`, the number the module was built for, are for the message. Raises `WeightsError` that lists
    what is missing, unexpected, or of another shape.
    """
    own = module.state_dict()
    state = aligned(state, own)
    shapes = {key: (tuple(state[key].shape), tuple(own[key].shape)) for key in own if key in state}
    # (1,) for () is no fault: torch takes it, since checkpoints of old have it.
    differ = {key: pair for key, pair in shapes.items() if pair[0] != pair[1] and pair != ((1,), ())}
    for key in differ:
        del state[key]
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except Exception as error:  # modules refuse what they cannot convert each in its own way
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


def aligned(state: Mapping[str, Tensor], own: Mapping[str, Any] | None = None) -> OrderedDict[str, Tensor]:
    """`state` under keys like a model's `own`, with the versions of its modules, by which torch converts old ones.

    Where the model's keys are not known, only prefixes that no model has itself are dropped.
    """
    dropped = _prefix(state, {}, WRAPPED) if own is None else _prefix(state, own, PREFIXES)
    aligned = OrderedDict((key.removeprefix(dropped), value) for key, value in state.items())
    versions = getattr(state, "_metadata", None)
    if isinstance(versions, dict):
        path = dropped.removesuffix(".")
        versions = {str(key).removeprefix(path).removeprefix("."): value for key, value in versions.items()}
    elif own is not None:  # a .safetensors file: MNASNet refuses a state that does not say its version
        versions = {"": getattr(own, "_metadata", {}).get("", {})}
    if versions is not None:
        aligned._metadata = versions  # type: ignore[attr-defined]
    return aligned


def _prefix(state: Mapping[str, Any], own: Mapping[str, Any], prefixes: Iterable[str]) -> str:
    """What stands before every key of `state` and before none of the model's own; several may be joined."""

    def is_before_all(dropped: str, prefix: str) -> bool:
        return all(key.startswith(dropped + prefix) for key in state) and not any(key.startswith(prefix) for key in own)

    dropped = ""
    while state and (longer := next((prefix for prefix in prefixes if is_before_all(dropped, prefix)), None)):
        dropped += longer
    return dropped


def _listed(fault: str, keys: Iterable[str] | Mapping[str, Any], most: int = 3) -> str:
    shapes = keys if isinstance(keys, Mapping) else {}
    shown = [f"{key!r} ({shapes[key][0]} for {shapes[key][1]})" if key in shapes else repr(key) for key in keys]
    more = ", ..." if len(shown) > most else ""
    return f"{len(shown)} {fault}: {', '.join(shown[:most])}{more}" if shown else ""
