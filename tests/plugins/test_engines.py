"""The engines of this machine, with real processes: `local`, and `folder` with workers that join."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from PIL import Image

import layertap
from tests.conftest import TINY

OWN = [TINY, str(Path(__file__).with_name("slow.py"))]
OPTIONS = [word for own in OWN for word in ("--plugin", own)]
FILES = ["classifier.npy", "index.csv", "failures.csv"]
PATIENCE = 120


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Forty images, of which three cannot be read."""
    root = tmp_path_factory.mktemp("pictures")
    for number in range(40):
        if number in (5, 8, 31):
            (root / f"{number:02d}.png").write_bytes(b"no image")
        else:
            Image.effect_noise((20, 24), 60).convert("RGB").save(root / f"{number:02d}.png")
    return root


def config(pictures, out, **changes):
    return {
        "model": "tiny",
        "taps": ["classifier"],
        "source": {"type": "folder", "path": str(pictures)},
        "preprocess": "slow",
        "sink": {"type": "npy", "path": str(out)},
        "device": "cpu",
        "batch_size": 2,
        "shard_rows": 4,
        "threads": 1,
        "workers": 1,
        **changes,
    }


@pytest.fixture(scope="module")
def whole(pictures, tmp_path_factory):
    """The files that one process writes."""
    out = tmp_path_factory.mktemp("whole") / "out"
    layertap.run(config(pictures, out, observers=[]), plugins=OWN)
    return {name: (out / name).read_bytes() for name in FILES}


class Command:
    """A command of layertap in a process of its own."""

    def __init__(self, *arguments, **env):
        command = [sys.executable, "-m", "layertap", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **env}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.communicate()

    def ends(self):
        """Its exit code and what it printed."""
        said, _ = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, said


def start(tmp_path, settings):
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(settings))
    return Command("run", file, *OPTIONS)


def until(what):
    """What the function returns, once that is true."""
    limit = time.monotonic() + PATIENCE
    while not (found := what()):
        assert time.monotonic() < limit, "it took too long"
        time.sleep(0.05)
    return found


def workers(out, state="computing"):
    """What the workers of a run that is in progress say of themselves."""
    found = []
    for path in (out / "work" / "workers").glob("[!.]*.json"):
        try:
            found.append(json.loads(path.read_text())["report"])
        except (OSError, ValueError):
            continue
    return [report for report in found if report["state"] == state]


def processes(*words):
    """The processes whose command line has all these words."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if set(words) <= set(line):
            found.append(int(path.parent.name))
    return found


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def files(out):
    return {name: (out / name).read_bytes() for name in FILES}


def test_local_goes_on_without_a_worker_that_was_killed(pictures, whole, tmp_path):
    out = tmp_path / "out"
    slow = {"type": "slow", "seconds": 0.1}
    with start(tmp_path, config(pictures, out, engine={"type": "local", "devices": 2}, preprocess=slow)) as run:
        killed = until(lambda: workers(out))[0]
        os.kill(killed["pid"], signal.SIGKILL)
        code, said = run.ends()
    assert code == 3, said
    assert "37 of 40 images kept, 3 failed" in said
    assert f"worker {killed['worker']} on {killed['host']} lost" in said
    assert files(out) == whole
    assert sorted(path.name for path in out.iterdir()) == sorted([*FILES, "manifest.json"])
    assert (tmp_path / "out.logs" / f"{killed['worker']}.log").exists()
    assert not any("Fatal" in path.read_text() for path in (tmp_path / "out.logs").iterdir())


def test_workers_end_with_a_coordinator_that_is_killed(pictures, whole, tmp_path):
    out = tmp_path / "out"
    slow = {"type": "slow", "seconds": 0.1}
    settings = config(pictures, out, engine={"type": "local", "devices": 2}, preprocess=slow)
    with start(tmp_path, settings) as run:
        until(lambda: list((out / "commits").glob("*.json")))
        # Also one that is still importing torch, when the other is done with most of the images.
        begun = processes("work", str(out))
        assert len(begun) == 2
        run.process.kill()
    until(lambda: not any(is_alive(pid) for pid in begun))
    layertap.run({**settings, "engine": None, "observers": []}, plugins=OWN)
    assert files(out) == whole
    assert sorted(path.name for path in out.iterdir()) == sorted([*FILES, "manifest.json"])


def test_anybody_who_sees_the_folder_may_join(pictures, whole, tmp_path):
    out = tmp_path / "out"
    # Three shards, and no more before everybody is there.
    slow = {"type": "slow", "gate": str(tmp_path / "gate")}
    with start(tmp_path, config(pictures, out, engine="folder", preprocess=slow, image_timeout=PATIENCE)) as run:
        until(lambda: (out / "work" / "job.json").exists())
        with Command("work", out) as stranger:
            code, said = stranger.ends()
            assert code == 8, said
            assert f"to run them here, add --plugin {TINY}" in said
        with Command("work", out, "--name", "first", *OPTIONS) as first:
            until(lambda: list((out / "commits").glob("*.json")))
            # Another instruction set has other last bits.
            with Command("work", out, "--name", "old", *OPTIONS, ATEN_CPU_CAPABILITY="default") as old:
                code, said = old.ends()
                assert code == 6, said
                assert "the worker old on" in said
                assert "would compute otherwise than the run: processor was" in said
            with Command("work", out, "--name", "second", *OPTIONS) as second:
                until(lambda: any(worker["worker"] == "second" for worker in workers(out)))
                (tmp_path / "gate").touch()
                code, said = run.ends()
                assert (code, "worker old" in said) == (3, True), said
                assert [worker.ends()[0] for worker in (first, second)] == [0, 0]
    assert files(out) == whole
    with Command("work", out) as late:
        code, said = late.ends()
    assert (code, "no run with an engine is in progress here" in said) == (6, True), said


def test_error_of_a_worker_is_one_line_that_names_its_log(pictures, tmp_path):
    settings = config(pictures, tmp_path / "out", engine={"type": "local", "devices": 1}, preprocess="fails")
    own = [*OWN, str(Path(__file__).with_name("failing.py"))]
    with pytest.raises(layertap.LayertapError, match=r"^the worker local-\d+-0: .*not today.*out.logs/local-\d+-0.log"):
        layertap.run(settings, plugins=own)


def test_run_whose_workers_are_all_refused_ends(pictures, tmp_path):
    settings = config(pictures, tmp_path / "out", engine={"type": "local", "devices": 2}, preprocess="moody")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    own = ["--plugin", TINY, "--plugin", Path(__file__).with_name("moody.py")]
    with Command("run", tmp_path / "config.yaml", *own) as run:
        code, said = run.ends()
    assert code == 6, said
    assert 'now {"class": "InWorker"}' in said
    # Neither was started again, and each has ended as Python should.
    logs = [path.read_text() for path in (tmp_path / "out.logs").iterdir()]
    assert len(logs) == 2
    assert not any("Fatal" in log for log in logs)


def test_folder_of_logs_that_cannot_be_made_is_named(pictures, tmp_path):
    (tmp_path / "out.logs").touch()
    with pytest.raises(layertap.StoreError, match=r"out\.logs: File exists") as caught:
        layertap.run(config(pictures, tmp_path / "out", engine="local", observers=[]), plugins=OWN)
    assert caught.value.code == 7


def test_devices_that_are_not_there_are_refused(pictures, tmp_path):
    engine = {"type": "local", "devices": ["cuda:7"]}
    with pytest.raises(layertap.ConfigError, match=r"engine.devices: .*cuda:7.*this machine has \d+ CUDA devices"):
        layertap.run(config(pictures, tmp_path / "out", engine=engine), plugins=OWN)
