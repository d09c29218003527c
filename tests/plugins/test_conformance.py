"""First-party plugins keep the same promises as third-party ones. A new plugin needs one line here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, ClassVar

import pytest

from layertap.plugins import Plugins
from layertap.testing import (
    EngineSuite,
    FileSinkSuite,
    ModelProviderSuite,
    ObserverSuite,
    PreprocessorSuite,
    ReducerSuite,
    SinkSuite,
    SourceSuite,
    trial,
)
from tests.plugins.storing import WAYS, pictures

Cases = list[tuple[str, dict[str, Any]]]

# By the way in which the pictures are stored for the source; `samples` has its own.
SOURCES = ["folder", "csv", "tar", "parquet", "huggingface", "torchvision", "npy", "npz", "hdf5", "samples"]
PREPROCESSORS: Cases = [
    ("imagenet", {}),
    ("imagenet", {"exif": "apply", "depth": "rescale"}),
    ("identity", {"size": 32}),
    ("letterbox", {"size": 64}),
    ("squash", {"size": 64}),
    ("torchvision", {"transforms": ["ToImage", {"Resize": {"size": 40}}, {"CenterCrop": 32}]}),
]
REDUCERS: Cases = [
    ("flatten", {}),
    ("mean_pool", {}),
    ("max_pool", {}),
    ("gem_pool", {}),
    ("grid_pool", {}),
    ("cls_token", {}),
    ("mean_patch", {}),
    ("mean_heads", {}),
    ("from_cls", {}),
    ("l2_normalise", {}),
    ("random_projection", {"dim": 4}),
]
SINKS: Cases = [("memory", {}), ("discard", {})]
FILE_SINKS: Cases = [(name, {"path": "out"}) for name in ("npy", "safetensors", "parquet", "hdf5", "zarr", "lance")]
MODELS: Cases = [("torchvision", {"name": "squeezenet1_1", "weights": "random"})]
ENGINES: Cases = [("local", {"devices": 2}), ("folder", {}), ("slurm", {"cluster": "local", "workers": 2, "cpus": 1})]
OBSERVERS: Cases = [("progress", {}), ("metrics", {"path": "PROM"})]

# Their files contain a unique identity, so that their values are compared.
NOT_THE_SAME_BYTES = {"lance"}
# These are slow to build, and have their own tests.
ELSEWHERE = {("model", "timm"), ("model", "transformers"), ("model", "open_clip"), ("engine", "ray")}


@cache
def installed():
    return Plugins.load()


class Tested:
    """Gives the suites the plugin of a type, with parameters."""

    word: ClassVar[str]

    @pytest.fixture(autouse=True)
    def tested(self, request, tmp_path_factory):
        self.type_name, params = request.param
        prom = str(tmp_path_factory.mktemp("metrics") / "run.prom")
        self.params = {key: prom if value == "PROM" else value for key, value in params.items()}

    def plugin(self):
        return installed().find(self.word, self.type_name).cls.of(**self.params)


def each(cases: Cases):
    return pytest.mark.parametrize("tested", cases, ids=[name for name, _ in cases], indirect=True)


@pytest.fixture(scope="module")
def stored(photographs, tmp_path_factory):
    """The source for each way of storing a few pictures, stored once."""
    paths = pictures(photographs, tmp_path_factory.mktemp("pictures"), 10)
    return cache(lambda way: {"type": way} if way == "samples" else WAYS[way](paths, tmp_path_factory.mktemp(way)))


@pytest.mark.parametrize("tested", SOURCES, indirect=True)
class TestSources(Tested, SourceSuite):
    word = "source"

    @pytest.fixture(autouse=True)
    def tested(self, request, stored):
        self.params = dict(stored(request.param))
        self.type_name = self.params.pop("type")


@each(PREPROCESSORS)
class TestPreprocessors(Tested, PreprocessorSuite):
    word = "preprocessor"


@each(REDUCERS)
class TestReducers(Tested, ReducerSuite):
    word = "reducer"


@each(SINKS)
class TestSinks(Tested, SinkSuite):
    word = "sink"


@each(FILE_SINKS)
class TestFileSinks(Tested, FileSinkSuite):
    word = "sink"

    @property
    def deterministic(self):
        return self.type_name not in NOT_THE_SAME_BYTES


@each(MODELS)
class TestModels(Tested, ModelProviderSuite):
    word = "model"


@each(ENGINES)
class TestEngines(Tested, EngineSuite):
    word = "engine"

    def joining(self, output):
        return joined(output) if self.type_name == "folder" else super().joining(output)


@contextmanager
def joined(output):
    """A worker that somebody starts, and starts again where it fails."""
    command = f"{sys.executable} -m layertap work {output} --wait 60 --plugin {trial.__name__}"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    workers = subprocess.Popen(
        ["sh", "-c", f"{command} || {command} || {command}"],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
        workers.wait(60)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(workers.pid, signal.SIGKILL)
        workers.wait()


@each(OBSERVERS)
class TestObservers(Tested, ObserverSuite):
    word = "observer"


def test_no_first_party_plugin_is_left_out(stored):
    tested = {("source", stored(way)["type"]) for way in SOURCES} | ELSEWHERE
    kinds = {"preprocessor": PREPROCESSORS, "reducer": REDUCERS, "model": MODELS, "observer": OBSERVERS}
    kinds |= {"engine": ENGINES}
    for kind, cases in {**kinds, "sink": SINKS + FILE_SINKS}.items():
        tested |= {(kind, type_name) for type_name, _ in cases}
    assert {(r.kind, r.type_name) for r in installed() if r.distribution == "layertap"} - tested == set()
