"""The JSON Schema of a configuration, and that it and the loader are of one mind."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest

from layertap.config.document import read_document
from layertap.config.loading import load_config
from layertap.config.model import RunConfig
from layertap.config.schema import config_schema
from layertap.errors import ConfigError
from layertap.plugins import KINDS, Plugins

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
PARTS = {"source": "samples", "sink": {"type": "npy", "path": "f/"}}

NESTED = """
import layertap
from pydantic import Field
class Inner(layertap.Params):
    depth: int = Field(ge=0, description="how deep")
class Nested(layertap.Source):
    class Params(layertap.Params):
        inner: Inner = Field(description="one")
        more: list[Inner] = Field([], description="several")
    def records(self):
        yield layertap.ImageRecord("a", b"")
@layertap.hookimpl
def register_sources(register):
    register("nested", Nested)
"""


@pytest.fixture(scope="module")
def plugins():
    return Plugins.load()


@pytest.fixture(scope="module")
def validator(plugins):
    schema = config_schema(plugins)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_committed_schema_is_what_the_first_party_plugins_give(monkeypatch):
    monkeypatch.setenv("LAYERTAP_PLUGINS", "layertap")
    committed = json.loads((ROOT / "configs" / "schema.json").read_text("utf-8"))
    assert committed == config_schema(Plugins.load()), (
        "parameters have changed; run: LAYERTAP_PLUGINS=layertap layertap schema > configs/schema.json"
    )


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_config_file_loads_and_names_a_schema_that_knows_it(path, plugins):
    load_config(path, None, plugins)
    first = path.read_text("utf-8").splitlines()[0]
    found = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert found, f"{path.name} does not begin with a line for the language server"
    schema = json.loads((path.parent / found[1]).read_text("utf-8"))
    jsonschema.Draft202012Validator(schema).validate(read_document(path).data)


def test_there_are_config_files():
    assert {"alexnet.yaml", "quickstart.yaml"} <= {path.name for path in CONFIGS}


def test_starter_loads_and_is_what_the_schema_knows(plugins, validator):
    path = Path(str(files("layertap.cli") / "templates/starter.yaml"))
    load_config(path, None, plugins)
    validator.validate(read_document(path).data)


def test_every_key_and_every_parameter_is_described(plugins, validator):
    properties = validator.schema["properties"]
    assert list(properties) == list(RunConfig.model_fields)
    assert [key for key, value in properties.items() if not value.get("description")] == []
    for registered in plugins:
        if registered.distribution == "layertap":
            fields = registered.cls.Params.model_fields
            assert [name for name, field in fields.items() if not field.description] == []


def test_defaults_in_the_schema_are_what_one_would_write(plugins, validator):
    defaults = {key: value["default"] for key, value in validator.schema["properties"].items() if "default" in value}
    assert set(defaults) == set(RunConfig.model_fields) - {"source", "sink"}
    validator.validate({**PARTS, **defaults})
    assert load_config({**PARTS, **defaults}, None, plugins) == load_config(PARTS, None, plugins)


GOOD = [
    {},
    {"model": "torchvision/vgg11"},
    {"model": "torchvision"},
    {"model": {"type": "torchvision", "name": "vgg11", "args": {"num_classes": 10, "x": [1, {"y": None}]}}},
    {"taps": "classifier.5"},
    {"taps": ["a", {"layer": "b", "reduce": "mean_pool", "dtype": "float16"}]},
    {"taps": [{"layer": "b", "side": "input", "call": "last", "select": ["x", 0], "name": "n", "reduce": ["flatten"]}]},
    {"taps": [{"layer": "b", "select": 0, "reduce": {"type": "flatten"}, "call": 3}]},
    {"taps": {"a": "b", "c": {"layer": "d", "reduce": [{"type": "mean_pool"}, "flatten"]}}},
    {"source": {"type": "folder", "path": "x", "include": ["*.jpg"]}},
    {"preprocess": "model"},
    {"preprocess": {"type": "model"}},
    {"preprocess": {"type": "imagenet", "crop": 99}},
    {"sink": "memory"},
    {"sink": {"type": "discard"}},
    {"device": "cuda:1", "batch_size": 1, "workers": 2, "limit": None, "shard_rows": 10, "on_error": "fail"},
    {"max_failures": 0, "early_stop": False},
    {"max_failures": 0.5, "observers": []},
    {"observers": "progress"},
    {"observers": ["progress", {"type": "progress"}]},
]
BAD = [
    {"colour": 1},
    {"model": "alexnet"},
    {"model": "torchvison/alexnet"},
    {"model": {"type": "torchvision", "nmae": "x"}},
    {"model": {"name": "alexnet"}},
    {"model": {"type": "torchvision", "name": 18}},
    {"model": None},
    {"taps": 5},
    {"taps": []},
    {"taps": [5]},
    {"taps": [{"name": "x"}]},
    {"taps": [{"layer": "x", "cal": 1}]},
    {"taps": [{"layer": "x", "dtype": "float8"}]},
    {"taps": [{"layer": "x", "reduce": ["meen_pool"]}]},
    {"taps": {"a": {"layer": "x", "reduce": {"type": "flatten", "x": 1}}}},
    {"source": "folder"},
    {"source": "images/"},
    {"source": {"type": "folder"}},
    {"source": {"type": "folder", "path": "x", "glob": "*"}},
    {"source": {"type": "samples", "path": "x"}},
    {"preprocess": {"type": "model", "crop": 1}},
    {"preprocess": {"type": "imagenet", "crop": "1"}},
    {"sink": {"type": "npy"}},
    {"sink": {"type": "npy", "path": ""}},
    {"device": "gpu"},
    {"device": 0},
    {"batch_size": 0},
    {"batch_size": "64"},
    {"batch_size": True},
    {"limit": 0},
    {"on_error": "ignore"},
    {"max_failures": 1.5},
    {"max_failures": -1},
    {"early_stop": "no"},
    {"observers": ["progres"]},
]


@pytest.mark.parametrize("keys", GOOD, ids=str)
def test_what_loads_is_what_the_schema_takes(plugins, validator, keys):
    load_config({**PARTS, **keys}, None, plugins)
    validator.validate({**PARTS, **keys})


@pytest.mark.parametrize("keys", BAD, ids=str)
def test_what_is_wrong_is_wrong_to_both(plugins, validator, keys):
    with pytest.raises(ConfigError):
        load_config({**PARTS, **keys}, None, plugins)
    assert not validator.is_valid({**PARTS, **keys})


def test_source_and_sink_are_required(validator):
    assert not validator.is_valid({"sink": "memory"})
    assert not validator.is_valid({"source": "samples"})


def test_nested_parameters_of_a_stranger_are_in_the_schema(tmp_path):
    (tmp_path / "nested.py").write_text(NESTED)
    plugins = Plugins.load([str(tmp_path / "nested.py")])
    validator = jsonschema.Draft202012Validator(config_schema(plugins))
    for inner, good in (({"depth": 1}, True), ({"depth": -1}, False), ({"deep": 1}, False), ({}, False)):
        config = {**PARTS, "source": {"type": "nested", "inner": {"depth": 0}, "more": [inner]}}
        assert validator.is_valid(config) is good
        if good:
            load_config(config, None, plugins)
        else:
            with pytest.raises(ConfigError):
                load_config(config, None, plugins)


def test_schema_without_any_plugin_is_a_schema_that_takes_nothing(monkeypatch):
    monkeypatch.setenv("LAYERTAP_PLUGINS", "")
    schema = config_schema(Plugins.load())
    jsonschema.Draft202012Validator.check_schema(schema)
    assert not jsonschema.Draft202012Validator(schema).is_valid(PARTS)
    assert set(KINDS) <= set(schema["$defs"])


def test_parameters_without_a_schema_cost_only_their_own_description(tmp_path):
    code = NESTED.replace("depth: int = Field(ge=0", "depth: __import__('typing').Callable = Field(")
    (tmp_path / "odd.py").write_text(code.replace("Field(, ", "Field("))
    schema = config_schema(Plugins.load([str(tmp_path / "odd.py")]))
    assert "the source Nested raised PydanticInvalidForJsonSchema" in json.dumps(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid({**PARTS, "source": {"type": "nested", "inner": 5}})
    assert not validator.is_valid({**PARTS, "source": {"type": "folder", "inner": 5}})
