"""The engine `ray` on a real cluster, whose nodes are other processes: whatever dies, the bytes are one process's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import layertap

pytest.importorskip("ray")

PLUGIN = str(Path(__file__).with_name("ray_nodes.py"))
ROOT = Path(__file__).parents[2]


class Cluster:
    """A head node and one more, with a core each; `node` adds others."""

    def __init__(self, folder: Path) -> None:
        env = {**os.environ, "RAY_TMPDIR": str(folder), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
        self.log = (folder / "log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.plugins.ray_cluster"],
            cwd=ROOT,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            bufsize=1,
            start_new_session=True,
        )
        self.address = self.process.stdout.readline().strip()
        self.order({"add": 1, "env": {}})

    def order(self, order) -> int:
        self.process.stdin.write(json.dumps(order) + "\n")
        return int(self.process.stdout.readline())

    @contextmanager
    def node(self, cpus=1, **env):
        """One more node while the block lasts; calling what it gives kills the node."""
        number, removed = self.order({"add": cpus, "env": env}), []

        def remove():
            if not removed:
                removed.append(self.order({"remove": number}))

        try:
            yield remove
        finally:
            remove()

    def end(self) -> None:
        self.process.stdin.close()
        try:
            self.process.wait(20)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
            self.process.stdout.close()
            self.log.close()


@pytest.fixture(scope="module")
def cluster():
    # Not pytest's folder: the name of a socket has to be short.
    with (
        tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_AUTH_MODE", "disabled")
        found = Cluster(Path(folder))
        try:
            yield found
        finally:
            found.end()


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Those from the seventeenth on are 25 pixels wide; some are not images."""
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(60):
        path = folder / f"{number:03d}.png"
        if number % 13 == 5:
            path.write_bytes(b"not an image")
        else:
            pixels = random.integers(0, 256, (20, 24 if number < 16 else 25, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture(scope="module")
def expected(images, tmp_path_factory):
    """The outputs of one process, by sink."""
    folder, found = tmp_path_factory.mktemp("expected"), {}

    def output(sink: str) -> Path:
        if sink not in found:
            found[sink] = folder / sink
            extract(config(images, found[sink], sink))
        return found[sink]

    return output


def config(images, path, sink="npy", gate=None, **engine):
    return {
        "model": {"type": "tiny"},
        "source": {"type": "folder", "path": str(images)},
        "preprocess": {"type": "on_nodes", "gate": str(gate) if gate else None},
        "taps": ["features.3", "classifier"],
        "sink": {"type": sink, "path": str(path)},
        "batch_size": 4,
        "shard_rows": 4,
        "threads": 1,
        "device": "cpu",
        "image_timeout": 600,
        "observers": [],
        **({"engine": {"type": "ray", **engine}} if engine else {}),
    }


def extract(written) -> layertap.Report:
    return layertap.run(written, plugins=[PLUGIN])


def contents(path: Path) -> dict[str, bytes]:
    files = (file for file in path.rglob("*") if file.is_file() and file.name != "manifest.json")
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def logs(path: Path) -> list[str]:
    """What each worker has printed."""
    return [file.read_text() for file in sorted(Path(f"{path}.logs").glob("ray-????????-*.log"))]


def wait_until(condition) -> None:
    until = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < until, "has waited in vain"
        time.sleep(0.05)


@contextmanager
def meanwhile(condition, action):
    """While the block lasts, `action` follows as soon as `condition` holds."""

    def act():
        try:
            wait_until(condition)
        finally:
            action()

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(act)
        yield
        done.result()


def test_two_nodes_write_the_bytes_of_one_process(cluster, images, expected, tmp_path, capfd):
    report = extract(config(images, tmp_path / "out", "parquet", address=cluster.address, workers=2))
    assert report.failed == 5
    assert contents(tmp_path / "out") == contents(expected("parquet"))
    assert len(logs(tmp_path / "out")) == 2
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("sink", ["lance", "zarr"])
def test_two_nodes_write_the_values_of_one_process(sink, cluster, images, expected, tmp_path):
    extract(config(images, tmp_path / "out", sink, address=cluster.address))
    found, wanted = layertap.open(tmp_path / "out"), layertap.open(expected(sink))
    assert (found.index, found.failures) == (wanted.index, wanted.failures)
    for tap in wanted.taps:
        assert np.array_equal(np.asarray(found[tap]), np.asarray(wanted[tap]))


def test_a_node_that_is_lost_changes_nothing(cluster, images, expected, tmp_path):
    gate = tmp_path / "gate"
    written = config(images, tmp_path / "out", "safetensors", gate, address=cluster.address, workers=3)
    with cluster.node(LAYERTAP_TEST_HELD="1") as remove, meanwhile((tmp_path / "gate.reached").exists, remove):
        extract(written)
    assert contents(tmp_path / "out") == contents(expected("safetensors"))
    assert sum("waiting at the gate" in log for log in logs(tmp_path / "out")) == 1


def test_a_coordinator_that_is_killed_leaves_no_actor_and_is_run_again(cluster, images, expected, tmp_path):
    gate = tmp_path / "gate"
    written = config(images, tmp_path / "out", "npy", gate, address=cluster.address, workers=3)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(written))
    command = [sys.executable, "-m", "layertap", "run", str(tmp_path / "run.yaml"), "--plugin", PLUGIN]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with cluster.node(LAYERTAP_TEST_HELD="1"):
        with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as coordinator:
            wait_until((tmp_path / "gate.reached").exists)
            pids = [json.loads(file.read_text())["report"]["pid"] for file in (tmp_path / "out/work/workers").iterdir()]
            coordinator.kill()
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
        gate.touch()
        extract(written)
    assert contents(tmp_path / "out") == contents(expected("npy"))


def test_a_refused_worker_is_not_started_again(cluster, images, expected, tmp_path):
    gate, said = tmp_path / "gate", "would compute otherwise than the run: threads"

    def refused():
        return sum(said in log for log in logs(tmp_path / "out"))

    written = config(images, tmp_path / "out", "npy", gate, address=cluster.address, workers=3)
    with cluster.node(LAYERTAP_TEST_WRONG="threads"), meanwhile(refused, (tmp_path / "gate.reached").touch):
        extract(written)
    assert contents(tmp_path / "out") == contents(expected("npy"))
    assert refused() == 1
    assert len(logs(tmp_path / "out")) == 3


def test_a_run_whose_workers_are_all_refused_says_why(cluster, images, tmp_path):
    written = config(images, tmp_path / "out", address=cluster.address, cpus_per_worker=2)
    with (
        cluster.node(cpus=2, LAYERTAP_TEST_WRONG="version"),
        pytest.raises(layertap.LayertapError, match=r"version of pillow.* \(what it printed is in ") as caught,
    ):
        extract(written)
    assert caught.value.code == 6
    assert Path(str(caught.value).rpartition(" is in ")[2].rstrip(")")).is_file()


def test_a_cluster_without_a_place_for_a_worker_is_refused(cluster, images, tmp_path):
    with pytest.raises(layertap.ConfigError, match="no node of the Ray cluster has 1 CPUs and 1 GPUs"):
        extract(config(images, tmp_path / "out", address=cluster.address, gpus_per_worker=1))


def test_an_address_without_a_cluster_is_refused(images, tmp_path):
    with pytest.raises(layertap.ConfigError, match=r"127.0.0.1:9: there is no Ray cluster .*address=local"):
        extract(config(images, tmp_path / "out", address="127.0.0.1:9"))


def test_a_cluster_that_gives_no_place_is_warned_of(cluster, images, tmp_path, monkeypatch):
    monkeypatch.setattr("layertap_plugins.engines.ray._ROOM_SECONDS", 0.5)
    written = config(images, tmp_path / "out", address=cluster.address, workers=1, cpus_per_worker=50)
    # A warning is an error in tests.
    with pytest.raises(layertap.PluginError, match="Ray has found no place for a worker"):
        extract(written)


def test_a_cluster_of_its_own_ends_with_the_run(images, expected, tmp_path, capfd):
    extract(config(images, tmp_path / "out", address="local", workers=2))
    assert contents(tmp_path / "out") == contents(expected("npy"))
    assert capfd.readouterr() == ("", "")
