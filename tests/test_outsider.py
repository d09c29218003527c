"""A third-party distribution, really built and installed, and the same file through `--plugin`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import layertap

OUTSIDER = Path(__file__).parent / "outsider"
CONFIG = """\
model: tiny
taps: [features.1, features.2]
source: {type: stripes, count: 5}
preprocess: {type: shrink, side: 12}
sink: {type: text, path: PATH}
device: cpu
batch_size: 2
shard_rows: 2
observers: []
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder in which the outsider's wheel is installed, by an installer that uses no index."""
    source, target = tmp_path_factory.mktemp("source") / "outsider", tmp_path_factory.mktemp("installed")
    shutil.copytree(OUTSIDER, source, ignore=shutil.ignore_patterns("__pycache__"))
    uv = ["uv", "pip", "install", "--python", sys.executable, "--offline", "--no-cache"]
    command = [sys.executable, "-m", *(uv if find_spec("uv") else ["pip", "install", "--no-index"])]
    command += ["--no-deps", "--no-build-isolation", "--target", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def test_wheel_of_the_outsider_holds_its_module_alone(installed):
    assert (installed / "layertap_outsider.py").is_file()
    assert not (installed / "tiny.py").exists()


def test_outsider_works_installed_and_as_a_file(installed, tmp_path):
    for name in ("installed", "file"):
        (tmp_path / f"{name}.yaml").write_text(CONFIG.replace("PATH", str(tmp_path / name)))
    command = [sys.executable, "-m", "layertap", "run", "installed.yaml", "--plugin", str(OUTSIDER / "tiny.py")]
    env = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "5 of 5 images kept, 0 failed" in done.stdout

    own = [str(OUTSIDER / "layertap_outsider.py"), str(OUTSIDER / "tiny.py")]
    report = layertap.run(tmp_path / "file.yaml", plugins=own)
    assert (report.planned, report.kept, report.shards) == (5, 5, 3)

    names = ["features.1", "features.2"]
    for folder in ("installed", "file"):
        features = layertap.open(tmp_path / folder, plugins=own)
        assert features.taps == names
        assert features.ids == [f"stripes-{number}" for number in range(5)]
        assert [row["stripes"] for row in features.index] == [1, 2, 3, 4, 5]
    first, second = (layertap.open(tmp_path / folder, plugins=own) for folder in ("installed", "file"))
    for name in names:
        values = np.asarray(first[name])
        assert values.shape[0] == 5
        assert len(np.unique(values, axis=0)) == 5
        np.testing.assert_array_equal(values, np.asarray(second[name]))


def test_outsider_is_listed_with_its_distribution(installed):
    env = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run([sys.executable, "-m", "layertap", "plugins"], env=env, capture_output=True, text=True)
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    file = str(installed / "layertap_outsider.py")
    assert [row for row in rows if row[2] != "layertap"] == [
        ["source", "stripes", "layertap-outsider", "1.2.3", file],
        ["preprocessor", "shrink", "layertap-outsider", "1.2.3", file],
        ["sink", "text", "layertap-outsider", "1.2.3", file],
    ]
    assert done.stderr == ""
