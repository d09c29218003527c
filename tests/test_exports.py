"""The public names are those in the manual, all of them exist, and none is hidden by a module."""

from __future__ import annotations

import importlib
import os
import pkgutil
import struct
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from PIL import Image

import layertap

FUNCTIONS = {"tap", "extract", "run", "open", "layers"}
DATA = {"RunInfo", "Report", "Failure"}
DATA |= {"Tap", "TapInfo", "TappedModel", "RunConfig", "ImageRecord", "Batch", "Activations", "Shard", "LoadedModel"}
DATA |= {"Job", "Receipt", "Worker", "WorkerReport"}
BASES = {
    "Params",
    "ModelProvider",
    "Source",
    "Preprocessor",
    "Reducer",
    "Sink",
    "FileSink",
    "Observer",
    "Engine",
    "Crew",
}
BASES |= {"Engine", "Crew", "CrewEngine"}
ERRORS = {"ConfigError", "PluginError", "TapError", "WeightsError", "ImageError", "StoreError", "UnsafeError"}
SHARED = {"file_stamp", "open_regular", "plain_value", "exif_orientation", "missing_extra"}
LIMITS = {"MAX_IMAGE_BYTES", "MAX_IMAGE_PIXELS"}
PUBLIC = FUNCTIONS | DATA | BASES | ERRORS | SHARED | LIMITS | {"LayertapError", "hookimpl"}


def test_public_names_are_those_of_the_manual():
    assert set(layertap.__all__) == PUBLIC
    assert len(layertap.__all__) == len(PUBLIC)
    assert set(dir(layertap)) == PUBLIC | {"__version__"}


@pytest.mark.parametrize("name", sorted(PUBLIC - LIMITS))
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


def test_limits_are_those_at_which_an_image_is_refused():
    assert layertap.MAX_IMAGE_BYTES == 512 * 2**20
    assert layertap.MAX_IMAGE_PIXELS == Image.MAX_IMAGE_PIXELS


def test_what_plugins_share_with_the_core_loads_neither_torch_nor_pillow():
    code = (
        "import sys, layertap\n"
        f"for name in {sorted(SHARED | LIMITS)}: getattr(layertap, name)\n"
        "assert not {'torch', 'numpy', 'PIL'} & set(sys.modules), sorted(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_missing_extra_says_what_to_install():
    said = layertap.missing_extra("the sink Rows", "pyarrow", "parquet")
    assert said == "the sink Rows needs the package 'pyarrow': pip install 'layertap[parquet]'"
    said = layertap.missing_extra("'gs://x'", None, "cloud", "other")
    assert said == "'gs://x' needs another package: pip install 'other[cloud]'"


def test_file_that_is_opened_is_regular_and_the_one_with_the_stamp(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"abc")
    stamp = layertap.file_stamp(path.stat())
    with os.fdopen(layertap.open_regular(path, stamp), "rb") as file:
        assert file.read() == b"abc"
    os.utime(path, ns=(0, 0))
    os.mkfifo(tmp_path / "pipe")
    for place, reason in ((path, "changed"), (tmp_path / "pipe", "not_regular"), (tmp_path, "not_regular")):
        with pytest.raises(layertap.ImageError) as refused:
            layertap.open_regular(place, stamp)
        assert refused.value.reason == reason
    assert layertap.file_stamp(path.stat()) == "3 0"


@pytest.mark.parametrize("number", range(10))
@pytest.mark.parametrize(
    ("order", "kind", "packed"), [("<", 3, "<HH"), (">", 3, ">HH"), ("<", 4, "<L"), (">", 4, ">L")]
)
def test_orientation_is_what_pillow_reads(number, order, kind, packed):
    value = struct.pack(packed, *((number, 0) if kind == 3 else (number,)))
    head = b"II*\0" if order == "<" else b"MM\0*"
    block = head + struct.pack(f"{order}LHHHL", 8, 1, 0x0112, kind, 1) + value + bytes(4)
    image = Image.new("RGB", (3, 2))
    assert layertap.exif_orientation(image) == 1
    image.info["exif"] = b"Exif\0\0" + block
    found = image.getexif().get(0x0112)
    assert layertap.exif_orientation(image) == (found if found in range(1, 9) else 1)


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
        "assert all(callable(getattr(layertap, name)) for name in layertap.__all__ if not name.isupper())\n"
        "assert run is layertap.run and tap is layertap.tap and open is layertap.open\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_types_are_announced():
    assert (Path(layertap.__path__[0]) / "py.typed").is_file()
