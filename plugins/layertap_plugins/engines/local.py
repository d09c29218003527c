"""Processes of this machine: one per GPU, or several that share the cores."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

import layertap
from layertap_plugins.engines.processes import REFUSED, cores, environment, how_it_ended, log_of, plugin_options

_PATIENCE = 5.0


class Local(layertap.CrewEngine):
    """Runs `layertap work` in processes of its own, which end with this one; one that dies is started again."""

    class Params(layertap.Params):
        devices: (
            Literal["all"] | Annotated[int, Field(ge=1, le=1_024)] | list[Annotated[str, Field(pattern=r"^cuda:\d+$")]]
        ) = Field(
            "all",
            description="all GPUs (one process where there is none), a list such as [cuda:0, cuda:1], or a number of "
            "processes on the CPU",
        )

    params: Params

    def workers(self) -> int | None:
        """One per device."""
        return len(self._places())

    def threads(self) -> int | None:
        """The cores, shared out among the processes; torch's own choice on GPUs."""
        places = self._places()
        return None if places[0] else max(1, cores() // len(places))

    @contextmanager
    def crew(self, job: layertap.Job) -> Iterator[layertap.Crew]:
        """The processes, which are ended with the block."""
        processes = _Processes(job, self._places())
        try:
            yield processes
        finally:
            processes.end()

    def _places(self) -> Sequence[str]:
        """What each process sees of the GPUs; empty for the CPU."""
        devices = self.params.devices
        if isinstance(devices, int):
            return [""] * devices
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        wanted = range(count) if devices == "all" else [int(device.partition(":")[2]) for device in devices]
        if any(index >= count for index in wanted) or devices == []:
            raise layertap.ConfigError(f"{devices}: this machine has {count} CUDA devices", where=("devices",))
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        return [visible[index] if visible[0] else str(index) for index in wanted] or [""]


class _Processes(layertap.Crew):
    def __init__(self, job: layertap.Job, places: Sequence[str]) -> None:
        self._job = job
        self._places = places
        self._logs = Path(job.logs)
        self._logs.mkdir(exist_ok=True)
        self._running: dict[str, tuple[int, subprocess.Popen[bytes]]] = {}
        self._started = 0
        for place in range(len(places)):
            self._start(place)

    @property
    def names(self) -> Collection[str]:
        return self._running

    def ended(self) -> Mapping[str, str]:
        found: dict[str, str] = {}
        for name, (place, process) in list(self._running.items()):
            if (code := process.poll()) is not None:
                found[name] = how_it_ended(code)
                del self._running[name]
                if code != REFUSED:
                    self._start(place)
        return found

    def log(self, worker: str) -> str:
        return log_of(self._logs, worker)

    def end(self) -> None:
        """End every process, and wait for it."""
        for _, process in self._running.values():
            process.terminate()
        for _, process in self._running.values():
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdin:
                process.stdin.close()

    def _start(self, place: int) -> None:
        visible, name = self._places[place], f"local-{os.getpid()}-{self._started}"
        self._started += 1
        command = [sys.executable, "-m", "layertap", "work", self._job.folder, "--name", name, "--attached"]
        if self._job.config.get("workers") is None:
            command += ["--workers", str(max(1, cores() // len(self._places)))]
        command += ["--device", "cuda" if visible else "cpu"]
        command += plugin_options(self._job.plugins)
        with (self._logs / f"{name}.log").open("ab") as log:
            # Of a session of its own: an interrupt on the terminal is for the coordinator, which ends its workers.
            self._running[name] = (
                place,
                subprocess.Popen(
                    command,
                    env=environment(**({"CUDA_VISIBLE_DEVICES": visible} if visible else {})),
                    cwd=self._job.directory,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                ),
            )


@layertap.hookimpl
def register_engines(register: Callable[[str, type[layertap.Engine]], None]) -> None:
    register("local", Local)
