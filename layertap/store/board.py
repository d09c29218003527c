"""The folder through which a coordinator and its workers pass shards: `work/` in an output that has an engine.

    job.json                  what the run is; its time changes while the coordinator lives
    open/00007.json           a shard that a worker may take, with its records
    taken/00007-HEX.NAME.json   the same file, renamed by the worker NAME for its attempt 00007-HEX
    workers/NAME.json         what the worker NAME is doing; its time changes while it lives

A rename has one winner, on a network's file system too. Nothing here needs to survive a power cut: what is lost is
handed out again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from layertap.errors import FOREIGN, StoreError
from layertap.records import Job, Receipt, WorkerReport
from layertap.store import durable, safe_files
from layertap.store.attempts import new_attempt
from layertap.store.manifest import Facts, Manifest, parsed
from layertap.store.paths import path_text, text_path

WORK = "work"

_OPEN, _TAKEN, _WORKERS, _JOB = "open", "taken", "workers", "job.json"
_CLAIM = re.compile(r"([0-9]{5,})-([0-9a-f]{16})\.([A-Za-z0-9_.-]+)\.json")
_WORKER = re.compile(r"[A-Za-z0-9_.-]{1,100}")
_PATHS = ("folder", "logs", "directory")

# A path as `path_text` writes it.
PathText = Annotated[str, Field(pattern=r"^[\x01-\xff]+$")]

SentRecord = tuple[str, str | None, PathText | None, dict[str, Any]]
"""Id, stamp, path (None for an image that has vanished) and metadata of a planned image."""


class TaskFacts(Facts):
    """`open/00007.json`: a shard, and its records where they can be sent."""

    layertap: Literal[1]
    records: list[Annotated[SentRecord, Field(strict=False)]] | None


class JobContents(Facts):
    """The job in `job.json`."""

    run: str
    folder: PathText
    logs: PathText
    directory: PathText
    config: dict[str, Any]
    manifest: Manifest
    threads: int
    plugins: list[PathText]

    @classmethod
    def of(cls, job: Job) -> dict[str, Any]:
        """The job as it is written."""
        found = job.data()
        return {**found, **{key: path_text(found[key]) for key in _PATHS}, "plugins": [*map(path_text, job.plugins)]}

    def given(self) -> Job:
        """The job that was written."""
        found = self.model_dump(mode="json")
        return Job.of(
            {**found, **{key: text_path(found[key]) for key in _PATHS}, "plugins": [*map(text_path, self.plugins)]}
        )


class JobFacts(Facts):
    """`job.json`: the job, and the first records of the plan where they can be sent."""

    layertap: Literal[1]
    job: JobContents
    first: list[Annotated[SentRecord, Field(strict=False)]] | None


class ReportFacts(Facts):
    """`workers/NAME.json`."""

    layertap: Literal[1]
    report: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Task:
    """A shard that a worker has taken, under the name of its attempt; `records` is None where they cannot be sent."""

    shard: int
    attempt: str
    records: Sequence[SentRecord] | None


class Claim(NamedTuple):
    """Which worker has taken a shard."""

    shard: int
    attempt: str
    worker: str


class Board:
    """The `work/` folder of one output."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self._folder = output / WORK
        self._reported: dict[str, tuple[object, WorkerReport]] = {}

    def open(self, job: Job, first: Sequence[SentRecord] | None) -> None:
        """Let workers join. What an earlier coordinator has posted is handed out again."""
        for name in ("", _OPEN, _TAKEN, _WORKERS):
            durable.make_folder(self._folder / name)
        for number in self._posted():
            self.withdraw(number)
        self._write_job(job, first)

    def change(self, manifest: Mapping[str, Any]) -> None:
        """Replace the manifest that workers must meet."""
        job, first = self.job()
        self._write_job(dataclasses.replace(job, manifest=manifest), first)

    def beat(self) -> None:
        """Show that the coordinator lives."""
        os.utime(self._folder / _JOB)

    def end(self) -> None:
        """Let the workers end: for them the run is over."""
        safe_files.remove(self._folder, [_JOB])

    def close(self) -> None:
        """Remove everything. The attempts that are recorded here are removed before, or never are."""
        self.end()
        for number in self._posted():
            self.withdraw(number)
        for name in self._entries(_TAKEN, _CLAIM.pattern):
            safe_files.remove(self._folder, [f"{_TAKEN}/{name}"])
        for name in self._entries(_WORKERS, rf"{_WORKER.pattern}\.json"):
            safe_files.remove(self._folder, [f"{_WORKERS}/{name}"])
        for name in ("", f"{_OPEN}/", f"{_TAKEN}/", f"{_WORKERS}/"):
            left = [f"{name}{entry}" for entry in self._entries(name, r"\..+\.json\.[0-9]+\.tmp")]
            safe_files.remove(self._folder, left)
        for folder in (self._folder / _OPEN, self._folder / _TAKEN, self._folder / _WORKERS, self._folder):
            with contextlib.suppress(OSError):  # a worker that is not done yet may write there
                folder.rmdir()

    def post(self, number: int, records: Sequence[SentRecord] | None) -> None:
        """Let any worker take a shard."""
        self._write(f"{_OPEN}/{number:05d}.json", {"layertap": 1, "records": records})

    def post_again(self, claim: Claim) -> None:
        """Let another worker take a shard that has been taken."""
        source = safe_files.regular(self._folder, f"{_TAKEN}/{_name(claim)}")
        self._write(f"{_OPEN}/{claim.shard:05d}.json", json.loads(source.read_text("utf-8")))

    def forget(self, receipt: Receipt) -> None:
        """Remove the record of an attempt that has become a part."""
        claim = Claim(receipt.shard, receipt.attempt, receipt.worker)
        safe_files.remove(self._folder, [f"{_TAKEN}/{_name(claim)}"])

    def withdraw(self, number: int) -> None:
        """Let no further worker take a shard."""
        safe_files.remove(self._folder, [f"{_OPEN}/{number:05d}.json"])

    def is_posted(self, number: int) -> bool:
        """Whether a shard waits for a worker."""
        return (self._folder / f"{_OPEN}/{number:05d}.json").exists()

    def claims(self) -> list[Claim]:
        """The shards that workers have taken, each attempt of its own."""
        found = (_CLAIM.fullmatch(name) for name in self._entries(_TAKEN, _CLAIM.pattern))
        return [Claim(int(each[1]), f"{each[1]}-{each[2]}", each[3]) for each in found if each]

    def job(self) -> tuple[Job, Sequence[SentRecord] | None]:
        """The job, and the first records of the plan. Raises `StoreError` (6) where no run is in progress."""
        try:
            text = safe_files.read_text(self._folder, _JOB)
        except (OSError, ValueError) as error:
            raise StoreError(f"{self._output}: no run with an engine is in progress here", code=FOREIGN) from error
        facts = parsed(text, self._folder / _JOB, JobFacts)
        return facts.job.given(), facts.first

    def pulse(self) -> object:
        """Something that changes while the coordinator lives; None once its run is over."""
        try:
            found = (self._folder / _JOB).stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

    def take(self, worker: str, besides: Collection[int] = ()) -> Task | None:
        """The first shard that is free, now taken by `worker`; None where there is none but those in `besides`."""
        for number in self._posted():
            if number not in besides and (task := self.claim(number, worker)):
                return task
        return None

    def claim(self, number: int, worker: str) -> Task | None:
        """A shard, now taken by `worker`; None if another one was faster."""
        attempt = new_attempt(number)
        taken = f"{_TAKEN}/{attempt}.{checked(worker)}.json"
        try:
            os.rename(self._folder / f"{_OPEN}/{number:05d}.json", self._folder / taken)
            text = safe_files.read_text(self._folder, taken)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Task(number, attempt, parsed(text, self._folder / taken, TaskFacts).records)

    def report(self, report: WorkerReport) -> None:
        """Say what a worker is doing."""
        self._write(f"{_WORKERS}/{checked(report.worker)}.json", {"layertap": 1, "report": dataclasses.asdict(report)})

    def dismiss(self, worker: str) -> None:
        """Remove what a worker that has ended said of itself."""
        name = f"{_WORKERS}/{checked(worker)}.json"
        safe_files.remove(self._folder, [name])
        self._reported.pop(name, None)

    def reports(self) -> Mapping[str, tuple[WorkerReport, int]]:
        """What each worker has last said of itself, and a number that changes while it lives."""
        found: dict[str, tuple[WorkerReport, int]] = {}
        for name in self._entries(_WORKERS, rf"{_WORKER.pattern}\.json"):
            with contextlib.suppress(OSError, ValueError, StoreError, TypeError):  # it is being replaced, or damaged
                report, sign = self._report(f"{_WORKERS}/{name}")
                found[report.worker] = report, sign
        return found

    def _report(self, name: str) -> tuple[WorkerReport, int]:
        """A report, read only where it has been replaced: a worker says something once a second."""
        path = self._folder / name
        now = path.lstat()
        file = now.st_ino, now.st_mtime_ns, now.st_size
        if self._reported.get(name, (None,))[0] != file:
            facts = parsed(safe_files.read_text(self._folder, name), path, ReportFacts)
            self._reported[name] = file, WorkerReport(**facts.report)
        return self._reported[name][1], now.st_mtime_ns

    def _write_job(self, job: Job, first: Sequence[SentRecord] | None) -> None:
        self._write(_JOB, {"layertap": 1, "job": JobContents.of(job), "first": first})

    def _posted(self) -> list[int]:
        return sorted(int(name.removesuffix(".json")) for name in self._entries(_OPEN, r"[0-9]{5,}\.json"))

    def _entries(self, folder: str, pattern: str) -> Iterator[str]:
        try:
            names = [entry.name for entry in (self._folder / folder).iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return iter(())
        return (name for name in names if re.fullmatch(pattern, name))

    def _write(self, name: str, data: Any) -> None:
        path = self._folder / name
        # A process writes one file of a name at a time.
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(json.dumps(data, ensure_ascii=False, allow_nan=False))
        os.replace(temporary, path)


def checked(worker: str) -> str:
    """The name of a worker. Raises `ValueError` for one that is not letters, digits, `.`, `_` and `-`."""
    if not _WORKER.fullmatch(worker) or worker.startswith("."):
        raise ValueError(f"{worker!r} is not the name of a worker: use letters, digits, `.`, `_` and `-`")
    return worker


def _name(claim: Claim) -> str:
    return f"{claim.attempt}.{claim.worker}.json"
