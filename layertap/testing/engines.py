"""The promises of an engine."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from layertap.contracts import Engine
from layertap.errors import ImageError, LayertapError
from layertap.records import Job, Receipt, Report, WorkerReport
from layertap.testing import trial
from layertap.testing.promises import Suite, promise

# Seconds that workers may take to end after their run.
_GRACE = 30.0

# The shard whose receipt is lost: neither the first nor the last.
_LOST = 2


class EngineSuite(Suite[Engine]):
    """An engine's run has the bytes of a run without it, whatever is lost, and its workers end with the run.

    Override `joining` for an engine whose workers are started by hand.
    """

    kind = Engine

    def joining(self, output: Path) -> AbstractContextManager[None]:
        """Workers that are started by hand for a run into `output`, in a block that ends them.

        The run begins inside the block. By default there are none.
        """
        return nullcontext()

    def test_number_of_threads_is_fixed(self) -> None:
        first, again = self.plugin().threads(), self.plugin().threads()
        promise(
            first == again and (first is None or first >= 1),
            f"threads() gives {first}, then {again}",
            "give the same number for the same parameters, at least 1, or None for torch's own",
        )

    def test_run_with_it_is_the_run_without_it(self, tmp_path: Path) -> None:
        self._whole(tmp_path, [])

    def test_shard_whose_receipt_is_lost_is_computed_again(self, tmp_path: Path) -> None:
        seen: list[Receipt | WorkerReport] = []
        self._whole(tmp_path, seen, lost=_LOST)
        times = sum(isinstance(each, Receipt) and each.shard == _LOST for each in seen)
        promise(times > 1, f"shard {_LOST} was lost, and came {times} times", "see that every number is computed")

    def test_worker_error_is_one_line(self, tmp_path: Path) -> None:
        said = ""
        try:
            self._run(tmp_path, [], model={"type": trial.FAILS})
        except LayertapError as error:
            said = str(error)
        promise(
            trial.FAULT in said and "\n" not in said,
            f"a model that raises {trial.FAULT!r} in a worker ends the run with {said!r}",
            "raise a layertap.LayertapError with the text of the worker's error",
        )
        self._check_left(tmp_path / "out")

    def test_workers_end_with_the_run(self, tmp_path: Path) -> None:
        seen: list[Receipt | WorkerReport] = []
        try:
            self._run(tmp_path, seen, on_error="fail")
            promise(False, "a run that an unreadable image should end does not end", "bring every receipt once")
        except ImageError:
            self._check_left(tmp_path / "out")
        workers = {each.pid for each in seen if isinstance(each, WorkerReport) and each.host == socket.gethostname()}
        deadline = time.monotonic() + _GRACE
        while (left := [pid for pid in workers - {0, os.getpid()} if _lives(pid)]) and time.monotonic() < deadline:
            time.sleep(0.1)
        promise(
            not left,
            f"processes of workers are still running {_GRACE:.0f} s after their run: {left}",
            "end the workers, and wait for them, when the iterator of run() is closed: in a `finally`",
        )

    def _whole(self, where: Path, seen: list[Receipt | WorkerReport], lost: int | None = None) -> None:
        """Check that a run with the engine leaves what a run without it leaves."""
        try:
            self._run(where, seen, lost=lost)
        except LayertapError as error:
            promise(False, f"a run with it ends with: {error}", "see the message")
        trial.run(
            trial.tables_of_an_engine(type(self.plugin())),
            trial.npy(where / "one"),
            source=_source(where / "images"),
            threads=self._threads(),
        )
        with_it, without = _files(where / "out"), _files(where / "one")
        promise(
            with_it.keys() <= without.keys(),
            f"it leaves {sorted(with_it.keys() - without.keys())} in the output",
            "keep logs beside the output, as in OUT.logs/, and end the workers when the iterator of run() is closed",
        )
        different = [name for name in without if with_it.get(name) != without[name]]
        promise(
            not different,
            f"{different} are not byte for byte those of a run in one process",
            "compute shards with layertap.Worker, in processes with the threads of the job",
        )

    def _run(self, where: Path, seen: list[Receipt | WorkerReport], lost: int | None = None, **changes: Any) -> Report:
        engine = self.plugin()
        plugins = trial.tables_of_an_engine(_watched(type(engine), seen, lost))
        (where / "out").parent.mkdir(exist_ok=True)
        changes = {"source": _source(where / "images"), "threads": self._threads(), **changes}
        with self.joining(where / "out"):
            return trial.run(plugins, trial.npy(where / "out"), engine=trial.spec(engine), **changes)

    def _threads(self) -> int:
        import torch

        return self.plugin().threads() or torch.get_num_threads()

    @staticmethod
    def _check_left(output: Path) -> None:
        left = [name for name in _files(output) if name.startswith("work/")]
        promise(not left, f"after a run that failed it leaves {left}", "leave the folder work/ to layertap")


def _watched(cls: type[Engine], seen: list[Receipt | WorkerReport], lost: int | None) -> type[Engine]:
    """The engine, with what it brings also in `seen`; the first files for shard `lost` are removed."""

    class Watched(cls):  # type: ignore[misc, valid-type]
        def run(self, job: Job, numbers: Iterator[int]) -> Iterator[Receipt | WorkerReport]:
            brought = super().run(job, numbers)
            try:
                for each in brought:
                    if isinstance(each, Receipt) and each.shard == lost and each not in seen:
                        first = not any(isinstance(other, Receipt) and other.shard == lost for other in seen)
                        if first:
                            shutil.rmtree(Path(job.folder) / "attempts" / each.attempt)
                    seen.append(each)
                    yield each
            finally:
                brought.close()

    return Watched


def _source(folder: Path) -> dict[str, Any]:
    """The drawn images in files, which workers then read by their paths."""
    folder.mkdir(exist_ok=True)
    for number, record in enumerate(trial.Drawn().records()):
        assert callable(record.data)
        drawn, path = record.data(), folder / f"{number:02d}.png"
        if isinstance(drawn, bytes):
            path.write_bytes(drawn)
        else:
            drawn.save(path)
    return {"type": "folder", "path": str(folder)}


def _files(output: Path) -> dict[str, bytes]:
    """The bytes of every file of an output but the manifest, which has the time and the place of a run in it."""
    found = {path.relative_to(output).as_posix(): path for path in sorted(output.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name != "manifest.json"}


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False
