"""No workers of its own: whoever sees the output's folder joins with `layertap work`, from srun, mpirun or by hand."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import Field

import layertap


class Folder(layertap.CrewEngine):
    """Waits for workers that others start: `layertap work OUT` on any machine that sees the folder."""

    class Params(layertap.Params):
        patience: float = Field(
            120.0, ge=5, le=86_400, description="seconds without a sign of life after which a worker counts as lost"
        )

    params: Params

    def __init__(self, params: Any = None) -> None:
        super().__init__(params)
        self.patience = self.params.patience

    @contextmanager
    def crew(self, job: layertap.Job) -> Iterator[layertap.Crew]:
        """Nobody."""
        yield _Nobody()


class _Nobody(layertap.Crew):
    @property
    def names(self) -> Collection[str]:
        return ()

    def ended(self) -> Mapping[str, str]:
        return {}


@layertap.hookimpl
def register_engines(register: Callable[[str, type[layertap.Engine]], None]) -> None:
    register("folder", Folder)
