"""Weights of transformers: read here, and loaded by the library, which knows the earlier names of its layers."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layertap import WeightsError
from layertap_plugins.models import checkpoints, hub, weights
from layertap_plugins.models.entries import Candidate, Wanted

if TYPE_CHECKING:
    from torch import Tensor, nn


def weights_files(files: hub.Files) -> list[Path]:
    """The weights of a repository or folder: one file, or the shards that an index lists. Raises `WeightsError`."""
    names = [f"{stem}.{suffix}" for stem in ("model.safetensors", "pytorch_model.bin") for suffix in ("", "index.json")]
    path = files.find(*(name.removesuffix(".") for name in names))
    if path is None:
        raise WeightsError(f"{files.label} has no weights that can be read safely (model.safetensors)", where=("name",))
    if path.suffix != ".json":
        return [path]
    listed = hub.read_json(path).get("weight_map")
    shards = sorted({str(name) for name in listed.values()}) if isinstance(listed, dict) else []
    found = [files.find(name) if name == os.path.basename(name) else None for name in shards]
    if not found or None in found:
        raise WeightsError(f"{str(path)!r} lists weights that {files.label} does not have", where=("name",))
    return [path for path in found if path is not None]


def read(paths: list[Path], pinned: str | None = None) -> checkpoints.Checkpoint:
    """What is in a file, or in all shards together, whose digest is then the digest of their digests in a row.

    Raises what `checkpoints.read` raises.
    """
    if len(paths) == 1:
        return checkpoints.read(paths[0], pinned)
    # All shards are checked before the first is loaded, and each must still be the same then.
    digests = [weights.sha256(path) for path in paths]
    digest = hashlib.sha256("".join(digests).encode()).hexdigest()
    weights.check_pin(paths[0], digest, pinned)
    whole: dict[str, Tensor] = {}
    for path, of in zip(paths, digests, strict=True):
        for entry, state in checkpoints.read(path, of).states:
            if entry is not None:
                raise WeightsError(f"{str(path)!r} is one of several files, and not a plain state dict")
            whole |= state
    return checkpoints.Checkpoint(paths[0], digest, [(None, whole)])


def filled(
    model_class: Any, config: Any, checkpoint: checkpoints.Checkpoint, wanted: Wanted
) -> tuple[nn.Module, dict[str, Any]]:
    """The model with the weights of a checkpoint, and what its `about` says of them.

    `unused_keys` counts the keys of other parts of the model. Raises what `Checkpoint.loaded` raises.
    """
    left = 0  # of the last candidate that was loaded, which is the one that is taken

    def fill(candidate: Candidate) -> nn.Module:
        nonlocal left
        module, left = _filled(model_class, config, candidate.state, checkpoint.path)
        return module

    module, facts = checkpoint.loaded(fill, wanted, _outline(model_class, config))
    return module, {**facts, "unused_keys": facts.get("unused_keys", 0) + left}


def _outline(model_class: Any, config: Any) -> nn.Module | None:
    """The model without values, and without a pooler that may be missing; None where it cannot be built like that."""
    import torch

    options = {"add_pooling_layer": False} if _has_pooler(model_class) else {}
    with torch.device("meta"), suppress(Exception):
        module: nn.Module = model_class(config, **options)
        return module
    return None


def _has_pooler(model_class: Any) -> bool:
    return "add_pooling_layer" in inspect.signature(model_class.__init__).parameters


def _filled(model_class: Any, config: Any, state: Mapping[str, Tensor], path: Path) -> tuple[nn.Module, int]:
    """The model with `state` loaded as the library does it, and how many keys of other parts were left out.

    Every value of the model must come from the file: what the library would draw at random raises `WeightsError`,
    except a pooler that the model can be built without.
    """

    def load(**options: bool) -> tuple[Any, dict[str, Any]]:
        try:
            return model_class.from_pretrained(  # type: ignore[no-any-return]
                None,
                config=config,
                state_dict=dict(state),
                dtype="float32",
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **options,
            )
        except Exception as error:
            raise WeightsError(
                f"{str(path)!r} does not fit the model: {weights.brief(error)}", where=("weights",)
            ) from error

    module, found = load()
    missing = sorted(found["missing_keys"])
    if _has_pooler(model_class) and any(key.startswith("pooler.") for key in missing):
        module, found = load(add_pooling_layer=False)
        missing = sorted(found["missing_keys"])
    differ = {key: (tuple(theirs), tuple(ours)) for key, theirs, ours in sorted(found["mismatched_keys"])}
    # A head next to the base model, or the tower for text, may be left out; a key of one of its own parts may not.
    unexpected, parts = sorted(found["unexpected_keys"]), {name for name, _ in module.named_children()}
    befores = (f"{module.base_model_prefix}.", "vision_model.")
    own = [key for key in unexpected if _first_part(key, befores) in parts]
    if missing or own or differ:
        raise checkpoints.misfit(path, missing, own, differ)
    return module, len(unexpected)


def _first_part(key: str, befores: tuple[str, ...]) -> str:
    for before in befores:
        key = key.removeprefix(before)
    return key.partition(".")[0]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the library's progress bars and reports off; their content is checked here."""
    logging: Any = importlib.import_module("transformers.utils.logging")
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
