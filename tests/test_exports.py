"""The public names are those in the manual, all of them exist, and none is hidden by a module."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import layertap

FUNCTIONS = {"tap", "extract", "run", "open", "layers"}
DATA = {"RunInfo", "Report", "Failure"}
DATA |= {"Tap", "TapInfo", "TappedModel", "RunConfig", "ImageRecord", "Batch", "Activations", "Shard", "LoadedModel"}
BASES = {"Params", "ModelProvider", "Source", "Preprocessor", "Reducer", "Sink", "FileSink", "Observer"}
ERRORS = {"ConfigError", "PluginError", "TapError", "WeightsError", "ImageError", "StoreError", "UnsafeError"}
PUBLIC = FUNCTIONS | DATA | BASES | ERRORS | {"LayertapError", "hookimpl"}


def test_public_names_are_those_of_the_manual():
    assert set(layertap.__all__) == PUBLIC
    assert sorted(layertap.__all__) == layertap.__all__
    assert set(dir(layertap)) == PUBLIC | {"__version__"}


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_public_name_is_there_and_documented(name):
    value = getattr(layertap, name)
    assert callable(value)
    assert value.__doc__
    assert getattr(importlib.import_module("layertap"), name) is value


def test_names_that_distinguish_plugins_are_classes():
    for name in DATA | BASES | ERRORS:
        assert isinstance(getattr(layertap, name), type)
    for name in ERRORS:
        assert issubclass(getattr(layertap, name), layertap.LayertapError)
    codes = {name: getattr(layertap, name).code for name in ERRORS}
    assert codes == {
        "ConfigError": 2,
        "PluginError": 1,
        "TapError": 2,
        "WeightsError": 2,
        "ImageError": 4,
        "StoreError": 7,
        "UnsafeError": 8,
    }


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'layertap' has no attribute 'nothing'"):
        _ = layertap.nothing
    with pytest.raises(ImportError):
        from layertap import nothing  # noqa: F401


def test_version_is_that_of_the_distribution():
    assert layertap.__version__ == version("layertap")


def test_no_module_bears_a_public_name():
    modules = {module.name for module in pkgutil.iter_modules(layertap.__path__)}
    assert modules & PUBLIC == set()


def test_public_names_stay_what_they_are_after_every_module_is_imported():
    code = (
        "import importlib, pkgutil, layertap\n"
        "for module in pkgutil.iter_modules(layertap.__path__):\n"
        "    if module.name != '__main__': importlib.import_module(f'layertap.{module.name}')\n"
        "from layertap import *\n"
        "assert all(callable(getattr(layertap, name)) for name in layertap.__all__)\n"
        "assert run is layertap.run and tap is layertap.tap and open is layertap.open\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_types_are_announced():
    assert (Path(layertap.__path__[0]) / "py.typed").is_file()
