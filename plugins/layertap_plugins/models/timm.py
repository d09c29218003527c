"""Any model of timm, with its own weights, a file's, or random ones."""

from __future__ import annotations

import importlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

import layertap
from layertap_plugins.models import building, checkpoints, hub, weights
from layertap_plugins.models.entries import Candidate
from layertap_plugins.models.weights import Entry, Pin, Prefix
from layertap_plugins.preprocessors.composed import TimmTransform

if TYPE_CHECKING:
    from torch import Tensor, nn

DEFAULT = "DEFAULT"
# With everything that begins with "pretrained": they would make timm fetch weights itself, or load a part of them.
_OURS = frozenset({"checkpoint_path", "cache_dir"})


class TimmModel(layertap.ModelProvider):
    """A model of timm; its preprocessor is the transform that timm evaluates it with."""

    extra = "timm"

    class Params(layertap.Params):
        name: str = Field(
            description="a model of timm, with or without a tag (resnet50, resnet50.a1_in1k), hf-hub:OWNER/NAME, or "
            "local-dir:PATH of a folder with config.json and weights"
        )
        weights: str = Field(
            DEFAULT,
            min_length=1,
            description="DEFAULT (the name's own), another tag of the model (a1_in1k), the path of a .pth, .pt, .bin "
            "or .safetensors file, random (seeded), or package:NAME/path/in/package, a file of an installed package",
        )
        weights_sha256: Pin = None
        weights_entry: Entry = None
        weights_prefix: Prefix = None
        args: dict[str, Any] = Field(
            default_factory=dict, description="arguments of the architecture, such as {num_classes: 0, img_size: 384}"
        )

    params: Params

    def load(self) -> layertap.LoadedModel:
        """The model on the CPU. Raises `ConfigError`, `WeightsError` and `UnsafeError`; draws from no random state."""
        timm: Any = importlib.import_module("timm")
        reference = self.params.weights
        _refuse(self.params.args)
        origin = _origin(self.params.name)
        if reference in origin.tags:
            origin, reference = _registered(f"{origin.architecture}.{reference}"), DEFAULT
        about: dict[str, Any] = {
            "library": "timm",
            "library_version": timm.__version__,
            "name": self.params.name,
            "weights": self.params.weights,
            **weights.NO_FILE,
            "untrained": reference == weights.RANDOM,
        }
        if reference == weights.RANDOM:
            module = self._suited(origin)
        else:
            path = origin.weights() if reference == DEFAULT else weights.locate(reference, (DEFAULT, *origin.tags))
            checkpoint = checkpoints.read(path, self.params.weights_sha256, named=reference == DEFAULT)
            if reference == DEFAULT:
                module, facts = checkpoint.loaded(lambda each: self._with_own(origin, each.state, path), self.params)
                facts |= {"weights_name": origin.name, "revision": origin.files and origin.files.revision}
            else:
                unfilled = self._suited(origin)
                module, facts = checkpoint.loaded(
                    lambda each: self._with_other(origin, unfilled, each, path), self.params, unfilled
                )
            about |= facts
            checkpoints.check_finite(module, path)
        preprocessor = _preprocessor(module, self.params.args)
        advice = _advice(module, self.params.args) if preprocessor is None else ""
        return layertap.LoadedModel(module, preprocessor, {**about, **_facts(module)}, advice)

    def _with_own(self, origin: _Origin, state: Mapping[str, Tensor], path: Path) -> nn.Module:
        classes = origin.classes
        asked = self.params.args.get("num_classes", classes)
        if asked not in (0, classes):
            raise layertap.ConfigError(
                f"the weights of {origin.name} have {classes} classes, so a head of {asked} would be "
                "untrained; leave num_classes out, or set it to 0 for a model without a head",
                where=("args",),
            )
        try:
            return self._suited(origin, {"state_dict": state})
        except layertap.LayertapError:
            raise
        except Exception as error:
            raise layertap.WeightsError(
                f"{str(path)!r} does not fit {origin.name}: {weights.brief(error)}", where=("weights",)
            ) from error

    def _with_other(self, origin: _Origin, unfilled: nn.Module, candidate: Candidate, path: Path) -> nn.Module:
        classes = getattr(unfilled, "num_classes", None)
        try:
            checkpoints.fit(unfilled, candidate.state, path, classes)
        except layertap.WeightsError:
            # They may be the authors' own names, which timm converts. Everything must fit then, the head included.
            with suppress(Exception):
                own = OrderedDict(candidate.state)  # some converters change what they are given
                return self._build(origin, {"state_dict": own, "num_classes": classes, "label_offset": 0})
            raise
        return unfilled

    def _suited(self, origin: _Origin, overlay: Mapping[str, Any] | None = None) -> nn.Module:
        with building.suited(origin.name, self.params.args, published=origin.published):
            return self._build(origin, overlay)

    def _build(self, origin: _Origin, overlay: Mapping[str, Any] | None = None) -> nn.Module:
        """The architecture, with the state in `overlay` loaded as timm loads its own, or its seeded initial values."""
        timm: Any = importlib.import_module("timm")
        # A source that comes with the name would win over the state.
        own = {"pretrained_cfg_overlay": {"source": None, "file": None, **overlay}} if overlay else {}
        with building.seeded():
            module: nn.Module = timm.create_model(origin.place, pretrained=bool(overlay), **own, **self.params.args)
        for config in (getattr(module, "pretrained_cfg", {}), getattr(module, "default_cfg", {})):
            config.pop("state_dict", None)  # a second copy in memory
        return module


