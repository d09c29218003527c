"""Actors of a Ray cluster, on as many machines as it has."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

import layertap
from layertap_plugins.engines.processes import environment, how_it_ended, log_of

# Ray needs this long to end a cluster that was started here.
_PATIENCE = 15.0
_ROOM_SECONDS = 30.0
_DRIVER = "from layertap_plugins.engines.ray_driver import main; main()"


class Ray(layertap.CrewEngine):
    """Starts actors in a Ray cluster, each of which builds the model once; one that is lost is started again."""

    class Params(layertap.Params):
        address: Annotated[str, Field(pattern=r"^(auto|local|[^/]+:\d+)$")] | None = Field(
            "auto",
            description="auto: the cluster that runs here, or that RAY_ADDRESS names; HOST:PORT: its head node; local, "
            "or null: a cluster of this machine alone, for as long as the run lasts",
        )
        workers: int | None = Field(
            None, ge=1, le=100_000, description="actors; by default as many as the cluster has room for at the start"
        )
        gpus_per_worker: float = Field(
            0.0, ge=0, le=1, description="1: a GPU per worker; 0.5: two workers share one; 0: the CPU computes"
        )
        cpus_per_worker: int = Field(
            1, ge=1, le=1_024, description="cores per worker: torch's threads, and the threads that decode"
        )

    params: Params
    extra: ClassVar[str | None] = "ray"

    def workers(self) -> int | None:
        """The actors, where their number is configured."""
        return self.params.workers

    def threads(self) -> int | None:
        """The cores of a worker."""
        return self.params.cpus_per_worker

    @contextmanager
    def crew(self, job: layertap.Job) -> Iterator[layertap.Crew]:
        """The actors, which are ended with the block, as is a cluster that was started for them."""
        if importlib.util.find_spec("ray") is None:
            raise ModuleNotFoundError("no Ray is installed", name="ray")
        actors = _Actors(job)
        try:
            actors.connect(self.params.model_dump())
            yield actors
        finally:
            actors.end()


class _Actors(layertap.Crew):
    """The actors, through a process of its own that is Ray's driver (`ray_driver.py`)."""

    def __init__(self, job: layertap.Job) -> None:
        self._job = job
        self._logs = Path(job.logs)
        self._logs.mkdir(exist_ok=True)
        self._log = self._logs / f"ray-{os.getpid()}.log"
        self._names: set[str] = set()
        self._ended: dict[str, str] = {}
        self._text = b""
        self._since = time.monotonic()
        self._has_room = False
        with self._log.open("ab") as log:
            # Of a session of its own: an interrupt on the terminal is for the coordinator, which ends its workers.
            self._driver = subprocess.Popen(
                [sys.executable, "-c", _DRIVER],
                env=environment(RAY_USAGE_STATS_ENABLED="0"),
                cwd=job.directory,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )

    @property
    def names(self) -> Collection[str]:
        return self._names

    def connect(self, params: Mapping[str, Any]) -> None:
        """Join the cluster or start one, and ask for the actors. Raises `ConfigError`."""
        assert self._driver.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, which the next line finds
            self._driver.stdin.write(json.dumps({"job": self._job.data(), "params": params}).encode() + b"\n")
            self._driver.stdin.flush()
        while not self._names:
            self._read()
        os.set_blocking(self._output, False)

    def ended(self) -> Mapping[str, str]:
        # What was found at the last look: by now what a worker has said of itself, such as an error, has been read.
        found, self._ended = self._ended, {}
        self._names -= found.keys()
        with suppress(BlockingIOError):
            while True:
                self._read()
        self._warn_of_no_room()
        return found

    def log(self, worker: str) -> str:
        return log_of(self._logs, worker)

    def end(self) -> None:
        """End the driver, which ends its actors, and wait for it."""
        assert self._driver.stdin is not None
        assert self._driver.stdout is not None
        with suppress(BrokenPipeError):
            self._driver.stdin.close()
        try:
            self._driver.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            # With it what it has started here: they are of its session.
            os.killpg(self._driver.pid, signal.SIGKILL)
            self._driver.wait()
        self._driver.stdout.close()

    @property
    def _output(self) -> int:
        assert self._driver.stdout is not None
        return self._driver.stdout.fileno()

    def _read(self) -> None:
        """Take what the driver has said. Raises `BlockingIOError` where it has said nothing."""
        said = os.read(self._output, 65_536)
        if not said:
            how = how_it_ended(self._driver.wait())
            raise layertap.PluginError(
                f"the process that speaks to Ray {how}; what it printed is in {self._log}; run again to resume"
            )
        *lines, self._text = (self._text + said).split(b"\n")
        for line in lines:
            event = json.loads(line)
            if "unfit" in event:
                raise layertap.ConfigError(f"{event['unfit']} (what Ray printed is in {self._log})")
            if "started" in event:
                self._names.add(event["started"])
            else:
                self._ended[event["ended"]] = event["how"]

    def _warn_of_no_room(self) -> None:
        """Say once where Ray gives no actor a place: it waits for a node with one for ever."""
        if self._has_room or time.monotonic() - self._since < _ROOM_SECONDS:
            return
        self._has_room = True
        if not any(map(self.log, self._names)):
            warnings.warn(
                f"Ray has found no place for a worker in {_ROOM_SECONDS:.0f} s: the cluster needs a node with that "
                "many free CPUs and GPUs (`ray status` shows what it has)",
                stacklevel=2,
            )


@layertap.hookimpl
def register_engines(register: Callable[[str, type[layertap.Engine]], None]) -> None:
    register("ray", Ray)
