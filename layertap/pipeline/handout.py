"""Handing out shards through the output's folder, and collecting what workers leave there."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from layertap.errors import BUG, FOREIGN, LayertapError, PluginError
from layertap.pipeline.crew import Crew
from layertap.records import Job, Receipt, WorkerReport
from layertap.store.attempts import Attempts
from layertap.store.board import Board, Claim

_MOST_DEATHS = 3
_LOOK_SECONDS, _REPORT_SECONDS = 0.02, 1.0

# States in which a worker may still compute.
_ALIVE = ("starting", "computing", "waiting")


class Handout:
    """Receipts, and reports about workers, until there is no number left and each has its receipt.

    A shard whose worker has ended is handed out again, at most until three have died on it. When none is left to hand
    out, idle workers take second attempts at those that are being computed, and the first receipt counts. Raises what a
    worker failed with.
    """

    def __init__(self, job: Job, numbers: Iterator[int], crew: Crew, patience: float) -> None:
        folder = Path(job.folder)
        self._board = Board(folder)
        self._attempts = Attempts(folder)
        self._job = job
        self._numbers = numbers
        self._crew = crew
        self._patience = patience
        self._out: set[int] = set()
        self._seen: set[str] = set()
        self._lives: dict[str, tuple[int, float]] = {}
        self._gone: dict[str, str] = {}
        self._deaths: dict[int, list[str]] = {}
        self._without_a_shard = 0
        self._refused: WorkerReport | None = None
        self._second: set[int] = set()

    def __iter__(self) -> Iterator[Receipt | WorkerReport]:
        said = 0.0
        while True:
            self._board.beat()
            # First, so that what a worker left before it ended is seen.
            ended = self._crew.ended()
            claims = self._board.claims()
            for receipt in self._attempts.receipts(self._seen):
                self._seen.add(receipt.attempt)
                self._without_a_shard = 0
                if receipt.run == self._job.run and receipt.shard in self._out:
                    self._out.remove(receipt.shard)
                    self._board.withdraw(receipt.shard)
                yield receipt
            reports = self._reports()
            self._notice(ended, reports, claims)
            if time.monotonic() - said >= _REPORT_SECONDS:
                said = time.monotonic()
                yield from reports.values()
                self._forget(reports)
            alive = [report for name, report in reports.items() if report.state in _ALIVE and name not in self._gone]
            self._refuse_none(alive)
            more = self._hand_out(len(alive))
            if not self._out and not more:
                yield from reports.values()
                return
            self._second_attempts(claims, alive)
            time.sleep(_LOOK_SECONDS)

    def _hand_out(self, alive: int) -> bool:
        """Take numbers while workers can soon begin them; whether there are more of them."""
        ahead = 2 * max(1, len(self._crew.names), alive)
        while True:
            if len(self._out) >= ahead:
                return True
            number = next(self._numbers, None)
            if number is None:
                return False
            self._out.add(number)
            if number - min(self._out) >= ahead:
                return True

    def _reports(self) -> dict[str, WorkerReport]:
        """What workers say of themselves, and where what they print goes."""
        now, found = time.monotonic(), {}
        for name, (report, sign) in self._board.reports().items():
            if self._lives.get(name, (None, 0.0))[0] != sign:
                self._lives[name] = sign, now
                if self._gone.get(name) == _SILENT:
                    del self._gone[name]
            found[name] = dataclasses.replace(
                report,
                state="lost" if name in self._gone and report.state in _ALIVE else report.state,
                log=self._crew.log(name),
            )
        return found

    def _notice(self, new: Mapping[str, str], reports: Mapping[str, WorkerReport], claims: list[Claim]) -> None:
        """Hand out again what workers had taken that have ended since the last time."""
        now, ended = time.monotonic(), dict(new)
        mine = {*self._crew.names, *ended}
        for name, report in reports.items():
            if report.state == "failed" and name in mine:
                raise _error(report)
            if report.state == "refused" and name in mine:
                self._refused = report
            if report.state not in _ALIVE:
                ended.setdefault(name, report.state if report.state != "failed" else f"failed: {report.error}")
            elif now - self._lives[name][1] > self._patience:
                ended.setdefault(name, _SILENT)
        for name, how in ended.items():
            if name not in self._gone:
                self._gone[name] = how
                left = name in reports and reports[name].state in ("left", "refused")
                self._lost(name, how, [claim for claim in claims if claim.worker == name], died=not left)

    def _lost(self, name: str, how: str, claims: list[Claim], *, died: bool) -> None:
        log = f"; what it printed is in {path}" if (path := self._crew.log(name)) else ""
        claims = [claim for claim in claims if claim.shard in self._out and claim.attempt not in self._seen]
        if died and not claims:
            self._without_a_shard += 1
            if self._without_a_shard >= _MOST_DEATHS:
                raise PluginError(f"workers end before they compute anything: {name} {how}{log}", code=BUG)
        for claim in claims:
            if died:
                deaths = self._deaths.setdefault(claim.shard, [])
                deaths.append(f"{name} {how}")
                if len(deaths) >= _MOST_DEATHS:
                    every = ", ".join(deaths)
                    raise PluginError(f"shard {claim.shard} ends every worker that computes it: {every}{log}", code=BUG)
            if not self._board.is_posted(claim.shard):
                self._board.post_again(claim)

    def _refuse_none(self, alive: list[WorkerReport]) -> None:
        """Raise where the engine has no worker any more because all were refused. Those of others may still come."""
        if self._refused is not None and not alive and not self._crew.names:
            raise _error(self._refused)

    def _forget(self, reports: Mapping[str, WorkerReport]) -> None:
        """Remove the reports of workers that have said that they end: in a long run there may be many."""
        for name, report in reports.items():
            if name in self._gone and report.state not in (*_ALIVE, "lost"):
                self._board.dismiss(name)

    def _second_attempts(self, claims: list[Claim], alive: list[WorkerReport]) -> None:
        idle = sum(report.state == "waiting" for report in alive)
        waiting = [number for number in sorted(self._out) if not self._board.is_posted(number)]
        if not idle or len(waiting) != len(self._out):
            return
        by_shard = {claim.shard: claim for claim in claims if claim.worker not in self._gone}
        for number in waiting[:idle]:
            if number in by_shard and number not in self._second:
                self._second.add(number)
                self._board.post_again(by_shard[number])


_SILENT = "gave no sign of life"


def _error(report: WorkerReport) -> LayertapError:
    log = f" (what it printed is in {report.log})" if report.log else ""
    said = report.error if report.code == FOREIGN else f"the worker {report.worker}: {report.error}"
    return LayertapError(f"{said}{log}", code=report.code)
