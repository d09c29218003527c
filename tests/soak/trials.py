"""Runs in forked children of one process that has already loaded torch, so that a trial costs a tenth of a second.

The process is a separate helper, so that neither pytest's threads nor torch's thread pool can disturb a fork.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import layertap
from tests.soak.faults import Fault, Faults

ROOT = Path(__file__).parents[2]
TINY = str(ROOT / "tests/tiny.py")
ACTORS = str(Path(__file__).with_name("actors.py"))
CREWS = str(Path(__file__).with_name("crews.py"))
PLUGINS = [TINY, ACTORS, CREWS]
PATIENCE = 60.0
_MARK = "LAYERTAP_TRIAL"

Outcome = dict[str, Any]


class Trials:
    """Requests runs from the helper. Close it to end the helper."""

    def __init__(self) -> None:
        # One thread in every library: the idle threads of a pool do not survive a fork.
        alone = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self._helper = subprocess.Popen(
            [sys.executable, "-m", "tests.soak.trials"],
            cwd=ROOT,
            env=os.environ | alone,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, config: Mapping[str, Any], trace: Path, fault: Fault | None = None, **how: Any) -> Outcome:
        """One run to its end, or to its `fault`.

        The outcome's `code` is 0, the code of the error, or minus the signal; `message` is the error's. `how` may hold
        `retry_failed`; `look`, finished outputs to compare with before the run; `signals`, pairs of seconds to wait
        and a signal to send, the first counted from the start; `arguments`, a command line to run instead of
        `layertap.run`, and `output`, the file for what it prints. STARTED in it is a descriptor: the signals wait for a
        byte written there.
        """
        return self._ask("one", config=config, trace=str(trace), fault=vars(fault) if fault else None, **how)[0]

    def look(self, out: Path, *references: Path) -> list[Outcome]:
        """What a reader sees of an output: `rows` (None for no output), whether it is `complete`, and what is `wrong`
        by each of some finished outputs."""
        return self._ask("one", out=str(out), look=[str(reference) for reference in references])[0]["seen"]

    def race(self, config: Mapping[str, Any], traces: Sequence[Path]) -> list[Outcome]:
        """As many runs as there are traces, all started at once; the one that proceeds waits for the others to end."""
        return self._ask("race", config=config, traces=[str(trace) for trace in traces])

    def overtake(self, config: Mapping[str, Any], fault: Fault, traces: Sequence[Path], **how: Any) -> list[Outcome]:
        """A run that is suspended by a `pause`, another one to its end meanwhile, and the first one's end."""
        return self._ask("overtake", config=config, fault=vars(fault), traces=[str(trace) for trace in traces], **how)

    def close(self) -> None:
        """End the helper."""
        assert self._helper.stdin is not None
        assert self._helper.stdout is not None
        self._helper.stdin.close()
        self._helper.wait(PATIENCE)
        self._helper.stdout.close()

    def _ask(self, kind: str, **facts: Any) -> list[Outcome]:
        assert self._helper.stdin is not None
        assert self._helper.stdout is not None
        print(json.dumps({"kind": kind, **facts}), file=self._helper.stdin, flush=True)
        line = self._helper.stdout.readline()
        assert line, "the helper is gone"
        outcomes: list[Outcome] = json.loads(line)
        return outcomes


