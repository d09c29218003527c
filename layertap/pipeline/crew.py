"""The workers that an engine has started."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping


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
