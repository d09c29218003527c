"""The engine `slurm`, with submitit's local executor in the place of a cluster; `make cluster` has a real one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import layertap
from tests.conftest import TINY

HERE = {"type": "slurm", "cluster": "local", "workers": 1, "cpus": 1}


@pytest.fixture(scope="module")
def mixed(photos, tmp_path_factory):
    """Photographs, of which some cannot be read."""
    folder = tmp_path_factory.mktemp("mixed")
    for number, path in enumerate(sorted(photos.glob("*/*.jpg"))):
        shutil.copy2(path, folder / f"{number:02d}.jpg")
    (folder / "03.jpg").write_bytes(b"no image")
    whole = (folder / "11.jpg").read_bytes()
    (folder / "11.jpg").write_bytes(whole[: len(whole) // 2])
    return folder


def run(source, sink, path, *, own=(), **changes):
    """A run of the tiny network, in shards of two batches of two."""
    config = {
        "model": {"type": "tiny"},
        "taps": ["features.0", "classifier"],
        "source": {"type": "folder", "path": str(source)},
        "sink": {"type": sink, "path": str(path)},
        "device": "cpu",
        "threads": 1,
        "batch_size": 2,
        "shard_rows": 4,
        "observers": [],
        **changes,
    }
    return layertap.run(config, plugins=[TINY, *own])


def files(output):
    found = {path.relative_to(output).as_posix(): path for path in output.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name != "manifest.json"}


def logs(output):
    return sorted(Path(f"{output}.logs").glob("*_log.out"))


@pytest.mark.parametrize("sink", ["npy", "safetensors", "parquet"])
def test_tasks_leave_the_bytes_of_one_process(mixed, tmp_path, sink):
    run(mixed, sink, tmp_path / "one")
    report = run(mixed, sink, tmp_path / "many", engine={**HERE, "workers": 2})
    assert (report.kept, report.failed) == (18, 2)
    assert files(tmp_path / "many") == files(tmp_path / "one")
    assert len(logs(tmp_path / "many")) == 2


def test_task_that_is_killed_is_replaced(mixed, tmp_path):
    run(mixed, "npy", tmp_path / "one")
    killer = threading.Thread(target=kill_the_first_worker, args=(tmp_path / "many",))
    killer.start()
    run(mixed, "npy", tmp_path / "many", engine=HERE)
    killer.join()
    assert files(tmp_path / "many") == files(tmp_path / "one")
    assert len(logs(tmp_path / "many")) == 2


def kill_the_first_worker(output):
    """Kill the task that has taken a shard."""
    taken = []
    while not taken:
        time.sleep(0.002)
        taken = list(output.glob("work/taken/*.json"))
    worker = taken[0].name.split(".")[1]
    said = json.loads((output / f"work/workers/{worker}.json").read_text())
    os.kill(said["report"]["pid"], signal.SIGKILL)


ELSEWHERE = """
import os
import layertap
from layertap.plugins import Plugins

class Elsewhere(layertap.ModelProvider):
    def load(self):
        tiny = Plugins.load([{tiny!r}]).find("model", "tiny").cls.of()
        loaded = tiny.load()
        place = "task" if "SUBMITIT_LOCAL_JOB_ID" in os.environ else "here"
        return layertap.LoadedModel(loaded.module, loaded.preprocessor, {{**loaded.about, "place": place}})

@layertap.hookimpl
def register_models(register):
    register("elsewhere", Elsewhere)
"""


def test_task_that_would_compute_otherwise_is_refused_and_not_replaced(mixed, tmp_path):
    own = tmp_path / "elsewhere.py"
    own.write_text(ELSEWHERE.format(tiny=TINY))
    with pytest.raises(layertap.LayertapError, match="place") as caught:
        run(mixed, "npy", tmp_path / "out", own=[str(own)], model={"type": "elsewhere"}, engine=HERE)
    assert caught.value.code == 6
    (log,) = logs(tmp_path / "out")
    assert str(log) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """The only folder in which commands are found."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def command(name, text):
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)

    return command


def test_machine_without_slurm_is_an_error_that_says_so(mixed, tmp_path, commands):
    with pytest.raises(layertap.ConfigError, match=r"has no SLURM.*cluster: local"):
        run(mixed, "npy", tmp_path / "out", engine={"type": "slurm"})


def test_parameters_reach_sbatch_and_its_refusal_the_user(mixed, tmp_path, commands):
    commands("srun", "")
    commands(
        "sbatch",
        f'/bin/cp "$1" {tmp_path}/script\necho "sbatch: error: invalid partition specified: night" >&2\nexit 1',
    )
    engine = {"type": "slurm", "workers": 3, "cpus": 4, "gpus": 1, "time": 90, "partition": "night"}
    with pytest.raises(layertap.ConfigError, match=r"SLURM has refused the tasks: .*invalid partition") as caught:
        run(mixed, "npy", tmp_path / "out", threads=None, engine={**engine, "parameters": {"account": "vision"}})
    assert "\n" not in str(caught.value)
    script = (tmp_path / "script").read_text()
    for words in ("array=0-2%3", "cpus-per-task=4", "gpus-per-node=1", "time=90", "partition=night", "account=vision"):
        assert f"#SBATCH --{words}\n" in script
    assert f"--output={tmp_path}/out.logs/" in script


def test_submitit_is_not_imported_without_the_engine(mixed, tmp_path):
    config = {
        "model": "tiny",
        "taps": ["classifier"],
        "source": {"type": "folder", "path": str(mixed)},
        "sink": {"type": "npy", "path": str(tmp_path / "out")},
        "observers": [],
    }
    code = f"import sys, layertap; layertap.run({config!r}, plugins=[{TINY!r}]); assert 'submitit' not in sys.modules"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
