"""Images of different sizes: the first real images say, taps of one size run them, and no row depends on others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.functional import pil_to_tensor, to_tensor

import layertap
from layertap.bench.benchmark import bench
from tests.conftest import TINY
from tests.pipeline.test_pipeline import config, contents

PLUGIN = '''\
import layertap


class Padded(layertap.Preprocessor):
    """Pads to multiples of 32."""

    def prepare(self, image):
        from torch.nn.functional import pad
        from torchvision.transforms.functional import pil_to_tensor

        tensor = pil_to_tensor(image.convert("RGB"))
        return pad(tensor, (0, -tensor.shape[2] % 32, 0, -tensor.shape[1] % 32))

    def finish(self, batch):
        return batch.float() / 255


class Convolutions(layertap.ModelProvider):
    def load(self):
        import torch
        from torch import nn

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1))
        return layertap.LoadedModel(module, None, {"name": "convolutions"})


@layertap.hookimpl
def register_preprocessors(register):
    register("padded", Padded)


@layertap.hookimpl
def register_models(register):
    register("convolutions", Convolutions)
'''
SIZES = [(40, 30), (30, 40), (40, 30), (70, 20), (30, 40), (33, 90), (40, 30)]
POOLED = [{"layer": "0", "reduce": ["mean_pool"]}, "3"]


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1)).eval()


def picture(size: tuple[int, int], seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


def pictures(sizes: list[tuple[int, int]] = SIZES) -> list[Image.Image]:
    return [picture(size, seed) for seed, size in enumerate(sizes)]


def values(found: Any, tap: str) -> Tensor:
    return torch.cat([batch.values[tap] for batch in found])


@pytest.fixture
def plugin(tmp_path: Path) -> str:
    file = tmp_path / "my_plugin.py"
    file.write_text(PLUGIN)
    return str(file)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for number, image in enumerate(pictures()):
        image.save(tmp_path / f"images/{number}.png")
    return tmp_path / "images"


def run(images: Path, out: Path | None, plugin: str, **changes: Any) -> layertap.Report:
    usual = {"model": "convolutions", "preprocess": {"type": "padded"}, "taps": POOLED, "batch_size": 4}
    return layertap.run(config(images, out, **usual | changes), plugins=[TINY, plugin])


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_tiles_of_one_size_need_no_resize_and_keep_maps(mode):
    tiles = [image.convert(mode) for image in pictures([(32, 32)] * 9)]
    found = values(layertap.extract(model(), iter(tiles), ["0"], preprocess=to_tensor, batch_size=4), "0")
    with torch.no_grad():
        expected = torch.cat([model()[0](to_tensor(tile.convert("RGB"))[None]) for tile in tiles])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_portraits_and_landscapes_are_as_computed_one_by_one():
    shrink = v2.Compose([v2.ToImage(), v2.Resize(24, antialias=True), v2.ToDtype(torch.float32, scale=True)])
    for function in (to_tensor, shrink):
        found = list(layertap.extract(model(), iter(pictures()), POOLED, preprocess=function, batch_size=4))
        assert [record.id for batch in found for record in batch.records] == [str(at) for at in range(len(SIZES))]
        with torch.no_grad():
            expected = torch.cat([model()(function(image)[None]) for image in pictures()])
        torch.testing.assert_close(values(found, "3"), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_run_pads_to_multiples_and_a_bad_file_changes_no_bit(folder, tmp_path, plugin, isolation):
    whole = run(folder, tmp_path / "whole", plugin, isolation=isolation)
    assert (whole.kept, whole.failed) == (7, 0)
    assert any("forwards on average" in remark for remark in whole.remarks)
    for bad in (0, 3):
        good = (folder / f"{bad}.png").read_bytes()
        (folder / f"{bad}.png").write_bytes(b"no image")
        report = run(folder, tmp_path / f"without{bad}", plugin, isolation=isolation, workers=1)
        assert dict(report.reasons) == {"not_image": 1}
        (folder / f"{bad}.png").write_bytes(good)
        for tap in whole.columns:
            rows = np.delete(np.asarray(layertap.open(tmp_path / "whole")[tap]), bad, axis=0)
            assert np.asarray(layertap.open(tmp_path / f"without{bad}")[tap]).tobytes() == rows.tobytes()


def test_resumed_run_of_many_sizes_has_the_same_bytes(folder, tmp_path, plugin):
    run(folder, tmp_path / "whole", plugin, batch_size=2, shard_rows=2)
    with pytest.raises(layertap.PluginError):
        run(folder, tmp_path / "out", plugin, batch_size=2, shard_rows=2, observers=[{"type": "stop", "after": 4}])
    run(folder, tmp_path / "out", plugin, batch_size=2, shard_rows=2)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_maps_of_different_sizes_are_refused_with_the_way_out():
    with pytest.raises(layertap.TapError, match=r"'0' has \(4, 28, 38\).*\(4, 38, 28\).*reduce"):
        list(layertap.extract(model(), pictures(), ["0"], preprocess=to_tensor))


def test_late_image_of_another_size_fails_where_taps_keep_maps():
    images = pictures([(32, 32)] * 20 + [(40, 30)])
    found = list(layertap.extract(model(), images, ["0"], preprocess=to_tensor, on_error="skip", batch_size=8))
    assert sum(len(batch.records) for batch in found) == 20
    with pytest.raises(layertap.ImageError, match=r"\(3, 30, 40\) float32, not to \(3, 32, 32\)"):
        list(layertap.extract(model(), images, ["0"], preprocess=to_tensor))


def test_size_that_the_model_cannot_take_fails_its_image_alone():
    images = pictures([(32, 32)] * 20 + [(2, 2), (40, 30)])
    found = list(layertap.extract(model(), images, POOLED, preprocess=to_tensor, on_error="skip", batch_size=32))
    assert [record.id for batch in found for record in batch.records] == [str(at) for at in range(22) if at != 20]


def test_first_image_that_fails_does_not_give_the_size():
    images = [b"no image", *pictures([(32, 32)] * 3)]
    found = list(layertap.extract(model(), images, ["0"], preprocess=to_tensor, on_error="skip"))
    assert [record.id for batch in found for record in batch.records] == ["1", "2", "3"]


def test_preprocessor_of_one_size_reads_no_image_beforehand():
    read = []

    def image(number: int) -> Any:
        return lambda: read.append(number) or picture((40, 30), number)

    def squash(picture: Image.Image) -> Tensor:
        return pil_to_tensor(picture.resize((16, 16))).float()

    records = [layertap.ImageRecord(str(number), image(number)) for number in range(5)]
    list(layertap.extract(model(), records, ["0"], preprocess=squash, workers=1))
    assert read == [0, 1, 2, 3, 4]


def test_bench_measures_images_of_the_first_size(folder, plugin):
    usual = {"model": "convolutions", "preprocess": {"type": "padded"}, "taps": POOLED, "batch_size": 2}
    found = bench(config(folder, None, **usual), plugins=[TINY, plugin], rounds=1, suggest=False)
    assert found.images > 0
