"""What one image may take, known from its header: bombs fail with a reason of their own, and photographs do not."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import layertap
from layertap.config.loading import load_config
from layertap.errors import ImageError
from layertap.images.decoding.bounds import Bounds
from layertap.images.decoding.decode import decode
from layertap.images.decoding.formats import OPTIONAL
from layertap.plugins import Plugins
from layertap_plugins.preprocessors.composed import OpenClipTransform, TimmTransform
from layertap_plugins.preprocessors.imagenet import ImageNet
from layertap_plugins.preprocessors.letterbox import Letterbox
from layertap_plugins.preprocessors.squash import Squash
from layertap_plugins.preprocessors.torchvision import Pipeline
from tests.conftest import TINY
from tests.images import bombs

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="where memory is limited and measured")
ROOT = Path(__file__).parents[2]
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

PREPROCESSORS = {
    "imagenet": ImageNet.of(),
    "letterbox": Letterbox.of(),
    "squash": Squash.of(),
    "resize": Pipeline.of(transforms=[{"Resize": [224, 224]}, "ToImage"]),
    "tensor": Pipeline.of(transforms=["ToImage", {"Resize": [224, 224]}]),
    "timm": TimmTransform.of(size=(224, 224), crop_mode="squash", mean=MEAN, std=STD),
    "open_clip": OpenClipTransform.of(size=(224, 224), mean=MEAN, std=STD, resize_mode="squash"),
}

# Decoded without a limit of ours, each of these takes gigabytes: so never in this process.
DECODING = """
import resource, sys
sys.path[:0] = [{root!r}]
from layertap.errors import ImageError
from layertap.images.decoding.decode import decode
from layertap.images.decoding.formats import OPTIONAL
from layertap.plugins import Plugins
from tests.images import bombs
from tests.images.test_memory import PREPROCESSORS
data = {{**bombs.NAMED, **bombs.OTHERS}}[{name!r}]()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 768 * 2**20,) * 2)
try:
    decode(data, OPTIONAL, needs=PREPROCESSORS["squash"].memory)
except ImageError as error:
    print(error.reason)
"""


def in_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@LINUX
@pytest.mark.parametrize("name", [*bombs.NAMED, *bombs.OTHERS])
def test_a_bomb_is_refused_within_its_memory(name):
    assert in_process(DECODING.format(root=str(ROOT), name=name)) == "memory"


@pytest.mark.parametrize(
    "name", sorted(PREPROCESSORS.keys() - {"imagenet"})
)  # which fails it as `aspect` when it prepares it
def test_a_strip_is_refused_by_every_preprocessor_that_would_need_too_much_for_it(name):
    with pytest.raises(ImageError) as caught:
        decode(bombs.strip_png(), needs=PREPROCESSORS[name].memory)
    assert caught.value.reason == "memory"


ESTIMATED = """
import sys
sys.path[:0] = [{root!r}]
from PIL import Image
from tests.images.test_memory import PREPROCESSORS
preprocessor = PREPROCESSORS[{name!r}]
preprocessor.prepare(Image.new("RGB", (640, 480)))
for size, mode in {images!r}:
    image = Image.new(mode, size)
    before = int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1])
    open("/proc/self/clear_refs", "w").write("5")
    preprocessor.prepare(image)
    peak = int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
    print(1024 * (peak - before), preprocessor.memory(size, mode))