@dataclass(frozen=True)
class _Origin:
    """What a name stands for: an architecture, and where its weights are."""

    name: str
    architecture: str
    place: str
    """What timm's create_model takes."""
    classes: int | None
    files: hub.Files | None
    file: str = "pytorch_model.bin"
    url: str | None = None
    tags: tuple[str, ...] = ()
    """The tags of the architecture that have weights."""
    published: bool = False
    """Whether somebody other than timm says what it is."""

    def weights(self) -> Path:
        """The file of its own weights. Raises `WeightsError`."""
        if self.files is not None:
            return hub.weights_file(self.files, self.file)
        if self.url:
            return weights.cached(self.url)
        raise layertap.WeightsError(
            f"timm has no weights for {self.name} (tags of {self.architecture} that have: "
            f"{', '.join(self.tags) or 'none'}); set model.weights=PATH, or model.weights={weights.RANDOM}",
            where=("weights",),
        )


def _origin(name: str) -> _Origin:
    kind, _, place = name.partition(":")
    if kind == "hf-hub" and place:
        return _published(name, hub.Repository(place))
    if kind == "local-dir" and place:
        return _published(name, hub.Folder(place))
    return _registered(name)


def _registered(name: str) -> _Origin:
    """A name of timm's registry. Raises `ConfigError` with the nearest."""
    timm: Any = importlib.import_module("timm")
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = weights.nearest(architecture, timm.list_models())
        raise layertap.ConfigError(f"timm has no model {name!r}{near}", where=("name",))
    entries = {
        key.partition(".")[2]: entry for key, entry in timm.models.get_arch_pretrained_cfgs(architecture).items()
    }
    if tag and tag not in entries:
        near = weights.nearest(tag, entries) or f" (it has {', '.join(filter(None, entries)) or 'none'})"
        raise layertap.ConfigError(f"timm's {architecture} has no tag {tag!r}{near}", where=("name",))
    tag = tag or next(iter(entries), "")  # the first is timm's default
    entry, full = entries.get(tag), f"{architecture}.{tag}".removesuffix(".")
    return _Origin(
        name=full,
        architecture=architecture,
        place=full,
        classes=entry and entry.num_classes,
        files=hub.Repository(entry.hf_hub_id) if entry and entry.hf_hub_id else None,
        file=(entry and entry.hf_hub_filename) or _Origin.file,
        url=entry.url if entry and isinstance(entry.url, str) else None,
        tags=tuple(key for key, value in entries.items() if key and value.has_weights),
    )


def _published(name: str, files: hub.Files) -> _Origin:
    """A model that somebody saved for the hub: config.json says what it is. Raises `ConfigError` and `WeightsError`."""
    timm: Any = importlib.import_module("timm")
    path = files.find("config.json")
    if path is None:
        raise layertap.WeightsError(f"{files.label} has no config.json", where=("name",))
    config = hub.read_json(path)
    architecture, args = config.get("architecture"), config.get("model_args") or {}
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        raise layertap.ConfigError(f"timm has no model {architecture!r}, which {path} names", where=("name",))
    _refuse(args)
    classes = config.get("num_classes", config.get("pretrained_cfg", config).get("num_classes"))
    return _Origin(name, architecture, f"local-dir:{path.parent}", classes, files, published=True)


def _refuse(args: Mapping[str, Any]) -> None:
    building.refuse(args, [key for key in args if key in _OURS or key.startswith("pretrained")])


def _data_config(module: nn.Module, args: Mapping[str, Any]) -> tuple[Mapping[str, Any], int]:
    """timm's data config of a model at the size that it was built for, and the number of its input channels."""
    data: Any = importlib.import_module("timm.data")
    size = args.get("img_size")
    sides = (size, size) if isinstance(size, int) else size
    config: Mapping[str, Any] = data.resolve_model_data_config(module, {"input_size": (3, *sides)} if sides else None)
    return config, args.get("in_chans", config["input_size"][0])


def _advice(module: nn.Module, args: Mapping[str, Any]) -> str:
    """Which preprocessing to set for a model of other than three channels."""
    config, channels = _data_config(module, args)
    if channels != 1:
        return f"it takes {channels} channels, and the installed preprocessors give 3 or 1: use one of your own"
    mean, std = (round(sum(config[key]) / len(config[key]), 4) for key in ("mean", "std"))
    resize, floats = f"{{Resize: {list(config['input_size'][1:])}}}", "{ToDtype: {dtype: float32, scale: true}}"
    steps = f"[{resize}, Grayscale, ToImage, {floats}, {{Normalize: {{mean: [{mean}], std: [{std}]}}}}]"
    return (
        f"it takes 1 channel: set `preprocess: {{type: torchvision, transforms: {steps}}}`, with the mean and std that "
        "it was trained with"
    )


def _preprocessor(module: nn.Module, args: Mapping[str, Any]) -> TimmTransform | None:
    """timm's transform of the model's data config; None for a model of other than three channels."""
    config, channels = _data_config(module, args)
    if channels != 3:
        return None
    return TimmTransform.of(
        size=tuple(config["input_size"][1:]),
        **{key: config[key] for key in ("crop_pct", "crop_mode", "interpolation", "mean", "std")},
    )


def _facts(module: nn.Module) -> dict[str, Any]:
    head = getattr(module, "get_classifier", lambda: None)()
    facts: dict[str, Any] = {"layout": building.layout(module, head if hasattr(head, "modules") else None)}
    prefix = getattr(module, "num_prefix_tokens", None)
    if isinstance(prefix, int):
        facts["num_prefix_tokens"] = prefix
    fused = [layer.fused_attn for layer in module.modules() if isinstance(getattr(layer, "fused_attn", None), bool)]
    if fused:
        facts["attention"] = "fused" if all(fused) else "plain" if not any(fused) else "mixed"
    return facts


@layertap.hookimpl
def register_models(register: Callable[[str, type[layertap.ModelProvider]], None]) -> None:
    register("timm", TimmModel)
