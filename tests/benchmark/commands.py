"""A comparison of whole commands: from the shell's prompt to features on disk, each in its own process.

`python -m tests.benchmark.commands [--images N] [--rounds N]` prints the table. The peers are installed next to the
environment, without changing it, each in its usual way; a failed installation is reported in the peer's row.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path

from layertap.bench.figures import Figure
from tests.benchmark import photographs

SCRIPTS = Path(__file__).with_name("scripts")

ALEXNET = {"type": "torchvision", "name": "alexnet", "weights": "random"}
RESNET = {"type": "timm", "name": "resnet18", "weights": "random"}


@dataclass(frozen=True)
class Peer:
    """A script, the model and layer for its measurement, and the packages that it needs besides this environment.

    `beside` is a package that is put on its path without its dependencies; `own` is one that pins others, and gets its
    own environment.
    """

    title: str
    script: str
    layer: str
    model: Mapping[str, str] = field(default_factory=lambda: ALEXNET)
    beside: str | None = None
    own: str | None = None


PEERS = [
    Peer("careful DataLoader script", "careful", "classifier.5"),
    Peer("careful DataLoader script", "careful", "features.2"),
    Peer("tutorial: load all, one forward", "tutorial", "classifier.5"),
    Peer("torchextractor + DataLoader", "with_torchextractor", "classifier.5", beside="torchextractor"),
    Peer("timm + DataLoader", "with_timm", "global_pool", RESNET),
    Peer("img2vec", "with_img2vec", "classifier.5", beside="img2vec-pytorch"),
    Peer("thingsvision", "with_thingsvision", "classifier.5", own="thingsvision"),
    Peer("thingsvision", "with_thingsvision", "features.2", own="thingsvision"),
]


@dataclass(frozen=True)
class Spent:
    """The time of a command, in seconds and core-seconds."""

    seconds: float
    cores: float


@dataclass(frozen=True)
class Result:
    """The times of a peer and layertap, round by round; `why` is the reason if there are none."""

    peer: Peer
    theirs: Sequence[Spent] = ()
    ours: Sequence[Spent] = ()
    version: str = ""
    why: str | None = None

    @property
    def ratio(self) -> Figure:
        """How many times as long the peer takes."""
        return Figure.of([their.seconds / our.seconds for their, our in zip(self.theirs, self.ours, strict=True)])


def measured(folder: Path, images: Path, rounds: int) -> list[Result]:
    """Each peer against layertap, in turn; the order changes from round to round."""
    _fake_pretrained(folder / "home")
    return [_against(peer, folder, images, rounds) for peer in PEERS]


def _against(peer: Peer, folder: Path, images: Path, rounds: int) -> Result:
    print(f"{peer.title}, {peer.layer}", file=sys.stderr)
    try:
        python, path, version = _installed(peer, folder)
    except subprocess.CalledProcessError as error:
        return Result(peer, why=f"does not install: {_last_line(error)}")
    theirs, ours = [], []
    environment = os.environ | {"PYTHONPATH": path, "TORCH_HOME": str(folder / "home")}
    script = [python, str(SCRIPTS / f"{peer.script}.py"), str(images), str(folder / "theirs.npy"), peer.layer]
    for number in range(rounds):
        for name in ("theirs", "ours") if number % 2 else ("ours", "theirs"):
            try:
                if name == "theirs":
                    theirs.append(_spent(script, environment))
                else:
                    ours.append(_spent(_layertap(peer, folder, images), dict(os.environ)))
            except subprocess.CalledProcessError as error:
                return Result(peer, version=version, why=f"fails: {_last_line(error)}")
    return Result(peer, theirs, ours, version)


def _layertap(peer: Peer, folder: Path, images: Path) -> list[str]:
    out = folder / "ours"
    shutil.rmtree(out, ignore_errors=True)
    config = {
        "model": dict(peer.model),
        "taps": [peer.layer],
        "source": {"type": "folder", "path": str(images)},
        "sink": {"type": "npy", "path": str(out)},
        "device": "cpu",
        "observers": [],
    }
    asked = folder / "config.yaml"
    asked.write_text(json.dumps(config))
    return [sys.executable, "-m", "layertap", "run", str(asked), "--quiet"]


def _spent(command: Sequence[str], environment: Mapping[str, str]) -> Spent:
    """Run to the end. Raises `CalledProcessError`."""
    with tempfile.TemporaryFile() as printed:
        started = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=printed, stderr=subprocess.STDOUT)
        # This counts this process and those that it has waited for, including a DataLoader's.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            printed.seek(0)
            raise subprocess.CalledProcessError(process.returncode, command, printed.read())
    return Spent(seconds, usage.ru_utime + usage.ru_stime)


def _installed(peer: Peer, folder: Path) -> tuple[str, str, str]:
    """The Python for a peer's script, the entries for its path, and the peer's version."""
    installing = [str(Path(sys.executable).with_name("uv")), "pip", "install", "--quiet"]
    if peer.own:
        place = folder / peer.own
        python = str(place / "bin" / "python")
        if not place.is_dir():
            subprocess.run([sys.executable, "-m", "venv", str(place)], check=True, capture_output=True)
            subprocess.run([*installing, "--python", python, peer.own], check=True, capture_output=True)
        (packages,) = place.glob("lib/python*/site-packages")
        return python, "", _version(packages, peer.own)
    if peer.beside:
        place = folder / peer.beside
        if not place.is_dir():
            command = [*installing, "--python", sys.executable, "--target", str(place), "--no-deps", peer.beside]
            subprocess.run(command, check=True, capture_output=True)
        return sys.executable, str(place), _version(place, peer.beside)
    return sys.executable, "", ""


def _version(place: Path, name: str) -> str:
    return next((found.version for found in distributions(path=[str(place)]) if found.name == name), "")


def _fake_pretrained(home: Path) -> None:
    """A file of AlexNet's weights under the name that torchvision looks for; its values do not affect the time."""
    import torch
    from torchvision.models import AlexNet_Weights, alexnet

    place = home / "hub" / "checkpoints"
    place.mkdir(parents=True)
    torch.save(alexnet().state_dict(), place / AlexNet_Weights.DEFAULT.url.rpartition("/")[2])


