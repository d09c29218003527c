"""Any vision model of transformers, from the hub, a local folder, or of a type with random weights."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

import layertap
from layertap_plugins.models import building, checkpoints, hub, pretrained, weights
from layertap_plugins.models.weights import Entry, Pin, Prefix
from layertap_plugins.preprocessors import processor

if TYPE_CHECKING:
    from torch import nn

DEFAULT = "DEFAULT"
# Their sequence has prefix tokens, whose parameters have these names, and then one token per patch.
_PATCHES = frozenset({
    "beit", "chinese_clip_vision_model", "clip_vision_model", "data2vec-vision", "deit", "dinov2",
    "dinov2_with_registers", "dinov3_vit", "dpt", "ijepa", "internvl_vision", "mlcd_vision_model", "pixio",
    "siglip_vision_model", "vit", "vit_msn",
})  # fmt: skip
_PREFIX = ("cls_token", "class_embedding", "distillation_token", "register_tokens")


class TransformersModel(layertap.ModelProvider):
    """The model that AutoModel gives, or the vision tower of a model of two, with its image processor."""

    extra = "transformers"

    class Params(layertap.Params):
        name: str = Field(
            description="a repository of the hub (OWNER/NAME, or OWNER/NAME@REVISION), the path of a local folder, or "
            "a type of model such as vit, dinov2 or clip_vision_model"
        )
        weights: str = Field(
            DEFAULT,
            min_length=1,
            description="DEFAULT (those of the repository or folder), the path of a .pth, .pt, .bin or .safetensors "
            "file, random (seeded), or package:NAME/path/in/package; a type of model has no DEFAULT",
        )
        weights_sha256: Pin = None
        weights_entry: Entry = None
        weights_prefix: Prefix = None
        args: dict[str, Any] = Field(
            default_factory=dict,
            description="fields of the model's config, such as {image_size: 384, attn_implementation: eager}",
        )

    params: Params

    def load(self) -> layertap.LoadedModel:
        """The model on the CPU. Raises `ConfigError`, `WeightsError` and `UnsafeError`; draws from no random state."""
        transformers: Any = importlib.import_module("transformers")
        reference = self.params.weights
        files = self._files()
        if files is None and reference == DEFAULT:
            raise layertap.WeightsError(
                f"{self.params.name!r} is a type of model, which has no weights of its own; set "
                f"model.name=OWNER/NAME or a local folder, model.weights=PATH, or model.weights={weights.RANDOM}",
                where=("weights",),
            )
        about: dict[str, Any] = {
            "library": "transformers",
            "library_version": transformers.__version__,
            "name": self.params.name,
            "weights": reference,
            **weights.NO_FILE,
            "untrained": reference == weights.RANDOM,
        }
        with pretrained.quiet(), building.seeded():
            with building.suited(self.params.name, self.params.args, published=files is not None):
                config = self._config(files)
                model_class = _model_class(config)
            if reference == weights.RANDOM:
                with building.suited(self.params.name, self.params.args, published=files is not None):
                    module = transformers.AutoModel.from_config(config, dtype="float32", trust_remote_code=False)
            else:
                paths = self._paths(files)
                checkpoint = pretrained.read(paths, self.params.weights_sha256)
                module, facts = pretrained.filled(model_class, config, checkpoint, self.params)
                checkpoints.check_finite(module, paths[0])
                others = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
                about |= {**facts, "weights_file": f"{paths[0].name}{others}"}
                about["revision"] = files and files.revision
            preprocessor = _preprocessor(files, config)
        advice = _advice(self.params.name, config) if preprocessor is None else ""
        return layertap.LoadedModel(module, preprocessor, {**about, **_facts(module)}, advice)

    def _files(self) -> hub.Files | None:
        """Where the model was published; None for a type of model. Raises `ConfigError` with the nearest."""
        transformers: Any = importlib.import_module("transformers")
        name = self.params.name
        if name in transformers.CONFIG_MAPPING:
            return None
        if os.path.isdir(os.path.expanduser(name)):
            return hub.Folder(name)
        if name.count("/") == 1 and not name.startswith(("/", ".", "~")):
            return hub.Repository(name)
        if "/" in name:
            raise layertap.ConfigError(f"{name!r} is not a folder", where=("name",))
        near = weights.nearest(name, transformers.CONFIG_MAPPING) or "; name OWNER/NAME of the hub, or a folder"
        raise layertap.ConfigError(f"transformers has no type of model {name!r}{near}", where=("name",))

    def _paths(self, files: hub.Files | None) -> list[Path]:
        if files is None:
            return [weights.locate(self.params.weights, ())]
        if self.params.weights == DEFAULT:
            return pretrained.weights_files(files)
        return [weights.locate(self.params.weights, [DEFAULT])]

    def _config(self, files: hub.Files | None) -> Any:
        """The vision config, with the user's fields laid over it."""
        transformers: Any = importlib.import_module("transformers")
        config = transformers.CONFIG_MAPPING[self.params.name]() if files is None else _published(files)
        tower = getattr(config, "vision_config", None)
        config = config if tower is None or _takes_images(config) else tower
        args = dict(self.params.args)
        attention = args.pop("attn_implementation", None) or getattr(config, "_attn_implementation_internal", None)
        if isinstance(attention, str) and ("/" in attention or "|" in attention):
            raise layertap.UnsafeError(
                f"the attention {attention!r} is code from the hub, and such code is never run",
                where=("args" if "attn_implementation" in self.params.args else "name",),
            )
        building.overridden(args, {*config.to_dict(), *config.attribute_map}, f"the config of {config.model_type}")
        if files is None:
            config = type(config)(**args)
        else:
            for key, value in args.items():
                setattr(config, key, value)  # as the library does it
        config._attn_implementation = attention
        config.fusion_config = None  # it would replace layers
        return config


