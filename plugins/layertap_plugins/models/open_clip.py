"""The image tower of any model of open_clip, with weights of its own, a file's, or random ones."""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

import layertap
from layertap_plugins.models import building, checkpoints, hub, weights
from layertap_plugins.models.weights import Entry, Pin, Prefix
from layertap_plugins.preprocessors.composed import OpenClipTransform

if TYPE_CHECKING:
    from torch import Tensor, nn

DEFAULT = "DEFAULT"
# Instead of the text tower, one that is too small to notice.
_NO_TEXT = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}
_TOWER = "visual."


class OpenClipModel(layertap.ModelProvider):
    """The image tower (`model.visual`) of a model of open_clip; layers are named relative to it."""

    extra = "open_clip"

    class Params(layertap.Params):
        name: str = Field(
            description="a model of open_clip, as its list_models() names it (ViT-B-32), hf-hub:OWNER/NAME, or "
            "local-dir:PATH of a folder with open_clip_config.json and weights"
        )
        weights: str = Field(
            DEFAULT,
            min_length=1,
            description="a tag of the model (laion2b_s34b_b79k), the path of a .pth, .pt, .bin or .safetensors file of "
            "the whole model or the image tower, random (seeded), package:NAME/path/in/package, or DEFAULT, which only "
            "hf-hub: and local-dir: have",
        )
        weights_sha256: Pin = None
        weights_entry: Entry = None
        weights_prefix: Prefix = None
        args: dict[str, Any] = Field(
            default_factory=dict,
            description="fields of the vision config, such as {image_size: 336}, or embed_dim or quick_gelu",
        )

    params: Params

    def load(self) -> layertap.LoadedModel:
        """The tower on the CPU. Raises `ConfigError`, `WeightsError` and `UnsafeError`; draws from no random state."""
        open_clip: Any = importlib.import_module("open_clip")
        reference = self.params.weights
        origin = _origin(self.params.name)
        about: dict[str, Any] = {
            "library": "open_clip",
            "library_version": open_clip.__version__,
            "name": self.params.name,
            "weights": reference,
            **weights.NO_FILE,
            "untrained": reference == weights.RANDOM,
        }
        if reference == weights.RANDOM:
            clip, preprocess = self._build(origin), origin.preprocess
        else:
            path, preprocess, files = self._find(origin)
            checkpoint = checkpoints.read(path, self.params.weights_sha256)
            clip = self._build(origin)
            _, facts = checkpoint.loaded(lambda each: _fill(clip, each.state, path), self.params, clip.visual)
            about |= facts
            if files is not None:
                about |= {"weights_name": f"{files.label}/{path.name}", "revision": files.revision}
            checkpoints.check_finite(clip.visual, path)
        size = self.params.args.get("image_size")
        if size is not None and hasattr(clip.visual, "set_input_size"):
            with building.suited(self.params.name, self.params.args):
                clip.visual.set_input_size(size)
        module = clip.visual
        return layertap.LoadedModel(module, _preprocessor(module, preprocess), {**about, **_facts(module)})

    def _build(self, origin: _Origin) -> Any:
        """A whole model, since only that is public; it builds its tower first, so seeded values are the library's."""
        open_clip: Any = importlib.import_module("open_clip")
        args = dict(self.params.args)
        building.refuse(args, ("timm_model_pretrained",))
        fields = {field.name for field in dataclasses.fields(open_clip.CLIPVisionCfg)} - {"timm_model_pretrained"}
        building.overridden(args, fields | {"embed_dim", "quick_gelu"}, "the vision config")
        top = {key: args.pop(key, origin.config.get(key)) for key in ("embed_dim", "quick_gelu")}
        vision = {**origin.config["vision_cfg"], **args, "timm_model_pretrained": False}
        published = origin.files is not None
        with building.seeded(), building.suited(self.params.name, self.params.args, published=published):
            return open_clip.CLIP(top["embed_dim"], vision, _NO_TEXT, quick_gelu=bool(top["quick_gelu"]))

    def _find(self, origin: _Origin) -> tuple[Path, Mapping[str, Any], hub.Files | None]:
        """The weights file, how its images are preprocessed, and where it was published, if it was."""
        reference = self.params.weights
        tag = origin.tags.get(reference.lower().replace("-", "_"))
        if tag is not None:
            quick = self.params.args.get("quick_gelu", origin.config.get("quick_gelu", False))
            if bool(tag.get("quick_gelu")) != quick and "timm_model_name" not in origin.config["vision_cfg"]:
                raise layertap.WeightsError(
                    f"{reference} was trained {'without' if quick else 'with'} QuickGELU; set "
                    f"model.args={{quick_gelu: {str(not quick).lower()}}}",
                    where=("weights",),
                )
            repository, file = os.path.split(tag["hf_hub"])
            files = hub.Repository(repository)
            return hub.weights_file(files, file or "open_clip_pytorch_model.bin"), tag, files
        if reference == DEFAULT and origin.files is not None:
            return hub.weights_file(origin.files, "open_clip_pytorch_model.bin"), origin.preprocess, origin.files
        return weights.locate(reference, origin.tags), origin.preprocess, None


