"""Tasks of a SLURM array, each of which runs `layertap work`; they are submitted and watched with submitit."""

from __future__ import annotations

import dataclasses
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

import layertap
from layertap_plugins.engines.processes import REFUSED, plugin_options

if TYPE_CHECKING:
    import submitit

# How often SLURM is asked about the tasks: each time is one call of sacct for all of them.
_ASK_SECONDS = {"slurm": 10.0, "local": 0.2}

# How long a task that has started early waits for the run's folder, and this process for those on this machine to end.
_WAIT_SECONDS, _PATIENCE = 60, 30.0

_MOST_RESTARTS = 1_000

# States of SLURM in which a task has yet to run, and those in which it lives.
_QUEUED = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT")
_LIVES = ("CONFIGURING", "READY", "RUNNING", "COMPLETING", "RESIZING", "STOPPED", "SUSPENDED", "UNKNOWN")


class Slurm(layertap.CrewEngine):
    """Submits an array of tasks to SLURM and cancels what is left of it at the end; a task that ends is replaced.

    The logs of the tasks are in `OUT.logs/`. A task that SLURM queues again takes shards again.
    """

    extra: ClassVar[str | None] = "slurm"

    class Params(layertap.Params):
        workers: int = Field(1, ge=1, le=10_000, description="tasks of the array, each of which is one worker")
        partition: str | None = Field(None, min_length=1, description="partition; by default SLURM's own")
        gpus: Literal[0, 1] = Field(0, description="GPUs per worker: 1, or 0 to compute on the CPU")
        cpus: int = Field(1, ge=1, le=1_024, description="cores per worker, which are also torch's threads")
        time: int = Field(60, ge=1, description="minutes that a task may run; then it is queued again")
        parameters: dict[str, str | int | float | bool] = Field(
            {}, description="further options of sbatch by their long names, such as {account: vision, mem: 16G}"
        )
        cluster: Literal["slurm", "local"] = Field(
            "slurm", description="local runs the tasks as processes of this machine, to try a configuration"
        )

    params: Params

    def workers(self) -> int | None:
        """The tasks of the array."""
        return self.params.workers

    def threads(self) -> int | None:
        """The cores of a worker."""
        return self.params.cpus

    @contextmanager
    def crew(self, job: layertap.Job) -> Iterator[layertap.Crew]:
        """The tasks, which are cancelled with the block."""
        tasks = _Tasks(job, self.params)
        try:
            yield tasks
        finally:
            tasks.cancel()


class _Tasks(layertap.Crew):
    def __init__(self, job: layertap.Job, params: Slurm.Params) -> None:
        self._params = params
        self._logs: dict[str, Path] = {}
        self._running: list[_Task] = []
        self._asked = time.monotonic()
        self._work = _Work(job.folder, tuple(job.plugins), params.cpus, "cuda" if params.gpus else "cpu")
        self._executor = _executor(job.logs, params)
        self._submit(params.workers)

    @property
    def names(self) -> Collection[str]:
        return [task.name for task in self._running]

    def ended(self) -> Mapping[str, str]:
        now, found = time.monotonic(), dict[str, str]()
        if now - self._asked < _ASK_SECONDS[self._params.cluster]:
            return found
        self._asked, mode, replaced = now, "force", 0
        for task in list(self._running):
            name, how = task.name, task.ended(mode)
            mode = "cache"  # the first answer is about every task
            if how is not None:
                found[name] = how
                self._logs[task.name] = task.job.paths.stdout
                if task.is_over:
                    self._running.remove(task)
                    replaced += task.code != REFUSED
        self._submit(replaced)
        return found

    def log(self, worker: str) -> str:
        path = self._logs.get(worker)
        return str(path) if path is not None and path.exists() else ""

    def cancel(self) -> None:
        """Cancel what is not over. SLURM ends the processes; those of this machine are waited for."""
        for task in self._running:
            task.cancel()
        until = time.monotonic() + _PATIENCE
        if self._params.cluster == "local":
            while not all(task.job.done() for task in self._running) and time.monotonic() < until:
                time.sleep(0.05)

    def _submit(self, count: int) -> None:
        if not count:
            return
        from submitit.helpers import clean_env

        # A run may itself be a task of SLURM, whose variables are not for the tasks that it submits. This one is.
        place = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
        try:
            with clean_env():
                os.environ.update(place)
                with self._executor.batch():
                    jobs = [self._executor.submit(self._work) for _ in range(count)]
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            raise layertap.ConfigError(f"SLURM has refused the tasks: {_last_line(error)}") from error
        for job in jobs:
            task = _Task(job, self._params.cluster)
            self._running.append(task)
            self._logs[task.name] = job.paths.stdout


