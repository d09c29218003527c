"""What belongs to the whole process is as it was found, after every public call and between the batches of extract."""

from __future__ import annotations

import csv
import gc
import json
import locale
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import warnings

import numpy as np
import PIL.Image
import PIL.ImageFile
import pytest
import torch
import torchvision  # noqa: F401
from PIL import Image
from torch import nn

import layertap
from tests.conftest import TINY
from tests.pipeline.test_pipeline import config


def process_state():
    """Every setting of this process that a library could be tempted to change."""
    return {
        "warnings": list(warnings.filters),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "csv": csv.field_size_limit(),
        "gc": (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()),
        "pillow": (
            Image.MAX_IMAGE_PIXELS,
            PIL.ImageFile.LOAD_TRUNCATED_IMAGES,
            PIL.ImageFile.MAXBLOCK,
            PIL.Image.WARN_POSSIBLE_FORMATS,
        ),
        "torch": (
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.get_default_dtype(),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(),
            torch.backends.cuda.matmul.allow_tf32,
            torch.backends.cudnn.allow_tf32,
            torch.backends.cudnn.benchmark,
            torch.backends.mha.get_fastpath_enabled(),
            torch.get_rng_state().tolist(),
        ),
        "random": (random.getstate(), np.random.get_state()[1].tolist()),
        "environment": dict(os.environ),
        "process": (os.getcwd(), sys.path[:], sys.getrecursionlimit(), sys.getswitchinterval()),
        "streams": (sys.stdin, sys.stdout, sys.stderr, sys.excepthook, threading.excepthook),
        "locale": locale.setlocale(locale.LC_ALL),
        "logging": (logging.root.level, list(logging.root.handlers)),
    }


@pytest.fixture
def model():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True))
    layertap.layers(model, torch.zeros(2, 3, 8, 8))  # torch imports its compiler here, which sets a variable by itself
    return model


def pictures(count=6):
    return [Image.linear_gradient("L").rotate(number) for number in range(count)]


def pixels(image):
    return torch.from_numpy(np.array(image.convert("RGB").resize((8, 8)), np.float32)).permute(2, 0, 1)


def tapping(model, photos, tmp_path):
    with layertap.tap(model, ["1"]) as taps:
        model(torch.zeros(2, 3, 8, 8))
        yield
        taps.run(torch.zeros(2, 3, 8, 8))
        yield
    layertap.layers(model, torch.zeros(2, 3, 8, 8))


def extracting(model, photos, tmp_path):
    for _ in layertap.extract(model, pictures(), ["1"], batch_size=2, preprocess=pixels, device="cpu"):
        yield
    for _ in layertap.extract("tiny", str(photos), ["features.2"], batch_size=8, device="cpu", plugins=[TINY]):
        yield


def stopping(model, photos, tmp_path):
    next(layertap.extract(model, pictures(), ["1"], batch_size=2, preprocess=pixels))
    with pytest.raises(layertap.ImageError):
        list(layertap.extract(model, [b"no image"], ["1"], preprocess=pixels))
    yield


def running(model, photos, tmp_path):
    layertap.run(config(photos, tmp_path / "out", profile="fast", autocast="bfloat16"), plugins=[TINY])
    yield
    layertap.run(config(photos, None, isolation="process"), plugins=[TINY])
    yield
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.jpg").write_text("no image")
    with pytest.raises(layertap.ImageError):
        layertap.run(config(tmp_path / "bad", None, on_error="fail"), plugins=[TINY])


def reading(model, photos, tmp_path):
    layertap.run(config(photos, tmp_path / "out"), plugins=[TINY])
    with layertap.open(tmp_path / "out") as features:
        assert len(features.index) == 20
        yield
        features.export("npy", tmp_path / "again")
        yield


@pytest.mark.parametrize("work", [tapping, extracting, stopping, running, reading], ids=lambda work: work.__name__)
def test_process_is_left_as_it_was_found(work, model, photos, tmp_path):
    before = process_state()
    for _ in work(model, photos, tmp_path):
        assert process_state() == before
    assert process_state() == before


DAMAGED = """
import io, os, sys, tempfile
import layertap, torch
from PIL import Image
from torch import nn

file = io.BytesIO()
Image.effect_noise((64, 64), 50).save(file, "TIFF", compression="tiff_lzw")
data = bytearray(file.getvalue())
data[100:2000] = b"\\xff" * 1900

def said(read):
    with tempfile.TemporaryFile() as caught:
        kept = os.dup(2)
        os.dup2(caught.fileno(), 2)
        try:
            read()
        finally:
            os.dup2(kept, 2)
        caught.seek(0)
        return caught.read()

def plainly():
    try:
        Image.open(io.BytesIO(data)).load()
    except Exception:
        pass

def by_layertap():
    source = {"type": "folder", "path": sys.argv[1]}
    config = {"model": "tiny", "taps": "features.0", "source": source, "sink": "memory", "device": "cpu",
              "formats": ["TIFF"], "observers": []}
    assert layertap.run(config, plugins=[sys.argv[2]]).reasons

with open(os.path.join(sys.argv[1], "a.jpg"), "wb") as file:
    file.write(data)
print([len(said(read)) for read in (plainly, by_layertap, plainly)])
"""


def test_what_libtiff_prints_is_not_silenced_for_others(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", DAMAGED, str(tmp_path), TINY], capture_output=True, text=True, check=True
    )
    before, within, after = json.loads(done.stdout)
    if not before:
        pytest.skip("this Pillow's libtiff prints nothing")
    assert (within, after) == (0, before)