@dataclass(frozen=True)
class _Origin:
    """What a name stands for."""

    config: Mapping[str, Any]
    preprocess: Mapping[str, Any]
    tags: Mapping[str, Mapping[str, Any]]
    files: hub.Files | None = None


def _origin(name: str) -> _Origin:
    kind, _, place = name.partition(":")
    if kind == "hf-hub" and place:
        return _published(hub.Repository(place))
    if kind == "local-dir" and place:
        return _published(hub.Folder(place))
    open_clip: Any = importlib.import_module("open_clip")
    config = open_clip.get_model_config(name)
    if config is None:
        near = weights.nearest(name, open_clip.list_models())
        raise layertap.ConfigError(f"open_clip has no model {name!r}{near}", where=("name",))
    tags = {tag: open_clip.get_pretrained_cfg(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)}
    known = {tag: entry for tag, entry in tags.items() if entry.get("hf_hub")}
    seen = [_preprocess(entry) for entry in tags.values()]
    # For a file of the user or random weights: the preprocessing of the model's weights, where all of them agree.
    agreed = seen[0] if seen and all(entry == seen[0] for entry in seen) else {}
    return _Origin(config, agreed, known)


def _published(files: hub.Files) -> _Origin:
    path = files.find("open_clip_config.json")
    if path is None:
        raise layertap.WeightsError(f"{files.label} has no open_clip_config.json", where=("name",))
    content = hub.read_json(path)
    config = content.get("model_cfg")
    if not isinstance(config, dict) or not isinstance(config.get("vision_cfg"), dict) or "embed_dim" not in config:
        raise layertap.WeightsError(
            f"{str(path)!r} is not a config of open_clip: it has no model_cfg with vision_cfg", where=("name",)
        )
    return _Origin(config, _preprocess(content.get("preprocess_cfg") or {}), {}, files)


def _fill(clip: Any, state: Mapping[str, Tensor], path: Path) -> nn.Module:
    """The tower with its part of a checkpoint, converted as open_clip does it; the part of the text is left out."""
    open_clip: Any = importlib.import_module("open_clip")
    whole = dict(state)
    if any(key.startswith("image_encoder.") for key in whole):
        whole = dict(open_clip.convert.convert_state_dict(clip, whole))
    if not any(key.startswith(_TOWER) for key in whole):
        whole = {f"{_TOWER}{key}": value for key, value in whole.items()}
    open_clip.model.resize_pos_embed(whole, clip)
    tower = {key.removeprefix(_TOWER): value for key, value in whole.items() if key.startswith(_TOWER)}
    visual: nn.Module = clip.visual
    checkpoints.fit(visual, tower, path)
    return visual


def _preprocess(config: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("mean", "std", "interpolation", "resize_mode", "fill_color")
    return {key: config[key] for key in keys if config.get(key) is not None}


def _preprocessor(module: nn.Module, config: Mapping[str, Any]) -> OpenClipTransform:
    """open_clip's transform for the size that the tower takes."""
    open_clip: Any = importlib.import_module("open_clip")
    size: Any = module.image_size
    default = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    sides = (size, size) if isinstance(size, int) else tuple(size)
    return OpenClipTransform.of(size=sides, **default | _preprocess(config))


def _facts(module: nn.Module) -> dict[str, Any]:
    head = getattr(module, "attnpool", getattr(module, "head", None))
    facts: dict[str, Any] = {"layout": building.layout(module, head)}
    prefix = getattr(getattr(module, "trunk", None), "num_prefix_tokens", None)
    if hasattr(module, "class_embedding"):
        prefix = 1
    if isinstance(prefix, int):
        facts["num_prefix_tokens"] = prefix
    return facts


@layertap.hookimpl
def register_models(register: Callable[[str, type[layertap.ModelProvider]], None]) -> None:
    register("open_clip", OpenClipModel)
