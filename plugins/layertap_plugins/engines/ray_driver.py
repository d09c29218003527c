"""Ray's driver for the engine `ray`, in a process of its own: it starts the actors, and says how each of them ends.

Ray's driver prints to the terminal, takes over signals, and ends its process when it loses the cluster. It reads one
line of JSON, with the job and the engine's parameters, and ends with its standard input. It writes JSON lines:

    {"started": NAME}             an actor that will run as soon as there is room for it
    {"ended": NAME, "how": "..."}  how it ended; another one has been started by then, unless it was refused
    {"unfit": "..."}              why no cluster can be used
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import layertap
from layertap_plugins.engines.processes import REFUSED, cores

_LOOK_SECONDS, _CONNECT_SECONDS = 0.1, 10.0
# Nothing goes through Ray's object store; this is about the least that Ray accepts.
_OBJECT_STORE = 80_000_000
# As `layertap work` has it.
_WORKER_PATIENCE = 120.0


class Actor:
    """One worker."""

    def __init__(self, job: layertap.Job, name: str, device: str, workers: int) -> None:
        self._job = job
        self._name = name
        self._device = device
        self._workers = workers

    def serve(self) -> tuple[int, str]:
        """Compute until the run is over; the exit code, and the error. What is printed goes into the worker's log."""
        _print_into(Path(self._job.logs) / f"{self._name}.log")
        try:
            with layertap.Worker(self._job, self._name, device=self._device, workers=self._workers) as worker:
                for _ in worker.serve(_WORKER_PATIENCE):
                    pass
        except layertap.LayertapError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.code, str(error)
        except BaseException:
            traceback.print_exc()
            raise
        return 0, ""


def main() -> None:
    """Run the actors of one engine until standard input ends."""
    with os.fdopen(os.dup(1), "w", buffering=1) as events:
        os.dup2(2, 1)
        order, over = json.loads(sys.stdin.readline()), threading.Event()
        threading.Thread(target=_wait_for_end, args=[over], daemon=True).start()

        def say(**event: str) -> None:
            print(json.dumps(event), file=events)

        try:
            _run(layertap.Job.of(order["job"]), order["params"], say, over)
        except BrokenPipeError:
            over.set()  # the coordinator has been killed


def _run(job: layertap.Job, params: Mapping[str, Any], say: Callable[..., None], over: threading.Event) -> None:
    import ray

    try:
        count = _connected(params)
    except Exception as error:
        traceback.print_exc()
        return say(unfit=_line(str(error)))
    cpus, gpus = params["cpus_per_worker"], params["gpus_per_worker"]
    remote: Any = ray.remote(Actor)
    placed = remote.options(num_cpus=cpus, num_gpus=gpus, max_restarts=0, scheduling_strategy="SPREAD")
    device, workers = "cuda" if gpus else "cpu", job.config.get("workers") or cpus
    running: dict[Any, tuple[str, Any]] = {}
    # Of the machine's name and a process's number, two coordinators in containers can have the same.
    stem, started = f"ray-{secrets.token_hex(4)}", 0

    def start() -> None:
        nonlocal started
        name, started = f"{stem}-{started}", started + 1
        actor = placed.remote(job, name, device, workers)
        running[actor.serve.remote()] = name, actor
        say(started=name)

    for _ in range(count):
        start()
    while not over.wait(_LOOK_SECONDS):
        done = ray.wait(list(running), num_returns=len(running), timeout=0)[0] if running else []
        for reference in done:
            name, actor = running.pop(reference)
            how, again = _end_of(reference)
            ray.kill(actor)
            if again:
                start()
            say(ended=name, how=how)
    for _, actor in running.values():
        ray.kill(actor)
    ray.shutdown()


def _connected(params: Mapping[str, Any]) -> int:
    """How many actors to start in the cluster that this process has joined, or started."""
    import ray

    address, cpus, gpus = params["address"] or "local", params["cpus_per_worker"], params["gpus_per_worker"]
    if address == "local":
        ray.init(
            address="local",
            num_cpus=max(cores(), cpus * (params["workers"] or 1)),
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE,
            log_to_driver=False,
        )
    else:
        try:
            _try(os.environ.get("RAY_ADDRESS", address) if address == "auto" else address)
            ray.init(address=address, log_to_driver=False)
        except OSError as error:
            raise layertap.ConfigError(
                f"address={address}: there is no Ray cluster ({_line(str(error))}); start one with `ray start --head`, "
                "or set address=local"
            ) from error
    nodes: Any = ray.nodes  # it has no types
    room = sum(_room(node["Resources"], cpus, gpus) for node in nodes() if node["Alive"])
    # A cluster that grows may have room for them later.
    if not room and (address == "local" or params["workers"] is None):
        raise layertap.ConfigError(f"no node of the Ray cluster has {cpus} CPUs and {gpus:g} GPUs, as a worker needs")
    return int(params["workers"] or room)


def _try(address: str) -> None:
    """Raise `OSError` if nothing answers at HOST:PORT: Ray would try for minutes."""
    if found := re.fullmatch(r"\[?([^/\]]+)\]?:(\d+)", address):
        socket.create_connection((found[1], int(found[2])), _CONNECT_SECONDS).close()


def _room(resources: Mapping[str, float], cpus: int, gpus: float) -> int:
    by_cpu = int(resources.get("CPU", 0) / cpus)
    return min(by_cpu, int(resources.get("GPU", 0) / gpus)) if gpus else by_cpu


def _end_of(reference: Any) -> tuple[str, bool]:
    """How an actor has ended, and whether another one is needed."""
    import ray

    try:
        code, message = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        return f"failed: {_line(str(error.cause or error))}", True
    except ray.exceptions.RayError as error:  # RayActorError: the process or its whole node is gone
        said = str(error).strip().splitlines() or [type(error).__name__]
        return f"was lost: {_line(said[-1].partition(' Some common causes')[0])}", True
    return f"ended with exit code {code}: {message}" if code else "left", code not in (0, REFUSED)


def _print_into(log: Path) -> None:
    """Send what this process and its children print into a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    for number in (1, 2):
        os.dup2(descriptor, number)
    os.close(descriptor)


def _wait_for_end(over: threading.Event) -> None:
    # Not through sys.stdin: Python aborts where it ends while a thread has the lock of that.
    while os.read(0, 1):
        pass
    over.set()


def _line(text: str) -> str:
    return " ".join(text.split())[:400]