"""


@LINUX
@pytest.mark.parametrize("name", PREPROCESSORS)
def test_preparing_takes_no_more_than_it_says(name):
    images = [((4_000, 3_000), "RGB"), ((4_000, 3_000), "L"), ((4_000, 3_000), "RGBA"), ((3_000, 4_000), "CMYK")]
    images += [((1_000_000, 20), "RGB"), ((20, 100_000), "P")] if name != "imagenet" else []
    found = in_process(ESTIMATED.format(root=str(ROOT), name=name, images=images)).splitlines()
    for line, image in zip(found, images, strict=True):
        taken, said = map(int, line.split())
        assert taken <= said + 8 * 2**20, (image, taken >> 20, said >> 20)


def photograph(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), (120, 90, 60))


@pytest.mark.parametrize(
    ("form", "options", "size"),
    [
        ("JPEG", {}, (9_400, 9_400)),
        ("JPEG", {"progressive": True}, (8_192, 6_144)),
        ("PNG", {"compress_level": 1}, (8_192, 6_144)),
        ("WEBP", {"quality": 1, "method": 0}, (6_000, 4_000)),
        ("GIF", {}, (8_192, 6_144)),
        ("BMP", {}, (8_192, 6_144)),
        ("TIFF", {"compression": "tiff_adobe_deflate"}, (8_192, 6_144)),
        ("JPEG2000", {"tile_size": (1_024, 1_024)}, (4_000, 3_000)),
        ("AVIF", {"speed": 10, "quality": 1}, (6_000, 4_000)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("name", ["imagenet", "squash"])
def test_a_large_photograph_is_within_its_memory(form, options, size, name, monkeypatch):
    file = io.BytesIO()
    photograph(*size).save(file, form, **options)
    # Only from the header: 67 million pixels need not be decoded for it.
    monkeypatch.setattr(Image.Image, "load", lambda image: None)
    for plugin in (decode.__globals__["_READERS"][form],) if form in decode.__globals__["_READERS"] else ():
        monkeypatch.setattr(plugin, "load", lambda image: None)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: None)
    image = decode(file.getvalue(), OPTIONAL, needs=PREPROCESSORS[name].memory)
    assert image.size == size


def test_the_bounds_are_those_of_the_configuration(tmp_path):
    (tmp_path / "images").mkdir()
    for name, size in {"a": (40, 30), "b": (2_000, 2_000), "c": (3_000, 3_000)}.items():
        photograph(*size).save(tmp_path / f"images/{name}.jpg")
    config = {
        "model": "tiny/tiny",
        "taps": ["classifier"],
        "source": {"type": "folder", "path": str(tmp_path / "images")},
        "preprocess": {"type": "squash", "size": 16},
        "sink": {"type": "npy", "path": str(tmp_path / "out")},
        "device": "cpu",
        "observers": [],
    }
    report = layertap.run({**config, "image_memory": 20, "max_pixels": 8_000_000}, plugins=[TINY])
    assert (report.kept, report.failed) == (2, 1)
    assert layertap.open(tmp_path / "out").failures == [{"id": "c.jpg", "stage": "decode", "reason": "too_large"}]
    report = layertap.run({**config, "image_memory": 20, "mode": "new"}, plugins=[TINY])
    assert layertap.open(tmp_path / "out").failures == [{"id": "c.jpg", "stage": "decode", "reason": "memory"}]
    # A limit decides which images fail, and changes no good row: the output is the same one, and may be retried.
    again = layertap.run({**config, "image_memory": 512}, plugins=[TINY], retry_failed=True)
    assert (again.kept, again.failed) == (3, 0)


@pytest.mark.parametrize("value", ["512 MiB", 1.5, 0, 15, -1, True])
def test_image_memory_is_a_number_of_mebibytes(value):
    config = {"source": {"type": "folder", "path": "x"}, "sink": "memory", "image_memory": value}
    with pytest.raises(layertap.ConfigError, match="image_memory"):
        load_config(config, None, Plugins.load())


def test_an_image_that_a_source_gave_is_bounded_too():
    with pytest.raises(ImageError) as caught:
        decode(photograph(2_000, 2_000), bounds=Bounds(memory=2**20))
    assert caught.value.reason == "memory"


def test_a_preprocessor_says_a_copy_by_default():
    class Plain(layertap.Preprocessor):
        def prepare(self, image: Image.Image) -> torch.Tensor:
            raise NotImplementedError

    assert Plain().memory((1_000, 500), "L") == Plain.stored((1_000, 500)) == 500 * (8 + 4_000)
    assert Plain.stored((1, 10), "L") == 10 * (8 + 4)