@dataclass
class _Task:
    """A task of the array, which lives again under another name each time that SLURM queues it again."""

    job: submitit.Job[int]
    cluster: str
    restarts: int = 0
    has_run: bool = False
    is_over: bool = False
    code: int | None = None

    @property
    def name(self) -> str:
        return _name(self.job.job_id, self.restarts)

    def ended(self, mode: str) -> str | None:
        """How the worker ended that the task was; None while it lives."""
        if self.job.paths.result_pickle.exists():
            self.is_over, self.code = True, _code(self.job)
            return f"ended with exit code {self.code}"
        if self.cluster == "local":
            self.is_over = self.job.done()
            return "was killed" if self.is_over else None
        state = self.job.watcher.get_state(self.job.job_id, mode).upper()
        if state in _QUEUED:
            again, self.has_run = self.has_run, False
            self.restarts += again
            return "was queued again" if again else None
        self.has_run = True
        self.is_over = state.split()[0] not in _LIVES
        return f"ended as {state}" if self.is_over else None

    def cancel(self) -> None:
        if self.cluster == "slurm":
            self.job.cancel(check=False)
        elif not self.job.done():
            # submitit's own cancel() interrupts its process, which then prints a traceback on the terminal.
            os.kill(int(self.job.job_id), signal.SIGTERM)


@dataclass(frozen=True)
class _Work:
    """What a task does."""

    folder: str
    plugins: tuple[str, ...]
    cpus: int
    device: str
    restarts: int = 0

    def __call__(self) -> int:
        """Be `layertap work`; its exit code."""
        import submitit

        restarts = int(os.environ.get("SLURM_RESTART_COUNT", self.restarts))
        name = _name(submitit.JobEnvironment().job_id, restarts)
        sys.argv = ["layertap", "work", self.folder, "--name", name, "--device", self.device]
        sys.argv += ["--workers", str(self.cpus), "--wait", str(_WAIT_SECONDS), *plugin_options(self.plugins)]
        try:
            runpy.run_module("layertap", run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            return ended.code if isinstance(ended.code, int) else 0
        return 0

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """The same again, when the time is over or another job needs the place."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(dataclasses.replace(self, restarts=self.restarts + 1))


def _executor(logs: str, params: Slurm.Params) -> submitit.AutoExecutor:
    import submitit

    try:
        executor = submitit.AutoExecutor(logs, cluster=params.cluster, slurm_max_num_timeout=_MOST_RESTARTS)
    except RuntimeError as error:
        raise layertap.ConfigError(
            "this machine has no SLURM: there is no srun; `cluster: local` runs the tasks here", where=("cluster",)
        ) from error
    executor.update_parameters(
        name="layertap",
        timeout_min=params.time,
        cpus_per_task=params.cpus,
        stderr_to_stdout=True,
        slurm_array_parallelism=params.workers,
        # srun does not take this from sbatch.
        slurm_srun_args=[f"--cpus-per-task={params.cpus}"],
        slurm_additional_parameters=dict(params.parameters),
        **({"gpus_per_node": params.gpus} if params.gpus else {}),
        **({"slurm_partition": params.partition} if params.partition else {}),
    )
    return executor


def _name(job: str, restarts: int) -> str:
    return f"slurm-{job}-{restarts}"


def _code(job: submitit.Job[int]) -> int:
    """The exit code that a task has left."""
    from submitit.core.utils import UncompletedJobError

    try:
        return job.result()
    except UncompletedJobError:  # it raised
        return 1


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


@layertap.hookimpl
def register_engines(register: Callable[[str, type[layertap.Engine]], None]) -> None:
    register("slurm", Slurm)
