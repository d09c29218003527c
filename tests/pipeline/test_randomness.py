"""A model that gives other values for the same images is refused, or seeded so that every row can be made again."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import layertap
from layertap import ConfigError, TapError
from layertap.cli.plan import forecast
from layertap.pipeline.verify import verify
from tests.models import Returning
from tests.pipeline.test_pipeline import contents

RANDOM = str(Path(__file__).parents[1] / "randomness.py")


def images(count: int = 5) -> list[Image.Image]:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    return [Image.fromarray(image) for image in pixels]


def prepare(image: Image.Image) -> torch.Tensor:
    return torch.tensor(np.asarray(image.resize((6, 6)))).permute(2, 0, 1) / 255


def extracted(make, tap="layer", **options):
    model = nn.Sequential()
    model.add_module("first", nn.Identity())
    model.add_module("layer", make if isinstance(make, nn.Module) else Returning(make))
    found = layertap.extract(model, images(), sorted({"first", tap}), preprocess=prepare, batch_size=2, **options)
    return torch.cat([batch.values[tap] for batch in found])


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x + self.calls


class Averaging(nn.Module):
    """Normalises by running statistics that it also updates, in eval mode too."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(1))

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.mean()
        return x - self.mean


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.state = nn.GRUCell(3, 3), None

    def forward(self, x):
        features = x.mean((2, 3))
        if self.state is None or len(self.state) != len(features):
            self.state = torch.zeros_like(features)
        self.state = self.cell(features, self.state)
        return self.state


class OwnGenerator(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x):
        return x + torch.rand(x.shape, generator=self.generator)


def rarely(x):
    """As stochastic depth for the whole batch does: it leaves something out one time in five."""
    return x * float(torch.rand(()) > 0.2)


DRAWING = {
    "mask": lambda x: x * torch.bernoulli(torch.full_like(x, 0.5)),
    "dropout": lambda x: F.dropout(x, 0.1, training=True),
    "noise": lambda x: x + 1e-6 * torch.randn_like(x),
    "scaled noise": lambda x: x * (1 + 0.1 * torch.randn_like(x)),
    "stochastic depth": rarely,
    "shuffled rows": lambda x: x[:, :, torch.randperm(x.shape[2])],
    "random slope": lambda x: F.rrelu(x - 0.5, training=True),
    "gumbel": lambda x: F.gumbel_softmax(x, dim=1),
    "fractional pool": nn.FractionalMaxPool2d(2, output_ratio=0.7),
    "numpy": lambda x: x + float(np.random.rand()),
    "python": lambda x: x * random.random(),
    "in place": lambda x: x.clone().exponential_() + x,
}


@pytest.mark.parametrize("make", DRAWING.values(), ids=DRAWING)
def test_model_that_draws_random_numbers_is_refused_or_seeded(make):
    with pytest.raises(
        TapError, match=r"tap 'layer': the model gives different values .*set nondeterministic to `seed`"
    ):
        extracted(make)
    states = torch.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate()
    first = extracted(make, nondeterministic="seed")
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tobytes(), random.getstate()) == states[1:]
    torch.manual_seed(7)
    assert torch.equal(extracted(make, nondeterministic="seed"), first)


@pytest.mark.parametrize("make", [Counting, Averaging, Recurrent, OwnGenerator])
@pytest.mark.parametrize("choice", ["refuse", "seed"])
def test_model_that_keeps_state_is_refused_with_or_without_a_seed(make, choice):
    with pytest.raises(TapError, match=r"tap 'layer': .*even with the same random seed"):
        extracted(make(), nondeterministic=choice)
    assert extracted(make(), tap="first", nondeterministic=choice).shape == (5, 3, 6, 6)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.log(),
        lambda x: x / torch.where(x > 0.5, 0.0, 1.0) * float("nan"),
        lambda x: torch.complex(x, x / 0),
        lambda x: x.to(torch.bfloat16),
        lambda x: (x > 0.5).sum((1, 2, 3)),
        lambda x: (torch.rand(()), x)[1],
        nn.Dropout(),
    ],
)
def test_model_that_gives_the_same_values_is_taken(make):
    with np.errstate(all="ignore"):
        assert len(extracted(make)) == 5


