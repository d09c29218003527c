"""Engines whose workers take their shards from the output's folder: the workers of a crew, and whoever joins them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from layertap.contracts import Engine
from layertap.records import Job, Receipt, WorkerReport


class Crew(ABC):
    """The workers that an engine has started: each runs `layertap work FOLDER`, or `layertap.Worker.serve`."""

    @property
    @abstractmethod
    def names(self) -> Collection[str]:
        """The workers that are running, or will be as soon as they can start. A name is never used twice."""

    @abstractmethod
    def ended(self) -> Mapping[str, str]:
        """How each worker ended that has ended since the last call, in words.

        Start another one in its place, but not for one that was refused (exit code 6).
        """

    def log(self, worker: str) -> str:
        """The file with what a worker has printed; empty where there is none."""
        return ""


class CrewEngine(Engine):
    """An engine that only has to start workers, and to notice when one ends."""

    patience = 120.0
    """Seconds without a sign of life after which a worker counts as lost."""

    @abstractmethod
    def crew(self, job: Job) -> AbstractContextManager[Crew]:
        """The workers, which are ended with the block."""

    def run(self, job: Job, numbers: Iterator[int]) -> Iterator[Receipt | WorkerReport]:
        """Hand out the shards through the folder, and collect the receipts there."""
        # A plugin's module may subclass this one, and is imported to list it: numpy would cost that a second.
        from layertap.pipeline.handout import Handout
        from layertap.store.store import storage

        folder = Path(job.folder)
        with storage(folder), self.crew(job) as crew:
            yield from Handout(folder, job, numbers, crew, self.patience)
