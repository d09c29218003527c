"""Any model of torchvision.models, with its own weights, a file's, or random ones."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import Field

import layertap
from layertap_plugins.models import building, checkpoints, hollow, weights
from layertap_plugins.models.entries import Candidate
from layertap_plugins.models.weights import Entry, Pin, Prefix
from layertap_plugins.preprocessors.imagenet import ImageNet

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

# They would make a builder fetch and unpickle weights past every check here.
_OURS = frozenset({"weights", "weights_backbone", "pretrained", "pretrained_backbone"})
# They permute or window the axes inside: their maps have no single layout, and leaving it out would mean NCHW.
_MIXED_LAYOUT = ("convnext", "maxvit", "mvit", "swin")
# Old DenseNet checkpoints have `denselayer1.norm.1.weight` for today's `denselayer1.norm1.weight`.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)")


class TorchvisionModel(layertap.ModelProvider):
    """A model of torchvision.models; its preprocessor is the transform that its weights were evaluated with."""

    class Params(layertap.Params):
        name: str = Field("alexnet", description="a model of torchvision.models, as its list_models() names it")
        weights: str = Field(
            "DEFAULT",
            min_length=1,
            description="a torchvision weights name of the model (DEFAULT, IMAGENET1K_V1), the path of a .pth, .pt or "
            ".safetensors file, random (seeded), or package:NAME/path/in/package, a file of an installed package",
        )
        weights_sha256: Pin = None
        weights_entry: Entry = None
        weights_prefix: Prefix = None
        args: dict[str, Any] = Field(
            default_factory=dict, description="arguments of the architecture, such as {num_classes: 10}"
        )

    params: Params

    def load(self) -> layertap.LoadedModel:
        """The model on the CPU. Raises `ConfigError`, `WeightsError` and `UnsafeError`; draws from no random state."""
        import torchvision  # type: ignore[import-untyped]
        from torchvision import models

        name, reference = self.params.name, self.params.weights
        if name not in models.list_models():
            near = weights.nearest(name, models.list_models())
            raise layertap.ConfigError(f"torchvision has no model {name!r}{near}", where=("name",))
        # Unless asked to quantize, a quantizable model has the weights of its ordinary twin.
        entries = models.get_model_weights(name.removeprefix("quantized_"))
        about = {
            "library": "torchvision",
            "library_version": torchvision.__version__,
            "name": name,
            "weights": reference,
            **weights.NO_FILE,
            "untrained": reference == weights.RANDOM,
            **_facts(name),
        }
        if reference == weights.RANDOM:
            with building.suited(name, self.params.args), building.seeded():
                module: nn.Module = self._builder()()
            return _with_preprocessor(module, [entries.DEFAULT, *entries], about)
        entry, path = _find(entries, reference)
        checkpoint = checkpoints.read(path, self.params.weights_sha256, named=entry is not None)
        if entry is None:
            unfilled = self._unfilled()
            classes = self.params.args.get("num_classes", len(entries.DEFAULT.meta.get("categories", ())))

            def fill(candidate: Candidate) -> nn.Module:
                checkpoints.fit(unfilled, _today(name, candidate.state), path, classes)
                return unfilled

            module, facts = checkpoint.loaded(fill, self.params, unfilled)
        else:
            module, facts = checkpoint.loaded(
                lambda candidate: self._unfilled(_LoadedEntry(entry, candidate.state)), self.params
            )
            facts["weights_name"] = entry.name
        checkpoints.check_finite(module, path)
        about |= facts
        presets = [entries.DEFAULT, *entries] if entry is None else [entry]
        return _with_preprocessor(module, presets, about)

    def _unfilled(self, entry: _LoadedEntry | None = None) -> nn.Module:
        """The architecture on the CPU with the values of `entry`, or for every parameter to be loaded."""
        with building.suited(self.params.name, self.params.args):
            return hollow.built(self._builder(entry), lambda module: module, loads=entry is not None)

    def _builder(self, entry: _LoadedEntry | None = None) -> Callable[[], nn.Module]:
        """What builds the architecture, and loads `entry` into it."""
        from torchvision import models

        name, args = self.params.name, self.params.args
        building.refuse(args, _OURS)
        builder = models.get_model_builder(name)
        own: dict[str, Any] = {"weights": entry}
        if entry is None and "weights_backbone" in inspect.signature(builder).parameters:
            own["weights_backbone"] = None
        if entry is None and name.endswith(("googlenet", "inception_v3")):
            own["init_weights"] = True  # the default, about which they warn unless it is given
        return partial(builder, **{**own, **args})


class _LoadedEntry:
    """A weights entry whose state dict is read and checked already.

    A builder takes it for the entry itself, so that the model is set up exactly as torchvision does it for these
    weights (classes, image size, input transform, frozen norms, auxiliary heads), but unpickles nothing.
    """

    def __init__(self, entry: Any, state: Mapping[str, Tensor]) -> None:
        self._entry = entry
        self._state = state

    @property  # type: ignore[misc]  # read-only
    def __class__(self) -> type:  # builders check their argument with `isinstance`
        return type(self._entry)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._entry, name)

    def __eq__(self, other: object) -> bool:
        return bool(self._entry == other)

    def __hash__(self) -> int:
        return hash(self._entry)

    def get_state_dict(self, **_: Any) -> Mapping[str, Tensor]:
        return self._state


def _find(entries: Any, reference: str) -> tuple[Any, Path]:
    """The weights entry, None for a file that is not torchvision's own, and the file."""
    member = reference.removeprefix(f"{entries.__name__}.")
    if member in entries.__members__:
        entry = entries[member]
        return entry, weights.cached(entry.url)
    path = weights.locate(reference, entries.__members__)
    return next((entry for entry in entries if weights.file_name(entry.url) == path.name), None), path


