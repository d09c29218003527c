"""Engines whose workers take their shards from the output's folder: the workers of a crew, and whoever joins them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from layertap.contracts import Engine
from layertap.pipeline.crew import Crew
from layertap.records import Job, Receipt, WorkerReport


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

        with storage(Path(job.folder)), self.crew(job) as crew:
            yield from Handout(job, numbers, crew, self.patience)
