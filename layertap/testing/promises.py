"""What all suites share: how a broken promise is told, and the promises of every kind of plugin."""

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

# Prints what importing a plugin's module loads besides what layertap's public names for plugins load themselves.
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
    """Fail the test unless `kept`: say what the plugin did, and what it should do instead."""
    __tracebackhide__ = True
    if not kept:
        raise AssertionError(f"broken promise: {broken}. What to do: {cure}.")


def same_bits(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Whether two arrays hold the same, NaN and the sign of zero included."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return np.ascontiguousarray(one).tobytes() == np.ascontiguousarray(other).tobytes()


def at_once(work: Callable[[T], Any], items: Sequence[T]) -> list[list[Any]]:
    """What `work` gives for every item on each of several threads that begin together."""
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
        raise NotImplementedError(f"{name}: say what is tested, as in `def plugin(self): return Mine.of(path=...)`")

    def test_is_of_its_kind(self) -> None:
        plugin: Plugin = self.plugin()
        promise(
            isinstance(plugin, self.kind),
            f"{type(plugin).__name__} is no {self.kind.__name__}",
            f"subclass layertap.{self.kind.__name__}, or test it with the suite of its own kind",
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
            "unknown parameters are taken silently, so that a misspelt one is never noticed",
            "derive Params from layertap.Params and leave its model_config alone",
        )

    def test_module_imports_nothing_heavy(self) -> None:
        module = type(self.plugin()).__module__
        promise(
            importlib.util.find_spec(module),
            f"the module {module!r} cannot be imported by its name",
            "put the plugin into a module of its own that the tests import",
        )
        done = _imported_alone(module)
        promise(
            done.returncode == 0,
            f"{module} cannot be imported by itself: {done.stderr.strip()[-300:]}",
            "import what it needs in it",
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
