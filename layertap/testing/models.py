"""The promises of a model provider."""

from __future__ import annotations

import json
import re
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from layertap.contracts import LoadedModel, ModelProvider, Preprocessor
from layertap.images.batches import Slot
from layertap.pipeline.device import find_device, ready
from layertap.testing.promises import Suite, promise

_FACTS = {"layout": {None, "NCHW", "NHWC"}}


class ModelProviderSuite(Suite[ModelProvider]):
    """A model provider loads the same weights every time, and states facts about them that JSON can hold.

    Test it with a small model and weights that need no network. Override `inputs` if the provider gives no preprocessor
    and the model does not take `(N, 3, 224, 224)`.
    """

    kind = ModelProvider

    def inputs(self, loaded: LoadedModel) -> Tensor:
        """Two images in the form that the model takes."""
        if loaded.preprocessor is None:
            return torch.rand((2, 3, 224, 224), generator=torch.Generator().manual_seed(0))
        slot = Slot.of(loaded.preprocessor, torch.device("cpu"))
        batch = slot.zeros(2)
        batch[1] = loaded.preprocessor.prepare(Image.linear_gradient("L").convert("RGB"))
        return loaded.preprocessor.finish(batch)

    def test_loads_a_model_on_the_cpu(self) -> None:
        loaded = self.plugin().load()
        promise(
            isinstance(loaded, LoadedModel) and isinstance(loaded.module, nn.Module),
            f"load() gives a {type(loaded).__name__}",
            "return layertap.LoadedModel(module, preprocessor, about)",
        )
        away = [name for name, value in loaded.module.state_dict().items() if value.device.type != "cpu"]
        promise(not away, f"{away[:1]} is not on the CPU", "leave the choice of device to the core")
        promise(
            loaded.preprocessor is None or isinstance(loaded.preprocessor, Preprocessor),
            f"its preprocessor is a {type(loaded.preprocessor).__name__}",
            "return a layertap.Preprocessor, or None",
        )

    def test_weights_are_the_same_every_time(self) -> None:
        one, other = self.plugin().load().module.state_dict(), self.plugin().load().module.state_dict()
        keys = one.keys() | other.keys()
        differing = [key for key in keys if key not in one or key not in other or _differ(one[key], other[key])]
        promise(
            not differing,
            f"two loads differ in {sorted(differing)[:3]}",
            "load every weight, or draw random ones under torch.random.fork_rng() and a fixed seed",
        )

    def test_random_state_is_left_alone(self) -> None:
        before = torch.get_rng_state()
        self.plugin().load()
        promise(
            torch.equal(before, torch.get_rng_state()),
            "load() uses or seeds the random state of the whole process",
            "build under `with torch.random.fork_rng(devices=[]):`",
        )

    def test_forward_is_the_same_every_time(self) -> None:
        loaded = self.plugin().load()
        inputs = self.inputs(loaded)
        with ready(loaded.module, find_device("cpu")), torch.no_grad():
            one, other = (list(_tensors(loaded.module(inputs.clone()))) for _ in range(2))
        promise(one, "a forward pass gives no tensor", "return a module with a forward that returns tensors")
        promise(
            len(one) == len(other) and not any(map(_differ, one, other)),
            "two forward passes in eval mode on the same images differ",
            "remove random operations, and let .eval() turn off dropout",
        )

    def test_facts_survive_json(self) -> None:
        about = dict(self.plugin().load().about)
        try:
            again = json.loads(json.dumps(about, allow_nan=False))
        except (TypeError, ValueError) as error:
            again = error
        promise(again == about, f"about does not survive JSON ({again})", "use text, numbers, booleans, lists and None")
        layout, prefix = about.get("layout"), about.get("num_prefix_tokens")
        promise(
            layout in _FACTS["layout"],
            f"its layout is {layout!r}",
            "set NCHW, NHWC, or None if there is no single layout",
        )
        promise(prefix is None or isinstance(prefix, int), f"num_prefix_tokens is {prefix!r}", "give a whole number")
        sha256 = about.get("weights_sha256")
        promise(
            sha256 is None or re.fullmatch("[0-9a-f]{64}", str(sha256)),
            f"weights_sha256 is {sha256!r}",
            "give all 64 digits of the file's sha256, or None if the weights are not a file",
        )


def _differ(one: Tensor, other: Tensor) -> bool:
    return one.dtype != other.dtype or not torch.equal(one, other)


def _tensors(value: Any) -> list[Tensor]:
    """The tensors in the result of a forward pass, however nested."""
    if isinstance(value, Tensor):
        return [value]
    inner = value.values() if hasattr(value, "values") else value if isinstance(value, (list, tuple)) else ()
    return [tensor for item in inner for tensor in _tensors(item)]
