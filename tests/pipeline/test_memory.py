"""Memory is asked about before the run; what does not fit is told with what does."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

import layertap
from layertap.images.batches import Slot
from layertap.pipeline.forward import ForwardPass
from layertap.pipeline.memory import rehearse
from layertap.taps.tapped import TappedModel
from tests.conftest import TINY
from tests.pipeline.test_pipeline import config, contents, run
from tests.tiny import Squash

HUNGRY = """
import torch, layertap
from tests.tiny import Tiny
class Hungry(Tiny):
    def load(self):
        loaded = super().load()
        loaded.module.register_forward_pre_hook(grow)
        return loaded
def grow(module, args):
    if len(args[0]) > 3:
        torch.empty(2**47)
@layertap.hookimpl
def register_models(register): register("hungry", Hungry)
"""


class Greedy(nn.Module):
    """Needs 128 TiB for more than five images."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if len(x) <= 5 else torch.empty(2**45)


def line(module: nn.Module) -> ForwardPass:
    return ForwardPass(TappedModel(module, "."), Squash.of(), Slot((3, 4, 4), torch.uint8), torch.device("cpu"))


def test_rehearsal_names_the_batch_size_that_fits():
    whole = line(Greedy())
    with whole.tapped:
        rehearse(whole, 5)
        with pytest.raises(layertap.ConfigError, match=r"64 images do not fit .* of cpu; set batch_size=4"):
            rehearse(whole, 64)


def test_out_of_memory_in_a_batch_is_told_in_a_line(photos, tmp_path):
    (tmp_path / "hungry.py").write_text(HUNGRY)
    hungry = config(photos, tmp_path / "out", model="hungry")
    with pytest.raises(layertap.ConfigError, match=r"out of memory in a batch of 4 images; set batch_size=2$") as told:
        layertap.run(hungry, plugins=[TINY, str(tmp_path / "hungry.py")])
    assert told.value.code == 2


def test_nothing_committed_after_out_of_memory_leaves_the_output_to_a_smaller_batch(photos, tmp_path):
    plugins = [TINY, str(tmp_path / "hungry.py")]
    (tmp_path / "hungry.py").write_text(HUNGRY)
    with pytest.raises(layertap.ConfigError, match="out of memory"):
        layertap.run(config(photos, tmp_path / "out", model="hungry"), plugins=plugins)
    assert (tmp_path / "out" / "manifest.json").exists()
    smaller = config(photos, tmp_path / "out", model="hungry", batch_size=2)
    assert layertap.run(smaller, plugins=plugins).kept == 20
    layertap.run({**smaller, "sink": {"type": "npy", "path": str(tmp_path / "whole")}}, plugins=plugins)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_shards_committed_before_out_of_memory_are_named_with_the_command_that_helps(photos, tmp_path):
    plugins = [TINY, str(tmp_path / "hungry.py")]
    (tmp_path / "hungry.py").write_text(
        HUNGRY.replace("len(args[0]) > 3:", "len(args[0]) > 3 and next(calls) > 3:").replace(
            "import torch", "import itertools\ncalls = itertools.count(1)\nimport torch"
        )
    )
    hungry = config(photos, tmp_path / "out", model="hungry", shard_rows=4)
    with pytest.raises(layertap.ConfigError, match="out of memory") as caught:
        layertap.run(hungry, plugins=plugins)
    committed = len(list((tmp_path / "out" / "commits").iterdir()))
    assert committed
    said = rf"set batch_size=2, together with mode=new, which starts over: {committed} shards are committed here"
    assert re.search(said, str(caught.value))
    smaller = {**hungry, "batch_size": 2}
    with pytest.raises(layertap.StoreError, match="set batch_size=4 shard_rows=4 to resume it, or choose") as refused:
        layertap.run(smaller, plugins=plugins)
    assert refused.value.code == 6
    assert layertap.run({**smaller, "mode": "new"}, plugins=plugins).kept == 20


def test_rows_beyond_the_machine_s_memory_are_refused_before_the_run(photos, tmp_path):
    taps = [{"layer": "classifier", "reduce": [{"type": "vast"}]}]
    (tmp_path / "vast.py").write_text(
        "import layertap\n"
        "class Vast(layertap.Reducer):\n"
        "    def __call__(self, activation):\n"
        "        return activation[:, :1].expand(-1, 2**36)\n"
        "@layertap.hookimpl\n"
        "def register_reducers(register): register('vast', Vast)\n"
    )
    vast = config(photos, tmp_path / "out", taps=taps)
    with pytest.raises(layertap.LayertapError, match=r"batch_size") as told:
        layertap.run(vast, plugins=[TINY, str(tmp_path / "vast.py")])
    assert told.value.code == 2
    assert not (tmp_path / "out").exists()


def test_a_batch_size_beyond_the_plan_costs_no_more_than_the_plan(photos, tmp_path):
    assert run(photos, tmp_path / "out", batch_size=1_000_000_000).kept == 20