def _today(name: str, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    if not name.startswith("densenet"):
        return state
    return {_OLD_DENSENET.sub(r"\1", key): value for key, value in state.items()}


def _preprocessor(entries: Iterable[Any], module: nn.Module) -> ImageNet | None:
    """The evaluation transform of the first entry that suits the module; None where it is not for classification."""
    from torchvision.transforms._presets import ImageClassification  # type: ignore[import-untyped]

    side = getattr(module, "image_size", None)  # a vision transformer takes one size only
    for preset in (entry.transforms() for entry in entries):
        if isinstance(preset, ImageClassification) and side in (None, *preset.crop_size):
            return ImageNet.of(
                resize=preset.resize_size[0],
                crop=preset.crop_size[0],
                mean=preset.mean,
                std=preset.std,
                interpolation=preset.interpolation.value,
            )
    return None


def _with_preprocessor(module: nn.Module, entries: Sequence[Any], about: Mapping[str, Any]) -> layertap.LoadedModel:
    preprocessor = _preprocessor(entries, module)
    advice = _advice(entries[0].transforms(), module) if preprocessor is None else ""
    return layertap.LoadedModel(module, preprocessor, about, advice)


def _advice(preset: Any, module: nn.Module) -> str:
    """Which preprocessing to set for a model whose own gives images of several shapes, or of another size."""
    kind = type(preset).__name__
    if kind == "ImageClassification":
        side = getattr(module, "image_size", None)
        resize = round(side * preset.resize_size[0] / preset.crop_size[0]) if side else preset.resize_size[0]
        numbers = f"resize: {resize}, crop: {side}, mean: {preset.mean}, std: {preset.std}"
        return f"it was built for {side} x {side}: set `preprocess: {{type: imagenet, {numbers}}}`"
    if kind == "SemanticSegmentation":
        side = preset.resize_size[0]
        numbers = f"mean: {preset.mean}, std: {preset.std}"
        return (
            f"its own keeps the aspect of an image, with a shorter side of {side}, and a batch has one shape: set "
            f"`preprocess: {{type: squash, size: {side}, {numbers}}}`, which is its own for square images; for images "
            f"that all have another aspect, give `size` as [HEIGHT, WIDTH] with {side} as the shorter"
        )
    if kind == "ObjectDetection":
        return _detector_advice(module.transform)
    return (
        f"it takes {'pairs of images' if kind == 'OpticalFlow' else 'clips of several frames'}, and a run gives a "
        "model one image per row"
    )


def _detector_advice(transform: Any) -> str:
    """The size at which a detector resizes nothing; it normalises in any case."""
    if transform.fixed_size is not None:
        width, height = transform.fixed_size
        return (
            f"it resizes every image to {width} x {height} and normalises inside: set "
            f"`preprocess: {{type: squash, size: [{height}, {width}]}}`"
        )
    fill = [round(255 * level) for level in transform.image_mean]
    side = transform.min_size[-1]
    return (
        f"it resizes to a shorter side of {side}, pads to one shape and normalises inside, and a run needs one shape "
        f"before: set `preprocess: {{type: letterbox, size: {side}, fill: {fill}}}`"
    )


def _facts(name: str) -> dict[str, Any]:
    facts: dict[str, Any] = {"layout": None if name.startswith(_MIXED_LAYOUT) else "NCHW"}
    if name.startswith("vit_"):
        facts["num_prefix_tokens"] = 1
    return facts


@layertap.hookimpl
def register_models(register: Callable[[str, type[layertap.ModelProvider]], None]) -> None:
    register("torchvision", TorchvisionModel)
