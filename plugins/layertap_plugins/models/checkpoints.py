"""Checkpoints, whatever the library: read without running anything in them, and loaded whole or not at all."""

from __future__ import annotations

import argparse
import pickle
import pickletools
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from layertap import UnsafeError, WeightsError
from layertap_plugins.models.weights import brief

if TYPE_CHECKING:
    from torch import Tensor, nn

Shape: TypeAlias = tuple[int, ...]

WRAPPERS = ("state_dict", "model", "model_state_dict", "encoder")
# What DataParallel and torch.compile put before every key, and what a module that wraps the model often does.
WRAPPED = ("module.", "_orig_mod.")
PREFIXES = (*WRAPPED, "model.")

_NAMES_CODE = frozenset({"GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"})


def read(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, on the CPU, whether at the top or in a wrapper; nothing in the file is run.

    Raises `UnsafeError` for a file that holds more than plain data, `WeightsError` for one that is damaged or holds no
    state dict.
    """
    from torch import Tensor

    content = _read_safetensors(path) if path.suffix.lower() == ".safetensors" else _read_pickle(path)
    if isinstance(content, dict):
        content = next((content[key] for key in WRAPPERS if isinstance(content.get(key), dict)), content)
    if not isinstance(content, dict):
        raise WeightsError(f"{str(path)!r} holds no state dict but a {type(content).__name__}")
    for key, value in content.items():
        if not (isinstance(key, str) and isinstance(value, Tensor)):
            raise WeightsError(
                f"{str(path)!r} holds no state dict: its entry {key!r} is a {type(value).__name__} "
                f"(a state dict lies at the top, or under {', '.join(WRAPPERS)})"
            )
    return content


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise _damaged(path, brief(error)) from error


def _read_pickle(path: Path) -> Any:
    import torch

    try:
        archive = zipfile.is_zipfile(path)
        # torch refuses these two as well, but advises to read them unsafely.
        if not (_is_torchscript(path) if archive else tarfile.is_tarfile(path)):
            # Many training scripts save their command line beside the weights: plain attributes, which run nothing.
            with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
                warnings.simplefilter("ignore")  # about pickle protocols that it then refuses
                return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # The same error stands for a web page saved as .pth: only a pickle that names code is refused as unsafe.
        if not (archive or _names_code(path)):
            raise _damaged(path, "neither an archive nor a pickle") from error
    except Exception as error:  # what torch raises for a damaged file depends on where the damage is
        raise _damaged(path, brief(error)) from error
    raise UnsafeError(
        f"{str(path)!r} holds more than tensors, and reading that could run code; if you trust it, save its state dict "
        "as .safetensors where it came from"
    )


def _is_torchscript(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _names_code(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            # An old checkpoint is several pickles in a row; what comes after the last one is none, and raises.
            while not any(operation.name in _NAMES_CODE for operation, _, _ in pickletools.genops(file)):
                pass
        except Exception:
            return False
    return True


def _damaged(path: Path, why: str) -> WeightsError:
    return WeightsError(f"{str(path)!r} is no weights file or a damaged one ({why}); get it again")


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
        raise WeightsError(f"{str(path)!r} does not fit the model: {brief(error)}") from error
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
    return WeightsError(message)


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
