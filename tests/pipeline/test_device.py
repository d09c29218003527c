"""How the model computes: opt-in formats and dtypes, batches found by themselves, transfers beside the computing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import layertap
from layertap.images.batches import Slot
from layertap.pipeline import forward as line_module
from layertap.pipeline.device import rounding
from layertap.pipeline.forward import ForwardPass
from layertap.pipeline.transfer import Direct, transfer_for
from layertap.taps.tapped import TappedModel
from tests.conftest import TINY
from tests.pipeline.test_pipeline import config, run
from tests.tiny import Squash


def test_exact_is_the_default_and_bit_identical_to_saying_so(photos):
    plain, said = run(photos, None), run(photos, None, profile="exact")
    assert plain.values["classifier"].tobytes() == said.values["classifier"].tobytes()


@pytest.mark.parametrize("profile", ["fast", {"memory_format": "channels_last"}])
def test_fast_profile_changes_values_a_little_and_the_manifest_says_so(photos, tmp_path, profile):
    exact = run(photos, None).values["classifier"]
    run(photos, tmp_path / "out", profile=profile)
    features = layertap.open(tmp_path / "out")
    assert np.allclose(features["classifier"][:], exact, atol=0.05)
    assert features.manifest["fingerprint"]["profile"]["memory_format"] == "channels_last"
    with pytest.raises(layertap.StoreError, match="profile was"):
        run(photos, tmp_path / "out")


def test_model_lies_as_it_lay_once_the_run_is_over(photos, tmp_path):
    (tmp_path / "kept.py").write_text(
        "import layertap\nfrom tests.tiny import Tiny\n"
        "class Kept(Tiny):\n"
        "    def load(self):\n"
        "        loaded = super().load(); KEPT.append(loaded.module); return loaded\n"
        "import tests.pipeline.test_device as here\nKEPT = here.KEPT\n"
        "@layertap.hookimpl\n"
        "def register_models(register): register('kept', Kept)\n"
    )
    kept = config(photos, None, model="kept", profile="fast")
    layertap.run(kept, plugins=[TINY, str(tmp_path / "kept.py")])
    assert KEPT.pop().features[0].weight.is_contiguous()


KEPT: list[nn.Sequential] = []


def test_autocast_computes_in_the_dtype_asked_for(photos, tmp_path):
    run(photos, tmp_path / "out", autocast="bfloat16")
    features = layertap.open(tmp_path / "out")
    assert str(features["classifier"].dtype) == "bfloat16"
    exact = run(photos, None).values["classifier"]
    assert np.allclose(features["classifier"][:].astype(np.float32), exact, atol=0.05)
    with pytest.raises(layertap.StoreError, match="autocast was"):
        run(photos, tmp_path / "out")


def test_batch_size_auto_is_a_power_of_two_and_a_resume_keeps_to_it(photos, tmp_path, monkeypatch):
    auto = {"batch_size": "auto", "observers": [{"type": "stop", "after": 16}]}
    with pytest.raises(layertap.PluginError, match="stopped"):
        run(photos, tmp_path / "out", **auto)
    assert layertap.open(tmp_path / "out").manifest["batch_size"] == 16
    monkeypatch.setattr("layertap.pipeline.memory._LARGEST_ON_CPU", 4)
    assert run(photos, tmp_path / "out", batch_size="auto").kept == 20
    assert layertap.open(tmp_path / "out").manifest["batch_size"] == 16


def test_batch_size_auto_divides_the_shard_that_is_asked_for(photos, tmp_path):
    run(photos, tmp_path / "out", batch_size="auto", shard_rows=12)
    assert layertap.open(tmp_path / "out").manifest["batch_size"] == 4


@pytest.mark.parametrize("wrong", ["quick", {"resize": "rough"}, {"memory": 1}])
def test_profile_that_is_none_is_told(photos, tmp_path, wrong):
    with pytest.raises(layertap.ConfigError, match="profile"):
        run(photos, tmp_path / "out", profile=wrong)


def test_rounding_is_put_back():
    before = torch.backends.cudnn.allow_tf32
    with rounding(not before):
        assert torch.backends.cudnn.allow_tf32 is not before
    assert torch.backends.cudnn.allow_tf32 is before
    with rounding(None):
        assert torch.backends.cudnn.allow_tf32 is before


class Late(Direct):
    """As on a GPU: values come when the next batch is on its way, and not before they are asked for."""

    behind = 1

    def fetch(self, values):
        kept = {name: value.clone() for name, value in values.items()}
        return lambda: kept


def test_values_that_come_late_belong_to_their_batch(photos, monkeypatch):
    plain = run(photos, None)
    monkeypatch.setattr(line_module, "transfer_for", Late)
    late = run(photos, None)
    assert late.ids == plain.ids
    for tap, values in plain.values.items():
        assert values.tobytes() == late.values[tap].tobytes()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_no_pinned_slot_is_overwritten_and_nothing_is_read_before_it_is_there():
    """Kernels that take long between the copies: an unsynchronised read would see zeros or another batch."""

    class Slow(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch.cuda._sleep(20_000_000)
            return x.flatten(1).sum(1, keepdim=True) + 0

    device = torch.device("cuda", 0)
    module = Slow().to(device)
    slot = Slot((3, 64, 64), torch.uint8)
    with TappedModel(module, ".") as tapped:
        tested = ForwardPass(tapped, Squash.of(), slot, device)
        columns = tested.probe()
        sent: list[float] = []

        def batches():
            for number in range(64):
                pixels = torch.full((8, 3, 64, 64), number, dtype=torch.uint8).pin_memory()
                sent.append(number / 255 * 3 * 64 * 64)
                yield line_module.Batch([layertap.ImageRecord(f"{number}-{slot}", b"") for slot in range(8)], pixels)

        found = [activations.values["."] for _, activations in tested.activations(batches(), columns)]
    assert transfer_for(device).behind == 1
    for expected, values in zip(sent, found, strict=True):
        assert torch.allclose(values, torch.full_like(values, expected), rtol=1e-4)


@pytest.mark.parametrize(("isolation", "decode"), [("thread", "scaled"), ("process", "whole")])
def test_fast_profile_decodes_large_photographs_at_a_part_of_their_size(tmp_path, photographs, isolation, decode):
    (tmp_path / "photos").mkdir()
    photographs[0].resize((1600, 1200)).save(tmp_path / "photos/large.jpg")
    preprocess = {"type": "imagenet", "resize": 20, "crop": 16}
    taps = ["features.0"]
    fast = {"preprocess": preprocess, "taps": taps, "profile": "fast", "isolation": isolation}
    report = run(tmp_path / "photos", tmp_path / "out", **fast)
    assert (report.kept, report.notes.get("scaled", 0)) == (1, int(decode == "scaled"))
    assert layertap.open(tmp_path / "out").manifest["fingerprint"]["profile"]["decode"] == decode
    exact = run(tmp_path / "photos", None, preprocess=preprocess, taps=taps).values["features.0"]
    assert np.allclose(layertap.open(tmp_path / "out")["features.0"][:], exact, atol=0.5)
