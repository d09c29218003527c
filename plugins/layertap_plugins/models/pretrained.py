"""Weights of transformers, read by us and filled in by the library, which knows how its layers were once named."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layertap import WeightsError
from layertap_plugins.models import checkpoints, hub, weights

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
    """What is in a file, or in all shards together, whose digest is then that of their digests in a row.

    Raises what `checkpoints.read` raises.
    """
    if len(paths) == 1:
        return checkpoints.read(paths[0], pinned)
    # All shards have passed before the first is loaded, and each must still be the same then.
    digests = [weights.sha256(path) for path in paths]
    digest = hashlib.sha256("".join(digests).encode()).hexdigest()
    weights.check_pin(paths[0], digest, pinned)
    shards = [checkpoints.read(path, of).state for path, of in zip(paths, digests, strict=True)]
    return checkpoints.Checkpoint(paths[0], digest, {key: value for shard in shards for key, value in shard.items()})


def filled(model_class: Any, config: Any, state: dict[str, Tensor], path: Path) -> tuple[nn.Module, int]:
    """The model with `state` loaded as the library does it, and how many keys of other parts were left.

    Every value of the model must come from the file: what the library would draw at random raises `WeightsError`,
    except a pooler that the model can be built without.
    """
    state = dict(checkpoints.aligned(state))

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
    options = inspect.signature(model_class.__init__).parameters
    if "add_pooling_layer" in options and any(key.startswith("pooler.") for key in missing):
        module, found = load(add_pooling_layer=False)
        missing = sorted(found["missing_keys"])
    differ = {key: (tuple(theirs), tuple(ours)) for key, theirs, ours in sorted(found["mismatched_keys"])}
    # A head beside the base model, or the tower for text, is no fault; a key of one of its own parts is.
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
    """Without the library's progress bars and reports; what they tell is checked here."""
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
