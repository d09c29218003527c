"""A configuration is data: whatever stands in it, it runs nothing, imports nothing and writes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.config.hostile_configs import (
    CANARY_MODULE,
    CANARY_PACKAGE,
    CONFIGS,
    MATCHED_APART,
    OUT,
    PHOTOS,
    watch,
)

ROOT = Path(__file__).parents[2]
MOST_SECONDS = 10


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory with an image, and modules that leave a canary there when they are imported."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / PHOTOS).mkdir()
    Image.effect_noise((20, 20), 50).save(folder / PHOTOS / "a.png")
    canary = "open('canary', 'w')\n"
    (folder / "site" / CANARY_PACKAGE / "below").mkdir(parents=True)
    for name in (f"{CANARY_MODULE}.py", f"{CANARY_PACKAGE}/__init__.py", f"{CANARY_PACKAGE}/below/__init__.py"):
        (folder / "site" / name).write_text(canary)
    return folder


def python(place, code):
    path = os.pathsep.join(str(part) for part in (ROOT, place / "site"))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def watched(place):
    """What came of every configuration, all run in one process under an audit hook."""
    found = json.loads(python(place, f"from {watch.__module__} import watch; watch()"))
    assert (found["honest"]["code"], found["honest"]["left"]) == (0, [OUT])
    assert any(event.startswith(f"open {OUT}/") for event in found["honest"]["events"])
    return found["results"]


def test_there_are_as_many_as_there_should_be(watched):
    assert len(watched) == len(CONFIGS) >= 100


@pytest.mark.parametrize("name", CONFIGS)
def test_a_hostile_configuration_is_refused_and_does_nothing(watched, name):
    found = watched[name]
    assert found["code"] in (2, 8), found["said"]
    assert CONFIGS[name][1] in found["said"]
    lines = found["said"].removesuffix("\n").split("\n")
    assert all(line.isprintable() and len(line) < 3_000 for line in lines)
    assert len(lines) == 1 or all(line.startswith("c.yaml:") for line in lines)
    assert found["left"] == []
    assert found["seconds"] < MOST_SECONDS
    assert found["events"] == (["subprocess.Popen"] if name in MATCHED_APART else [])


def test_what_has_a_place_is_told_with_it(watched):
    said = [found["said"] for found in watched.values()]
    assert sum(text.startswith("c.yaml:") for text in said) >= len(said) - 3


@pytest.mark.parametrize("module", [CANARY_MODULE, CANARY_PACKAGE, f"{CANARY_PACKAGE}.below"])
def test_the_canaries_would_sing(place, module):
    python(place, f"import {module}")
    (place / "canary").unlink()