def _published(files: hub.Files) -> Any:
    """The config that came with the model. Nothing else that came with it is run."""
    transformers: Any = importlib.import_module("transformers")
    path = files.find("config.json")
    if path is None:
        raise layertap.WeightsError(f"{files.label} has no config.json", where=("name",))
    content = hub.read_json(path)
    kind = content.get("model_type")
    if kind not in transformers.CONFIG_MAPPING and content.get("auto_map"):
        raise layertap.UnsafeError(
            f"{files.label} comes with code of its own ({kind}), and such code is never run", where=("name",)
        )
    if content.get("quantization_config"):
        raise layertap.WeightsError(
            f"{files.label} is quantized: its layers are not those of the model", where=("name",)
        )
    return transformers.AutoConfig.from_pretrained(path.parent, local_files_only=True, trust_remote_code=False)


def _model_class(config: Any) -> Any:
    """The class that AutoModel takes for a config. Raises `ConfigError` for a model that wants more than an image."""
    found = _auto_model(config)
    if found is None:
        raise layertap.ConfigError(f"transformers has no AutoModel for {config.model_type!r}", where=("name",))
    if not _takes_images(config):
        raise layertap.ConfigError(
            f"{config.model_type!r} is not a vision model that runs on a batch of images alone: it takes "
            f"{', '.join(_wants(found))}",
            where=("name",),
        )
    return found


def _auto_model(config: Any) -> Any:
    transformers: Any = importlib.import_module("transformers")
    found = transformers.MODEL_MAPPING.get(type(config), None)
    return found[0] if isinstance(found, (tuple, list)) else found


def _takes_images(config: Any) -> bool:
    found = _auto_model(config)
    return found is not None and _wants(found) == ["pixel_values"]


def _wants(model_class: Any) -> list[str]:
    """The first argument of its forward, and the others that must be given."""
    _, first, *others = inspect.signature(model_class.forward).parameters.values()
    needed = [each for each in others if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD]
    return [first.name, *(each.name for each in needed)]


def _preprocessor(files: hub.Files | None, config: Any) -> processor.ImageProcessor | None:
    """The one that came with the model, or the default one of a type."""
    if files is None:
        return processor.of_type(config)
    with suppress(layertap.WeightsError):  # not in the cache; the user may ask for another preprocessor
        path = files.find("preprocessor_config.json", "processor_config.json")
        return processor.of_folder(path.parent) if path is not None else None
    return None


def _advice(name: str, config: Any) -> str:
    """Which preprocessing to set for a model without a processor that can be used."""
    side = getattr(config, "image_size", None)
    sizes = [side, side] if isinstance(side, int) else list(side or (224, 224))
    return (
        f"{name} has no image processor that can be read: put its preprocessor_config.json there, or set `preprocess: "
        f"{{type: squash, size: {sizes}}}`, with the `mean` and `std` that it was trained with"
    )


def _facts(module: nn.Module) -> dict[str, Any]:
    config: Any = module.config
    facts: dict[str, Any] = {"layout": building.layout(module)}
    if hasattr(config, "num_attention_heads") or hasattr(config, "num_heads"):
        facts["attention"] = config._attn_implementation
    embeddings: Any = getattr(module, "embeddings", None)
    if config.model_type in _PATCHES and embeddings is not None:
        tokens = dict(embeddings.named_parameters(recurse=False))
        held = [tokens[name] for name in _PREFIX if tokens.get(name) is not None]
        facts["num_prefix_tokens"] = sum(token.shape[-2] if token.ndim > 1 else 1 for token in held)
    return facts


@layertap.hookimpl
def register_models(register: Callable[[str, type[layertap.ModelProvider]], None]) -> None:
    register("transformers", TransformersModel)
