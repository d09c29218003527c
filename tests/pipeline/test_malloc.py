"""Freed memory stays with the process while a run lasts, and goes back to the system after it."""

from __future__ import annotations

import gc
import json
import os
import platform
import subprocess
import sys
from contextlib import suppress

import pytest

from layertap.pipeline import malloc
from tests.conftest import TINY
from tests.pipeline.test_pipeline import config

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or sys.platform != "linux", reason="other allocators are left as they are"
)

# In a process of its own: what else is in a heap decides what fits into it.
SCRIPT = """
import json, resource, torch
from layertap.pipeline import malloc

def taken(blocks=8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(blocks):
        torch.ones(48 * 2**20, dtype=torch.uint8)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() / 2**20

def held():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20

found = {"before": taken()}
at_first = held()
with malloc.kept():
    taken()
    found["kept"] = taken()
    with malloc.kept():
        pass
    found["one of two has ended"] = taken()
    found["held"] = held() - at_first
found["held after"] = held() - at_first
print(json.dumps(found))
"""

# Between the batches of extract the process is its user's own.
EXTRACT = (
    SCRIPT.partition("found = ")[0]
    + """
import layertap
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

images = [Image.new("RGB", (64, 64)) for _ in range(4)]
model = torch.nn.Conv2d(3, 4, 3)
prepare = lambda image: pil_to_tensor(image.resize((8, 8))).float()
found = [taken() for _ in layertap.extract(model, images, ".", batch_size=1, preprocess=prepare, device="cpu")]
print(json.dumps([*found, taken()]))
"""
)

WATCHING = """
import resource
import layertap, torch

class Watching(layertap.Observer):
    class Params(layertap.Params):
        path: str

    def batch_done(self):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(48 * 2**20, dtype=torch.uint8)
        with open(self.params.path, "a") as file:
            pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
            print(pages * resource.getpagesize() / 2**20, file=file)

@layertap.hookimpl
def register_observers(register):
    register("watching", Watching)
"""


def test_memory_is_new_only_once_while_it_is_kept():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, check=True)
    mib = json.loads(done.stdout)  # out of 8 x 48
    assert mib["before"] > 300
    assert max(mib["kept"], mib["one of two has ended"]) < 200
    assert mib["held"] > 40
    assert mib["held after"] < 20


def test_extract_leaves_the_memory_of_its_user_alone():
    done = subprocess.run([sys.executable, "-c", EXTRACT], capture_output=True, check=True)
    assert min(json.loads(done.stdout)) > 300  # MiB out of 8 x 48


@pytest.mark.parametrize("setting", ["MALLOC_TRIM_THRESHOLD_=131072", "GLIBC_TUNABLES=glibc.malloc.mmap_threshold=1"])
def test_settings_of_the_user_stay(setting):
    name, _, value = setting.partition("=")
    env = {**os.environ, name: value}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, check=True, env=env)
    assert json.loads(done.stdout)["kept"] > 300


@pytest.mark.parametrize("was_on", [True, False])
def test_collector_is_left_as_it_was_found(was_on):
    before = gc.isenabled()
    try:
        gc.enable() if was_on else gc.disable()
        with suppress(ImportError), malloc.uncollected():
            assert not gc.isenabled()
            raise ImportError
        assert gc.isenabled() is was_on
    finally:
        gc.enable() if before else gc.disable()


def test_run_keeps_memory(photos, tmp_path):
    (tmp_path / "watching.py").write_text(WATCHING)
    asked = config(photos, None, observers=[{"type": "watching", "path": str(tmp_path / "seen")}], batch_size=1)
    script = f"import layertap; layertap.run({asked!r}, plugins={[TINY, str(tmp_path / 'watching.py')]!r})"
    subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    mib = sorted(float(line) for line in (tmp_path / "seen").read_text().split())
    assert len(mib) == 20
    assert mib[10] < 10
