"""The helper that forks trials, and the result of a run without faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.soak.pictures import draw
from tests.soak.trials import Trials

if TYPE_CHECKING:
    from tests.soak.cases import Case

pytest.register_assert_rewrite("tests.soak.cases")


@pytest.fixture(scope="session")
def trials() -> Iterator[Trials]:
    trials = Trials()
    yield trials
    trials.close()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def case(trials, pictures, tmp_path_factory) -> Callable[[str], Case]:
    """The case of a sink, with its uninterrupted run: made once."""
    from tests.soak.cases import Case  # not before its asserts are registered

    made: dict[str, Case] = {}

    def make(sink: str) -> Case:
        if sink not in made:
            made[sink] = Case(trials, pictures, tmp_path_factory.mktemp(sink), sink)
        return made[sink]

    return make
