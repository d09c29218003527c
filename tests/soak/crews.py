"""A plugin file with an engine whose workers are forked, so that a trial of a whole crew costs a tenth of a second."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import Field

import layertap
from tests.soak import faults

_PR_SET_PDEATHSIG = 1


class Forked(layertap.CrewEngine):
    """Workers that end with the coordinator."""

    patience = 20.0

    class Params(layertap.Params):
        workers: int = Field(2, description="how many")
        trace: str | None = Field(None, description="the file for the trace of the first worker")
        at: int = Field(0, description="the operation at which the first worker has a fault")
        how: str = Field("before", description="what happens to it there")
        every: bool = Field(False, description="whether every worker has the fault")

    params: Params

    @contextmanager
    def crew(self, job: layertap.Job) -> Iterator[layertap.Crew]:
        crew = _Children(job, self.params, self.patience)
        try:
            yield crew
        finally:
            crew.end()


class _Children(layertap.Crew):
    def __init__(self, job: layertap.Job, params: Any, patience: float) -> None:
        self._job, self._params, self._patience = job, params, patience
        self._children: dict[str, int] = {}
        self._started = 0
        for _ in range(params.workers):
            self._start()

    @property
    def names(self) -> Collection[str]:
        return self._children

    def ended(self) -> Mapping[str, str]:
        found = {}
        for name, pid in list(self._children.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                found[name] = f"ended with {code}"
                del self._children[name]
                if code != 6:
                    self._start()
        return found

    def end(self) -> None:
        for pid in self._children.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def _start(self) -> None:
        number, self._started = self._started, self._started + 1
        name = f"forked-{os.getpid()}-{number}"
        pid = os.fork()
        if pid:
            self._children[name] = pid
            return
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        params = self._params
        has_fault = params.at and (number == 0 or params.every)
        trace = Path(params.trace) if params.trace and number == 0 else Path(os.devnull)
        faults.restart(trace, faults.Fault(params.at, params.how) if has_fault else None)
        os._exit(_served(self._job, name, self._patience))


def _served(job: layertap.Job, name: str, patience: float) -> int:
    try:
        with layertap.Worker(job, name) as worker:
            for _ in worker.serve(patience):
                pass
    except layertap.LayertapError as error:
        print(error, file=sys.stderr)
        return error.code
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        return 1
    return 0


@layertap.hookimpl
def register_engines(register: Callable[[str, type[layertap.Engine]], None]) -> None:
    register("forked", Forked)