class _Child:
    """A forked process doing one thing; its outcome comes through a pipe that closes with its end."""

    def __init__(self, perform: Callable[[int], None], closing: Sequence[int] = ()) -> None:
        self._reader, writer = os.pipe()
        self._started = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            os.setpgid(0, 0)
            os.environ[_MARK] = str(os.getpid())
            for descriptor in (self._reader, *closing):
                os.close(descriptor)
            perform(writer)
            os._exit(0)
        os.close(writer)
        self._said = b""
        self._ended = False

    def ends_within(self, seconds: float) -> bool:
        """Whether it has ended; waits up to the given time for that."""
        return bool(_ended([self], 1, seconds))

    def fileno(self) -> int:
        return self._reader

    def poll_output(self) -> bool:
        """Read its output, once there is any; returns whether it has ended."""
        piece = b"" if self._ended else os.read(self._reader, 65536)
        self._said += piece
        self._ended = not piece
        return self._ended

    def outcome(self) -> Outcome:
        """Its outcome, after it has ended or has been killed because it did not end."""
        ended = time.monotonic()
        if hung := not self.ends_within(PATIENCE):
            os.kill(self.pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        seconds, waited = time.monotonic() - self._started, time.monotonic() - ended
        os.close(self._reader)
        orphans = _left_by(self.pid)
        facts = {"code": code, "seconds": seconds, "waited": waited, "hung": hung, "orphans": orphans}
        return facts | (json.loads(self._said) if self._said else {})


def _left_by(pid: int) -> bool:
    """Whether a process that a child forked or started has outlived it; such a process is ended."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        left = []
    else:
        left = [pid]
    mark = f"{_MARK}={pid}\0".encode()
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in environ.read_bytes():
                os.kill(int(environ.parent.name), signal.SIGKILL)
                left.append(int(environ.parent.name))
    return bool(left)


def _ended(children: Sequence[_Child], count: int, seconds: float) -> list[_Child]:
    """The children that have ended, as soon as there are `count` of them or the seconds are over."""
    limit, ended = time.monotonic() + seconds, []
    while len(ended) < count:
        ready, _, _ = select.select([c for c in children if c not in ended], [], [], max(0, limit - time.monotonic()))
        if not ready:
            break
        ended += [child for child in ready if child.poll_output()]
    return ended


def _perform(request: Mapping[str, Any], writer: int) -> None:
    said: Outcome = {}
    if request.get("look"):
        out = request.get("out") or request["config"]["sink"]["path"]
        said["seen"] = [_look(Path(out), reference) for reference in request["look"]]
    if request.get("trace"):
        place = Path(request["config"]["sink"]["path"]).parent
        fault = Fault(**request["fault"]) if request.get("fault") else None
        Faults(place, Path(request["trace"]), fault).install()
    if request.get("arguments"):
        _command(request)
    if request.get("config"):
        said |= _run(request["config"], request.get("retry_failed", False))
    os.write(writer, json.dumps(said).encode())


def _run(config: Mapping[str, Any], retry_failed: bool) -> Outcome:
    try:
        report = layertap.run(config, plugins=PLUGINS, retry_failed=retry_failed)
    except layertap.LayertapError as error:
        return {"code": error.code, "message": str(error)}
    return {"code": 0, "kept": report.kept, "failed": report.failed, "planned": report.planned}


def _command(request: Mapping[str, Any]) -> None:
    """A command line as the console script runs it, to the end of the interpreter and not just of `main`."""
    from layertap.cli.main import main

    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = ["layertap", *request["arguments"]]
    main()


@functools.cache
def _whole(reference: str) -> tuple[Any, dict[str, Any]]:
    """A finished output, and its rows; opened in the helper itself, so that no child has to."""
    features = layertap.open(reference, plugins=PLUGINS)
    return features, {"ids": features.ids, **{tap: features[tap][:] for tap in features.taps}}


def _look(out: Path, reference: str) -> Outcome:
    import numpy as np

    whole, rows_of = _whole(reference)
    try:
        features = layertap.open(out, plugins=PLUGINS)
    except layertap.StoreError as error:
        return {"rows": None, "complete": False, "wrong": None, "message": str(error)}
    rows, failed = len(features.ids), len(features.failures)
    wrong = ["taps"] * (features.taps != whole.taps)
    wrong += ["ids"] * (features.ids != rows_of["ids"][:rows])
    wrong += ["index"] * (features.index != whole.index[:rows])
    wrong += ["failures"] * (features.failures != whole.failures[:failed])
    for tap in features.taps:
        values, expected = features[tap][:], rows_of[tap][:rows]
        same = values.dtype == expected.dtype and values.shape == expected.shape
        if not same or not np.array_equal(values.view(np.uint8), expected.view(np.uint8)):
            wrong.append(tap)
    return {"rows": rows, "failed": failed, "complete": features.is_complete, "wrong": wrong[0] if wrong else None}


def _one(request: Mapping[str, Any]) -> list[Outcome]:
    for reference in request.get("look") or ():
        _whole(reference)
    listen, notify = os.pipe()
    arguments = [word.replace("STARTED", str(notify)) for word in request.get("arguments", ())]
    child = _Child(lambda writer: _perform(request | {"arguments": arguments}, writer), [listen])
    os.close(notify)
    if "STARTED" in str(request.get("arguments")):
        os.read(listen, 1)
    os.close(listen)
    for delay, number in request.get("signals", ()):
        if child.ends_within(delay):
            break
        os.kill(child.pid, number)
    return [child.outcome()]


def _race(request: Mapping[str, Any]) -> list[Outcome]:
    go, start = os.pipe()
    listen, notify = os.pipe()
    wait, release = os.pipe()
    gate = {"type": "gate", "started": notify, "wait": wait}
    config = request["config"] | {"observers": [*request["config"]["observers"], gate]}

    def starter(trace: str) -> Callable[[int], None]:
        def perform(writer: int) -> None:
            os.read(go, 1)
            _perform({"config": config, "trace": trace}, writer)

        return perform

    children = [_Child(starter(trace), (start, listen, release)) for trace in request["traces"]]
    os.close(start)
    started = time.monotonic()
    ended = _ended(children, len(children) - 1, 10.0)
    seconds = time.monotonic() - started
    os.close(release)
    outcomes = [child.outcome() | {"ran": child not in ended, "others": seconds} for child in children]
    for descriptor in (go, listen, notify, wait):
        os.close(descriptor)
    return outcomes


def _overtake(request: Mapping[str, Any]) -> list[Outcome]:
    first, second = request["traces"]
    paused = _Child(lambda writer: _perform({**request, "trace": first}, writer))
    os.waitid(os.P_PID, paused.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    outcome = _Child(lambda writer: _perform({**request, "trace": second, "fault": None}, writer)).outcome()
    os.kill(paused.pid, signal.SIGCONT)
    return [paused.outcome(), outcome]


def _warm_up() -> None:
    """One run that leaves nothing, so that every child has all modules loaded."""
    import torch

    torch.set_num_threads(1)
    import numpy  # noqa: F401
    from PIL import Image

    import layertap.cli.main
    import layertap.pipeline.worker

    with tempfile.TemporaryDirectory() as folder:
        os.mkdir(f"{folder}/images")
        Image.new("RGB", (20, 20)).save(f"{folder}/images/a.jpg")
        source = {"type": "folder", "path": f"{folder}/images"}
        common = {
            "source": source,
            "taps": ["classifier"],
            "device": "cpu",
            "observers": [],
            "model": "tiny",
            "preprocess": "shrunk",
        }
        layertap.run({**common, "sink": {"type": "npy", "path": f"{folder}/out"}}, plugins=PLUGINS)
        layertap.open(f"{folder}/out")
    tasks = Path("/proc/self/task")
    assert not tasks.exists() or len(list(tasks.iterdir())) == 1, "a fork would lose threads"


def _serve() -> None:
    requests, replies = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    _warm_up()
    for number in (signal.SIGINT, signal.SIGTERM):
        # A signal that reaches a child before the program has its own handlers proves nothing about it.
        signal.signal(number, lambda received, _: os._exit(128 + received))
    for line in requests:
        request = json.loads(line)
        print(json.dumps(_KINDS[request["kind"]](request)), file=replies, flush=True)


_KINDS = {"one": _one, "race": _race, "overtake": _overtake}

if __name__ == "__main__":
    _serve()
