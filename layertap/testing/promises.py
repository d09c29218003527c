"""The common parts of all suites: how a broken promise is reported, and the promises of every kind of plugin."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from layertap.contracts import Plugin

P = TypeVar("P", bound=Plugin)
T = TypeVar("T")

_THREADS = 4

# Prints the packages that importing a plugin's module loads, except those that layertap's public names already load.
_LOADED = """
import importlib, sys, layertap
for name in ("Source", "ImageRecord", "LayertapError", "hookimpl"):
    getattr(layertap, name)
def tops():
    return {name.partition(".")[0] for name in sys.modules}
before = tops()
importlib.import_module(sys.argv[1])
own = sys.argv[1].partition(".")[0]
print(*sorted(tops() - before - {own} - sys.stdlib_module_names))
"""


def promise(kept: object, broken: str, cure: str) -> None:
    """Fail the test unless `kept`, and say what the plugin did and what it should do instead."""
    __tracebackhide__ = True
    if not kept:
        raise AssertionError(f"broken promise: {broken}. What to do: {cure}.")


def same_bits(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Whether two arrays hold the same bits, including NaN and the sign of zero."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return np.ascontiguousarray(one).tobytes() == np.ascontiguousarray(other).tobytes()


def at_once(work: Callable[[T], Any], items: Sequence[T]) -> list[list[Any]]:
    """The results of `work` for every item on each of several threads that start together."""
    together = Barrier(_THREADS)

    def begin(_: int) -> list[Any]:
        together.wait()
        return [work(item) for item in items]

    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(begin, range(_THREADS)))


class Suite(Generic[P]):
    """The promises of every plugin. Subclass the suite of its kind and give `plugin`."""

    kind: ClassVar[type[Plugin]] = Plugin

    def plugin(self) -> P:
        """A new instance of the plugin under test."""
        name = type(self).__name__
        raise NotImplementedError(
            f"{name}: give the plugin to test, as in `def plugin(self): return Mine.of(path=...)`"
        )

    def test_is_of_its_kind(self) -> None:
        plugin: Plugin = self.plugin()
        promise(
            isinstance(plugin, self.kind),
            f"{type(plugin).__name__} is not a subclass of {self.kind.__name__}",
            f"subclass layertap.{self.kind.__name__}, or test it with the suite for its kind",
        )

    def test_parameters_are_described_and_no_others_taken(self) -> None:
        params = type(self.plugin()).Params
        for name, field in params.model_fields.items():
            promise(
                field.description,
                f"the parameter {name!r} has no description",
                f'write `{name}: ... = Field(..., description="...")`, which the schema and editors show',
            )
        promise(
            params.model_config.get("extra") == "forbid",
            "unknown parameters are accepted silently, so that a misspelt one is never noticed",
            "derive Params from layertap.Params and do not change its model_config",
        )

    def test_module_imports_nothing_heavy(self) -> None:
        module = type(self.plugin()).__module__
        promise(
            importlib.util.find_spec(module),
            f"the module {module!r} cannot be imported by name",
            "put the plugin into its own module, which the tests import",
        )
        done = _imported_alone(module)
        promise(
            done.returncode == 0,
            f"{module} cannot be imported on its own: {done.stderr.strip()[-300:]}",
            "import everything that it needs inside it",
        )
        loaded = done.stdout.split()
        promise(
            not loaded,
            f"importing {module} imports {', '.join(loaded)}, and so does every `layertap plugins`",
            "import packages other than pydantic and layertap inside the methods that use them",
        )


@functools.cache
def _imported_alone(module: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.run([sys.executable, "-c", _LOADED, module], env=env, capture_output=True, text=True)
