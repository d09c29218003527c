"""A run that is disturbed, and the proof that the disturbance had no effect."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.soak.disk import Disk
from tests.soak.faults import Event, Fault, operations, read_trace
from tests.soak.pictures import config, contents, whole_shards
from tests.soak.trials import PLUGINS, Outcome, Trials

KILLED = -9
MOST_TWICE = 2
"""The number of shards that one interruption may cost: one being written, one being computed."""


class Case:
    """A configuration and its uninterrupted run."""

    def __init__(
        self, trials: Trials, pictures: Path, folder: Path, sink: str, *, kept: int = 21, **changes: Any
    ) -> None:
        self.kept = kept
        self.trials, self.pictures, self.sink, self.changes = trials, pictures, sink, changes
        whole = Place(self, folder)
        outcome = whole.run()
        assert (outcome["code"], outcome.get("kept")) == (0, kept), outcome
        self.whole = whole.out
        self.contents = contents(whole.out)
        self.trace = whole.trace
        self._folder = folder

    @cached_property
    def seconds(self) -> float:
        """The duration of a run; the very first run takes longer."""
        return min(float(Place(self, self._folder / str(number)).run()["seconds"]) for number in range(3))

    @property
    def operations(self) -> list[Event]:
        """The disk operations of an uninterrupted run: operation N of a fault is number N - 1 here."""
        return operations(self.trace)

    def named(self, fault: Fault) -> str:
        """A fault, and the operation that it affects."""
        event = self.operations[fault.at - 1]
        made = {made[2]: made[1] for made in self.trace if made[0] in ("create", "empty", "open")}
        names = [made.get(part) if isinstance(part, int) else part for part in event[1:3]]
        return f"{fault.how} {fault.at} {event[0]} {' '.join(name for name in names if isinstance(name, str))}"

    def kills(self) -> list[Fault]:
        """A SIGKILL before and after every operation, and in the middle of every write."""
        return [
            Fault(number, how)
            for number, event in enumerate(self.operations, 1)
            for how in ("before", "after", *(["torn"] if event[0] == "write" else []))
        ]

    def points(self) -> list[int]:
        """One operation of each sort: those that differ only in their shard's number, or their piece, are one sort."""
        names: dict[int, str] = {}
        sorts: dict[tuple[str, str], int] = {}
        for number, event in enumerate(self.operations, 1):
            if event[0] in ("create", "empty"):
                names[event[2]] = event[1]
            name = names.get(event[1], "a folder") if isinstance(event[1], int) else event[1]
            sorts[event[0], re.sub(r"\d{5}", "N", name)] = number
        return sorted(sorts.values())


class Place:
    """A folder that holds one output and nothing else, and the traces of the runs into it."""

    def __init__(self, case: Case, root: Path, **changes: Any) -> None:
        self._case, self._changes = case, changes
        self.disk = root / "disk"
        self.disk.mkdir(parents=True)
        self.out = self.disk / "out"
        self._traces: list[Path] = []
        self._root = root

    @property
    def config(self) -> dict[str, Any]:
        """The run of this place."""
        return config(self._case.pictures, self.out, self._case.sink, **self._case.changes | self._changes)

    @property
    def trace(self) -> list[Event]:
        """The operations of the latest run."""
        return read_trace(self._traces[-1])

    def new_trace(self) -> Path:
        """A file for the next run's trace."""
        self._traces.append(self._root / f"{len(self._traces)}.trace")
        return self._traces[-1]

    def run(self, fault: Fault | None = None, extra: Any = None, **how: Any) -> Outcome:
        """One run, to its end or its fault; `extra` is one more observer."""
        config = self.config
        config["observers"] = [*config["observers"], *([extra] if extra else [])]
        return self._case.trials.run(config, self.new_trace(), fault, **how)

    def overtake(self, fault: Fault, **how: Any) -> list[Outcome]:
        """A run that is suspended at an operation, and another one that starts meanwhile."""
        return self._case.trials.overtake(self.config, fault, [self.new_trace(), self.new_trace()], **how)

    def command(self, *overrides: str, fault: Fault | None = None, **how: Any) -> tuple[Outcome, str]:
        """The same run as a command line; returns its output."""
        file = self._root / "config.yaml"
        file.write_text(json.dumps(self.config))
        return self._command("run", str(file), *overrides, fault=fault, **how)

    def verify(self) -> tuple[Outcome, str]:
        """The command that verifies an output; returns what it prints."""
        return self._command("verify", str(self.out), "--rows", "2")

    def _command(self, *arguments: str, **how: Any) -> tuple[Outcome, str]:
        output = self._root / "output"
        output.write_text("")
        own = [word for plugin in PLUGINS for word in ("--plugin", plugin)]
        outcome = self.run(arguments=[*arguments, *own], output=str(output), **how)
        return outcome, output.read_text()

    def digest(self) -> str:
        """A digest of everything in this place."""
        entries = sorted((str(p.relative_to(self.disk)), p.is_file() and p.read_bytes()) for p in self.disk.rglob("*"))
        return hashlib.sha256(repr(entries).encode()).hexdigest()

    def look(self) -> Outcome:
        """The output as a reader sees it: whole shards with the right rows, or no output. Fails on anything else."""
        return checked(self._case.trials.look(self.out, self._case.whole)[0])

    def resume(self, **how: Any) -> Outcome:
        """The run that ends it: the output equals an uninterrupted run's, byte by byte, with nothing next to it."""
        outcome = self.run(**{"look": [str(self._case.whole)], **how})
        assert outcome["code"] == 0, outcome.get("message", outcome)
        for seen in outcome.get("seen", ()):
            checked(seen)
        assert (outcome["planned"], outcome["kept"], outcome["failed"]) == (26, 21, 5)
        assert_same(contents(self.out), self._case.contents)
        assert [path.name for path in self.disk.iterdir()] == ["out"]
        return outcome

    def computed_twice(self) -> int:
        """The number of shards that were computed again, in all runs into this place together."""
        times: Counter[int] = Counter()
        for trace in self._traces:
            times.update({event[2] for event in read_trace(trace) if event[:2] == ("mark", "computed")})
        return sum(count - 1 for count in times.values())


def checked(seen: Outcome) -> Outcome:
    """The output that a reader saw, if it is one that a reader may see."""
    assert seen["wrong"] is None, seen
    assert seen["rows"] is None or seen["rows"] in whole_shards(), seen
    return seen


def assert_same(found: dict[str, bytes | None], expected: dict[str, bytes | None]) -> None:
    """Check that two outputs are equal, byte by byte; differences are named, not shown."""
    assert set(found) ^ set(expected) == set()
    assert [name for name in expected if found[name] != expected[name]] == []


class Broken(list[str]):
    """The trials that failed: all of them are reported, not only the first."""

    @contextmanager
    def trial(self, name: object) -> Iterator[None]:
        """One trial, named for the report."""
        try:
            yield
        except AssertionError as error:
            self.append(f"{name}: {' '.join(str(error).split())[:400]}")

    def report(self) -> str:
        """All of them, one line each."""
        return "\n".join([f"{len(self)} went wrong", *self])


def cuts(disk: Disk, trace: list[Event]) -> Iterator[int]:
    """Apply a trace to a disk, and stop before its first operation and after each; yields their number so far."""
    yield (number := 0)
    for event in trace:
        disk.happen(event)
        if event in operations([event]):
            yield (number := number + 1)
