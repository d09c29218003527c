"""The tools of the comparison, each as one function: model, layers, batches -> values by layer, batch by batch."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn

Values = dict[str, Any]
Extract = Callable[[nn.Module, list[str], list[Tensor]], list[Values]]


@dataclass(frozen=True)
class Tool:
    """One way to get features, with its defaults."""

    name: str
    distribution: str
    extract: Extract
    rows: bool = False
    """Whether it gives one row per image over several batches, rather than the layer's tensor."""
    flattens: bool = False
    calls: str | None = None
    """How it names a layer's later call, if it can."""
    parts: bool = False
    """Whether it names one tensor of a structure."""

    @property
    def version(self) -> str | None:
        try:
            return version(self.distribution)
        except PackageNotFoundError:
            return None


def tap(model: nn.Module, layers: list[str], batches: list[Tensor]) -> list[Values]:
    import layertap

    with layertap.tap(model, layers) as taps:
        return [taps.run(x) for x in batches]


def extract(model: nn.Module, layers: list[str], batches: list[Tensor]) -> list[Values]:
    import layertap

    # Images that only say which row of the input they represent.
    rows = [row for x in batches for row in x]
    images = [Image.new("RGB", (1, 1), (number, 0, 0)) for number in range(len(rows))]

    def row(image: Image.Image) -> Tensor:
        return rows[image.getpixel((0, 0))[0] % len(rows)]

    size = len(batches[0])
    found = layertap.extract(model, images, layers, preprocess=row, batch_size=size, device="cpu", workers=1)
    return [dict(batch.values) for batch in found]


def torchvision(model: nn.Module, layers: list[str], batches: list[Tensor]) -> list[Values]:
    from torchvision.models.feature_extraction import create_feature_extractor

    extractor = create_feature_extractor(model, return_nodes=layers)
    return [extractor(x) for x in batches]


def torchextractor(model: nn.Module, layers: list[str], batches: list[Tensor]) -> list[Values]:
    import torchextractor

    extractor = torchextractor.Extractor(model, layers)
    # Each forward pass changes its dictionary; according to its documentation, copying it is up to the caller.
    return [dict(extractor(x)[1]) for x in batches]


def timm(model: nn.Module, layers: list[str], batches: list[Tensor]) -> list[Values]:
    from timm.models import FeatureHookNet

    model.feature_info = [{"num_chs": 1, "reduction": 1, "module": layer} for layer in layers]
    net = FeatureHookNet(model, out_indices=tuple(range(len(layers))), out_map=layers, return_dict=True)
    return [net(x) for x in batches]


def captum(model: nn.Module, layers: list[str], batches: list[Tensor]) -> list[Values]:
    from captum.attr import LayerActivation

    modules = [model.get_submodule(layer) for layer in layers]
    activation = LayerActivation(model, modules)
    return [dict(zip(layers, activation.attribute(x), strict=True)) for x in batches]


def thingsvision(model: nn.Module, layers: list[str], batches: list[Tensor], flatten: bool = False) -> list[Values]:
    extractor_of = _thingsvision_extractor()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        extractor = extractor_of("ours", False, "cpu", model=model)
        found = extractor.extract_features(batches, module_names=layers, flatten_acts=flatten, output_type="tensor")
    lengths = [len(x) for x in batches]
    split = {layer: value.split(lengths) for layer, value in found.items()}
    return [{layer: values[number] for layer, values in split.items()} for number in range(len(batches))]


def _thingsvision_extractor() -> Any:
    """Its unchanged extractor for PyTorch, without the `__init__` files that also import TensorFlow."""
    spec = importlib.util.find_spec("thingsvision")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    root = Path(spec.submodule_search_locations[0])
    for name in ("thingsvision", "thingsvision.core", "thingsvision.core.extraction", "thingsvision.utils"):
        if name not in sys.modules:
            sys.modules[name] = package = types.ModuleType(name)
            package.__spec__ = spec
            package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
    return importlib.import_module("thingsvision.core.extraction.torch").PyTorchExtractor


TOOLS = [
    Tool("layertap.tap", "layertap", tap, flattens=True, calls="{}:{}", parts=True),
    Tool("layertap.extract", "layertap", extract, rows=True, flattens=True, calls="{}:{}", parts=True),
    Tool("torchvision", "torchvision", torchvision, calls="{}_{}"),
    Tool("torchextractor", "torchextractor", torchextractor),
    Tool("timm", "timm", timm),
    Tool("captum", "captum", captum),
    Tool("thingsvision", "thingsvision", thingsvision, rows=True, flattens=True),
]
