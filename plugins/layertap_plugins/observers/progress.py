"""The progress of a run: a bar on a terminal or in a notebook, occasional lines elsewhere.

The report says how the run ended. A run with an engine has one more line for each worker on a terminal.
"""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import layertap

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType

    from layertap import Report, RunInfo, WorkerReport

_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_UPDATES = 0.2
_FAILURES_SHOWN = 20

_ENDED = ("refused", "failed", "lost")


class Progress(layertap.Observer):
    """Reports how many images are done, how fast, the time left, and which failed: on stderr or in a notebook."""

    _display: _Display | None = None

    def run_started(self, run: RunInfo) -> None:
        self._tally = _Tally(run)
        self._display = _display(self._tally)

    def image_failed(self, run: RunInfo, record: layertap.ImageRecord, reason: str) -> None:
        self._tally.failed += 1
        if self._display is None or self._tally.failed > _FAILURES_SHOWN + 1:
            return
        if self._tally.failed <= _FAILURES_SHOWN:
            self._display.say(f"failed: {_printable(record.id)}: {_printable(reason)}")
        else:
            self._display.say(f"(more failures are {'not shown' if run.path is None else 'listed in failures.csv'})")

    def batch_done(self, run: RunInfo, count: int) -> None:
        self._tally.done += count
        if self._display is not None:
            self._display.moved()

    def worker_reported(self, run: RunInfo, worker: WorkerReport) -> None:
        before = self._tally.workers.get(worker.worker)
        self._tally.workers[worker.worker] = worker
        if self._display is None:
            return
        if worker.state in _ENDED and (before is None or before.state != worker.state):
            self._display.say(_ending(worker))
        self._display.moved()

    def run_finished(self, run: RunInfo, report: Report | None, error: BaseException | None) -> None:
        if self._display is not None:  # another observer may have raised before this one started
            self._display.close()
            if error is not None:
                self._display.say(f"stopped {_duration(self._tally.seconds)} into extracting: {self._tally.text()}")


class _Tally:
    """The counts since the run started."""

    def __init__(self, run: RunInfo) -> None:
        self.run = run
        self.done = run.resumed
        self.failed = 0
        self.workers: dict[str, WorkerReport] = {}
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    @property
    def over(self) -> bool:
        return self.done >= self.run.planned

    def text(self) -> str:
        """`640 of 2000 images done, 84.2 images/s, 16 s left, 1 failed`; images of an earlier run have no rate."""
        parts = [f"{self.done} of {self.run.planned} images done"]
        new, seconds = self.done - self.run.resumed, self.seconds
        # The images of a shard that an engine's worker has are done all at once, when it is committed.
        rate = sum(worker.rate for worker in self.workers.values() if worker.state == "computing")
        if rate or (new and seconds):
            rate = rate or new / seconds
            parts.append(f"{rate:.1f} images/s")
            if not self.over:
                parts.append(f"{_duration((self.run.planned - self.done) / rate)} left")
        if computing := sum(worker.state == "computing" for worker in self.workers.values()):
            parts.append(f"{computing} worker{'s' if computing > 1 else ''}")
        if self.failed:
            parts.append(f"{self.failed} failed")
        return ", ".join(parts)


class _Display(Protocol):
    def say(self, line: str) -> None: ...

    def moved(self) -> None: ...

    def close(self) -> None: ...


class _Lines:
    """Plain lines for a log: at the start, and at most every ten seconds."""

    def __init__(self, tally: _Tally) -> None:
        self._tally = tally
        self._last = tally.seconds
        run = tally.run
        resumed = f", {run.resumed} already done" if run.resumed else ""
        self.say(f"extracting {run.planned} images on {run.device}, batch size {run.batch_size}{resumed}")

    def say(self, line: str) -> None:
        if sys.stderr is not None:  # None in a process started without stderr; print would then use stdout
            print(line, file=sys.stderr, flush=True)

    def moved(self) -> None:
        if self._tally.seconds - self._last >= _SECONDS_BETWEEN_LINES and not self._tally.over:
            self._last = self._tally.seconds
            self.say(self._tally.text())

    def close(self) -> None:
        """There is nothing to erase."""


class _Bar:
    """A bar that rich redraws from its own thread and erases at the end."""

    def __init__(self, tally: _Tally) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.text import Text

        class WithWorkers(Progress):
            def get_renderables(self) -> Iterable[RenderableType]:
                yield from super().get_renderables()
                yield from (Text(line, no_wrap=True) for line in map(_line, list(tally.workers.values())))

        self._tally = tally
        columns = (BarColumn(), TextColumn("{task.description}", markup=False))
        # stdout may be a pipe to another program: text printed there must not be redirected to the bar's stderr.
        console = Console(stderr=True, emoji=False)
        self._progress = WithWorkers(*columns, console=console, redirect_stdout=False, transient=True)
        self._task = self._progress.add_task(tally.text(), total=tally.run.planned, completed=tally.done)
        self._progress.start()

    def say(self, line: str) -> None:
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def moved(self) -> None:
        self._progress.update(self._task, completed=self._tally.done, description=self._tally.text())

    def close(self) -> None:
        self._progress.stop()


def _line(worker: WorkerReport) -> str:
    """`  local-0  cuda:0  shard 12  81.3 images/s  4096 images`."""
    doing = f"shard {worker.shard}" if worker.state == "computing" and worker.shard is not None else worker.state
    parts = [worker.worker, worker.device, doing, f"{worker.rate:.1f} images/s", f"{worker.images} images"]
    return _printable("  " + "  ".join(part for part in parts if part))


def _ending(worker: WorkerReport) -> str:
    said = f": {worker.error}" if worker.error else ""
    log = f" (what it printed is in {worker.log})" if worker.log else ""
    return _printable(f"worker {worker.worker} on {worker.host} {worker.state}{said}{log}")


class _NotebookBar:
    """A bar in the output of a notebook's cell. It stays there at the end, with the counts.

    rich's own needs ipywidgets, which a notebook may lack.
    """

    def __init__(self, tally: _Tally) -> None:
        from IPython.display import display

        self._tally = tally
        self._last = tally.seconds
        self._handle = display(self._data(), raw=True, display_id=True)  # type: ignore[no-untyped-call]

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def moved(self) -> None:
        if self._tally.seconds - self._last >= _SECONDS_BETWEEN_UPDATES:
            self._show()

    def close(self) -> None:
        self._show()

    def _show(self) -> None:
        self._last = self._tally.seconds
        self._handle.update(self._data(), raw=True)

    def _data(self) -> dict[str, str]:
        text, done, planned = self._tally.text(), self._tally.done, self._tally.run.planned
        bar = f'<progress value="{done}" max="{planned}" style="width: 20em; max-width: 40%"></progress>'
        return {"text/plain": text, "text/html": f"<div>{bar} {html.escape(text)}</div>"}


def _display(tally: _Tally) -> _Display:
    if _in_a_notebook():
        return _NotebookBar(tally)
    return _Bar(tally) if _on_a_terminal() else _Lines(tally)


def _in_a_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


def _on_a_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3_600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3_600} h {whole % 3_600 // 60} min"


def _printable(text: str) -> str:
    """The text, escaping everything that could move the cursor, change a colour or begin a line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


@layertap.hookimpl
def register_observers(register: Callable[[str, type[layertap.Observer]], None]) -> None:
    register("progress", Progress)