def _last_line(error: subprocess.CalledProcessError) -> str:
    lines = ((error.stderr or b"") + (error.output or b"")).decode(errors="replace").strip().splitlines()
    return lines[-1][:100] if lines else f"status {error.returncode}"


def table(results: Sequence[Result]) -> str:
    """The results as a table in Markdown."""
    lines = [
        "| against | layer | seconds | layertap's | times as fast | core-seconds | layertap's |",
        f"|{'---|' * 7}",
    ]
    for result in results:
        title = f"{result.peer.title} {result.version}".strip()
        layer = f"{result.peer.model['name']} `{result.peer.layer}`"
        if result.why is not None:
            lines.append(f"| {title} | {layer} | {result.why} |{' |' * 4}")
            continue
        ratio = result.ratio
        cells = [
            f"{_median(result.theirs, 'seconds'):.1f}",
            f"{_median(result.ours, 'seconds'):.1f}",
            f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})",
            f"{_median(result.theirs, 'cores'):.1f}",
            f"{_median(result.ours, 'cores'):.1f}",
        ]
        lines.append(f"| {title} | {layer} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _median(spent: Sequence[Spent], name: str) -> float:
    return Figure.of([float(getattr(one, name)) for one in spent]).median


def main() -> None:
    parser = argparse.ArgumentParser(description="Time whole commands: other libraries, plain scripts, and layertap.")
    parser.add_argument("--images", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        images = Path(name) / "images"
        images.mkdir()
        photographs.write(images, asked.images)
        print(table(measured(Path(name), images, asked.rounds)))


if __name__ == "__main__":
    main()