def test_model_that_takes_another_way_on_noise_is_repeated_on_black_images():
    class Brightness(nn.Module):
        def __init__(self):
            super().__init__()
            self.extra, self.always = nn.Tanh(), nn.Flatten()

        def forward(self, x):
            return self.always(self.extra(x) if x.mean() > 0.1 else x)

    dark = [Image.new("RGB", (6, 6))] * 3
    (batch,) = layertap.extract(Brightness(), dark, "*", preprocess=prepare)
    assert list(batch.values) == ["always"]


def test_unknown_choice_is_refused():
    with pytest.raises(ConfigError, match="nondeterministic must be `refuse` or `seed`, not 'ignore'"):
        extracted(nn.Identity(), nondeterministic="ignore")


def config(photos, out, **changes):
    return {
        "model": {"type": "random"},
        "taps": ["1"],
        "source": {"type": "folder", "path": str(photos)},
        "sink": {"type": "npy", "path": str(out)},
        "device": "cpu",
        "batch_size": 2,
        "shard_rows": 4,
        "observers": [],
        **changes,
    }


def test_run_and_plan_refuse_it_and_write_nothing(photos, tmp_path):
    for command in (layertap.run, forecast):
        with pytest.raises(TapError, match=r"taps.*tap '1': the model gives different values") as caught:
            command(config(photos, tmp_path / "out"), plugins=[RANDOM])
        assert caught.value.code == 2
    assert not (tmp_path / "out").exists()


def test_seeded_output_is_the_same_resumed_and_can_be_verified(photos, tmp_path):
    whole = config(photos, tmp_path / "whole", nondeterministic="seed")
    layertap.run(whole, plugins=[RANDOM])
    part = config(photos, tmp_path / "part", nondeterministic="seed")
    stop = [{"type": "stop", "after": 10}]
    with pytest.raises(layertap.PluginError):
        layertap.run({**part, "observers": stop}, plugins=[RANDOM])
    torch.manual_seed(9)
    layertap.run(part, plugins=[RANDOM])
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")
    values = layertap.open(tmp_path / "whole")["1"]
    assert len(np.unique(np.asarray(values)[:, 0, 0, 0])) > len(values) // 4, (
        "every batch has random numbers of its own"
    )
    verdict = verify(tmp_path / "whole", rows=9, plugins=[RANDOM])
    assert (verdict.faults, verdict.difference) == ([], 0)
    manifest = json.loads((tmp_path / "whole/manifest.json").read_text())
    assert manifest["fingerprint"]["nondeterministic"] == manifest["config"]["nondeterministic"] == "seed"


def test_default_is_not_in_the_fingerprint_so_that_older_outputs_resume(photos, tmp_path):
    layertap.run(config(photos, tmp_path / "out", taps=["0"]), plugins=[RANDOM])
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert "nondeterministic" not in manifest["fingerprint"]
    changed = config(photos, tmp_path / "out", taps=["0"], nondeterministic="seed")
    with pytest.raises(layertap.StoreError, match="nondeterministic was null, now"):
        layertap.run(changed, plugins=[RANDOM])


def test_retried_rows_are_seeded_as_in_a_whole_run(photos, tmp_path):
    import shutil

    shutil.copytree(photos, tmp_path / "photos")
    name = sorted(tmp_path.glob("photos/*/*.jpg"))[9]
    layertap.run(config(tmp_path / "photos", tmp_path / "whole", nondeterministic="seed"), plugins=[RANDOM])
    away = name.with_suffix(".away")
    name.rename(away)
    name.symlink_to(tmp_path / "nowhere.jpg")
    layertap.run(config(tmp_path / "photos", tmp_path / "out", nondeterministic="seed"), plugins=[RANDOM])
    name.unlink()
    away.rename(name)
    again = config(tmp_path / "photos", tmp_path / "out", nondeterministic="seed")
    layertap.run(again, plugins=[RANDOM], retry_failed=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
