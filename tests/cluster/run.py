"""`make cluster`: runs on a real SLURM of this machine, with a task killed in each, compared with one process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from tests.cluster import slurm

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "configs" / "slurm.sh"

_IMAGES, _UNREADABLE = 600, (5, 123, 599)
_SECONDS = 300.0

_CONFIG = """\
model: {{type: torchvision, name: squeezenet1_1, weights: random}}
taps: [classifier.3, {{layer: features.12, reduce: [mean_pool]}}]
source: {{type: folder, path: {folder}/images}}
sink: {{type: npy, path: unused}}
threads: 1
batch_size: 2
shard_rows: 4
device: cpu
"""


def main() -> None:
    """Compare what each form of a run leaves."""
    if os.geteuid() != 0:
        sys.exit("this installs packages and starts the daemons of SLURM: run it as root")
    slurm.install()
    with tempfile.TemporaryDirectory(prefix="layertap-cluster-") as name:
        folder = Path(name)
        config = _prepare(folder)
        _layertap(config, folder / "one")
        with slurm.cluster(folder / "slurm"):
            _say("the engine slurm, one of three tasks killed")
            _killed(config, folder / "killed")
            _compare(folder, "killed")
            _say("the engine slurm, its only task queued again")
            _requeued(config, folder / "requeued")
            _compare(folder, "requeued")
            _say(f"{SCRIPT.name}, one of its workers killed")
            _script(config, folder / "script")
            _compare(folder, "script")


def _killed(config: Path, output: Path) -> None:
    with _started(config, output, "workers: 3") as task:
        _say(f"scancel --signal=KILL {task}")
        subprocess.run(["scancel", "--signal=KILL", task], check=True)
    states = _states()
    _refuse(len(states) == 4, "the killed task has not been replaced")


def _requeued(config: Path, output: Path) -> None:
    with _started(config, output, "workers: 1") as task:
        _say(f"scontrol requeue {task}")
        subprocess.run(["scontrol", "requeue", task], check=True)
    states = _states("--duplicates", f"--jobs={task}")
    _refuse(len(states) == 2, "the task has not been queued again, or it has been replaced")


@contextmanager
def _started(config: Path, output: Path, workers: str) -> Iterator[str]:
    """A run with the engine, and a task that computes."""
    engine = f"engine={{type: slurm, {workers}, cpus: 1, time: 10, partition: main}}"
    run = subprocess.Popen(_command(config, output, engine))
    _until(lambda: _computing(output) or run.poll() is not None)
    # The name of a worker is `slurm-TASK-RESTARTS`.
    yield _computing(output)[0].split("-")[1]
    _finished(run.wait(_SECONDS))
    _until(lambda: not _printed(["squeue", "-h"]).strip())


def _states(*which: str) -> list[str]:
    found = _printed(["sacct", "-X", "-n", "-P", "-o", "JobID,State", *which]).splitlines()
    _say(f"sacct: {', '.join(found)}")
    return found


def _script(config: Path, output: Path) -> None:
    command = ["sbatch", "--parsable", "--ntasks=3", str(SCRIPT), str(config), str(output)]
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    job = _printed(command, cwd=config.parent, env=env).strip()
    _until(lambda: _computing(output))
    steps = [line for line in _printed(["squeue", "-h", "--steps", "-o", "%i", "-j", job]).split() if "." in line]
    step = next(step for step in steps if step.split(".")[1].isdigit())
    _say(f"scancel --signal=KILL {step}, of the steps {' '.join(steps)}")
    subprocess.run(["scancel", "--signal=KILL", step], check=True)
    _until(lambda: not _printed(["squeue", "-h", "-j", job]).strip())
    state = _printed(["sacct", "-X", "-n", "-P", "-j", job, "-o", "State,ExitCode"]).strip()
    _say(f"sacct: {state}")
    _say((config.parent / f"layertap-{job}.log").read_text())
    # 3: some images cannot be read.
    _refuse(state == "FAILED|3:0", "the job has not ended as the run")


def _prepare(folder: Path) -> Path:
    """Drawn images, of which a few cannot be read, and the configuration."""
    images = folder / "images"
    images.mkdir()
    for number in range(_IMAGES):
        path = images / f"{number:04d}.png"
        Image.effect_mandelbrot((320, 240), (-2 + number / 999, -1.5, 1, 1.5), 60).save(path)
        if number in _UNREADABLE:
            path.write_bytes(path.read_bytes()[:200])
    config = folder / "run.yaml"
    config.write_text(_CONFIG.format(folder=folder))
    return config


def _layertap(config: Path, output: Path) -> None:
    _finished(subprocess.run(_command(config, output)).returncode)


def _command(config: Path, output: Path, *overrides: str) -> list[str]:
    command = [sys.executable, "-m", "layertap", "run", str(config), f"sink.path={output}", "--quiet"]
    return [*command, *overrides]


def _finished(code: int) -> None:
    _refuse(code == 3, f"the run has ended with {code}, and not with 3: some images failed")


def _computing(output: Path) -> list[str]:
    """The workers that have taken a shard."""
    return [path.name.split(".")[1] for path in output.glob("work/taken/*.json")]


def _compare(folder: Path, name: str) -> None:
    one, other = (_files(folder / each) for each in ("one", name))
    _refuse(one == other, f"{name}: {sorted(set(one) ^ set(other)) or 'bytes'} differ from those of one process")
    _say(f"{name}: {len(one)} files, {sum(map(len, one.values()))} bytes, as of one process")


def _files(output: Path) -> dict[str, bytes]:
    found = {path.relative_to(output).as_posix(): path for path in output.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name != "manifest.json"}


def _printed(command: list[str], **how: object) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, **how).stdout


def _until(holds: Callable[[], object]) -> None:
    until = time.monotonic() + _SECONDS
    while not holds():
        _refuse(time.monotonic() < until, f"nothing has happened for {_SECONDS:.0f} s")
        time.sleep(0.05)


def _refuse(holds: bool, fault: str) -> None:
    if not holds:
        sys.exit(f"cluster: {fault}")


def _say(text: str) -> None:
    print(f"cluster: {text}", flush=True)


if __name__ == "__main__":
    main()
