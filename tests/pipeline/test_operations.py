"""Operations through a whole run: stored, recorded, resumed, exported and recomputed as other taps are."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

import layertap
from layertap.pipeline.verify import verify
from layertap.taps.layers import unfused
from tests.conftest import TINY
from tests.models import seeded
from tests.pipeline.test_pipeline import config, contents, run

TAPS = ["features.0@conv2d", "<features.1@relu", {"layer": "classifier", "op": "linear", "name": "logits"}]


def test_operations_are_stored_and_recorded(photos, tmp_path):
    run(photos, tmp_path / "out", taps=[*TAPS, "features.0", "classifier"])
    found = layertap.open(tmp_path / "out")
    for operation, layer in (
        ("features.0@conv2d", "features.0"),
        ("<features.1@relu", "features.0"),
        ("logits", "classifier"),
    ):
        assert np.array_equal(found[operation][:], found[layer][:])
    facts = {name: (tap["layer"], tap["op"], tap["index"]) for name, tap in found.manifest["taps"].items()}
    assert facts["logits"] == ("classifier", "linear", None)
    assert facts["features.0"] == ("features.0", None, None)
    assert found.manifest["fingerprint"]["taps"][:2] == ["features.0@conv2d", "<features.1@relu"]
    found.export("safetensors", tmp_path / "exported", ["logits"])
    assert layertap.open(tmp_path / "exported").manifest["taps"]["logits"]["op"] == "linear"
    assert not verify(tmp_path / "out", plugins=[TINY]).faults


def test_run_with_operations_resumes_with_the_same_bytes(photos, tmp_path, monkeypatch):
    run(photos, tmp_path / "whole", taps=TAPS, shard_rows=4)
    from layertap.pipeline.forward import ForwardPass

    launched, batches = ForwardPass._launched, []

    def failing(self, *args):
        batches.append(args)
        if len(batches) > 6:
            raise KeyboardInterrupt
        return launched(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(ForwardPass, "_launched", failing)
        with pytest.raises(KeyboardInterrupt):
            run(photos, tmp_path / "out", taps=TAPS, shard_rows=4)
    assert not torch.overrides._get_current_function_mode_stack()
    run(photos, tmp_path / "out", taps=TAPS, shard_rows=4)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_another_operation_is_another_configuration(photos, tmp_path):
    run(photos, tmp_path / "out", taps=["features.0@conv2d"])
    with pytest.raises(layertap.StoreError, match=r"taps was .*features.0@conv2d"):
        run(photos, tmp_path / "out", taps=["features.1@relu"])


def test_outputs_from_before_operations_open_and_resume(photos, tmp_path):
    run(photos, tmp_path / "out", taps=["features.0"])
    path = tmp_path / "out/manifest.json"
    manifest = json.loads(path.read_text())
    for tap in manifest["taps"].values():
        assert [tap.pop(key) for key in ("op", "index", "derived", "batch_axis")] == [None, None, False, 0]
    path.write_text(json.dumps(manifest))
    before = contents(tmp_path / "out")
    assert layertap.open(tmp_path / "out").taps == ["features.0"]
    assert run(photos, tmp_path / "out", taps=["features.0"]).already
    assert contents(tmp_path / "out") == before


def test_faults_of_operations_come_before_the_first_image(photos, tmp_path):
    with pytest.raises(layertap.TapError, match="what ran there: linear") as error:
        run(photos, tmp_path / "out", taps=["features.0@conv2d", "classifier@softmax"])
    assert error.value.where == ("taps", 1)
    assert not (tmp_path / "out").exists()
    with pytest.raises(layertap.ConfigError, match="expected the name of a function"):
        run(photos, tmp_path / "out", taps=["classifier@"])
    with pytest.raises(layertap.ConfigError, match="needs `op`"):
        layertap.run(config(photos, None, taps=[{"layer": "classifier", "index": 0}]), plugins=[TINY])


def test_blocks_that_operations_take_from_the_fast_path_are_named():
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.Sequential(nn.TransformerEncoder(block, 2, enable_nested_tensor=False))
    assert unfused(encoder, ["0"], ["0"]) == ["0.layers.0", "0.layers.1"]
    assert unfused(encoder, ["0"]) == []
    assert unfused(nn.Sequential(seeded(lambda: nn.MultiheadAttention(8, 2))), ["0"], ["0"]) == ["0"]


def test_extract_takes_operations():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    images = [np.full((2, 2, 3), value, np.uint8) for value in (0, 100)]

    def prepared(image):
        return torch.tensor(np.asarray(image) / 255, dtype=torch.float32)

    (batch,) = layertap.extract(model, images, ["1@linear"], preprocess=prepared)
    with torch.no_grad():
        expected = model(torch.stack([prepared(image) for image in images]))
    assert torch.equal(batch.values["1@linear"], expected)


def test_attention_is_marked_as_derived(photos, tmp_path):
    tap = {"layer": "blocks.*.attn", "op": "attention", "reduce": ["mean_heads", "from_cls"]}
    model = {"type": "timm", "name": "test_vit", "weights": "random"}
    report = run(photos, tmp_path / "out", model=model, taps=[tap, "blocks.0@add:0"], limit=4)
    assert report.kept == 4
    found = layertap.open(tmp_path / "out")
    facts = found.manifest["taps"]["blocks.0.attn@attention"]
    assert (facts["op"], facts["derived"], facts["raw"]["axes"]) == ("attention", True, "NHQK")
    assert facts["shape"] == [10, 10]
    assert not found.manifest["taps"]["blocks.0@add:0"]["derived"]
    assert not verify(tmp_path / "out", plugins=[TINY]).faults


def test_batch_axis_of_an_operation_is_found_and_recorded(photos, tmp_path):
    model = {"type": "timm", "name": "test_vit", "weights": "random"}
    run(photos, tmp_path / "out", model=model, taps=["blocks.0.attn@permute", "blocks.0.attn@unbind[0]"], limit=4)
    found = layertap.open(tmp_path / "out")
    facts = found.manifest["taps"]
    assert facts["blocks.0.attn@permute"]["batch_axis"] == 1
    assert facts["blocks.0.attn@unbind[0]"]["batch_axis"] == 0
    assert np.array_equal(found["blocks.0.attn@permute"][:][:, 0], found["blocks.0.attn@unbind[0]"][:])
    assert not verify(tmp_path / "out", plugins=[TINY]).faults
