"""The common parts of the file sinks' tests: the sinks, one set of rows, and a child that is killed while writing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import layertap
from layertap_plugins.sinks.hdf5 import Hdf5Sink
from layertap_plugins.sinks.lance import LanceSink
from layertap_plugins.sinks.parquet import ParquetSink
from layertap_plugins.sinks.safetensors import SafetensorsSink
from layertap_plugins.sinks.zarr import ZarrSink
from tests.conftest import TINY
from tests.pipeline.test_pipeline import config

SINKS: dict[str, type[layertap.FileSink]] = {
    "safetensors": SafetensorsSink,
    "parquet": ParquetSink,
    "hdf5": Hdf5Sink,
    "zarr": ZarrSink,
    "lance": LanceSink,
}
DTYPES = ("float32", "float16", "bfloat16")
TAPS = [
    {"layer": layer, "name": f"{layer}/{dtype}", "dtype": dtype}
    for layer in ("features.0", "classifier")
    for dtype in DTYPES
]

_CHILD = """
import json, os, resource, signal, sys
import layertap, layertap.pipeline.pipeline
import torchvision.transforms.functional  # once, and not in every process

def fatal(name, wanted, after):
    real = getattr(os, name)
    def call(source, target, *rest):
        if str(source).endswith(wanted) and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        real(source, target, *rest)
        if wanted in str(source) and after:
            os.kill(os.getpid(), signal.SIGKILL)
    setattr(os, name, call)

def attempt(config, plugins, fate):
    if fate == "part":  # written, and without its name
        fatal("rename", "00002.tmp", after=False)
    elif fate == "merge":  # half in place
        fatal("replace", "merge.tmp/", after=True)
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (fate, fate))
    try:
        layertap.run(config, plugins=plugins)
    except layertap.LayertapError as error:
        print(error, file=sys.stderr)
        return error.code
    return 0

ends = []
for config, fate in json.loads(sys.argv[1]):
    child = os.fork()
    if not child:
        os._exit(attempt(config, sys.argv[2:], fate))
    ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(ends))
"""


def sink_config(kind: str, photos: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """A run of five shards into `out`."""
    return config(photos, None, **{"sink": {"type": kind, "path": str(out)}, "taps": TAPS, "shard_rows": 4, **changes})


def sink_run(*args: Any, **changes: Any) -> Any:
    return layertap.run(sink_config(*args, **changes), plugins=[TINY])


def fated(attempts: list[tuple[dict[str, Any], str | int]]) -> tuple[list[int], str]:
    """The results of runs, each in its own process, and their output.

    One is killed before a part has its name (`part`) or when a merged file has (`merge`), or may write no more than so
    many bytes into a file.
    """
    child = subprocess.run(
        [sys.executable, "-c", _CHILD, json.dumps(attempts), TINY],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=True,
    )
    return json.loads(child.stdout), child.stderr


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of an output except the manifest, which holds times."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "manifest.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def values(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every tap's rows through `layertap.open`: dtype, shape and bits."""
    features = layertap.open(folder)
    rows = {tap: features[tap][:] for tap in features.taps}
    return {tap: (array.dtype.name, array.shape, array.tobytes()) for tap, array in rows.items()}
