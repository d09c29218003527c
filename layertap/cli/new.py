"""A new plugin's distribution, ready to be installed: pyproject, README, the class, and its conformance test."""

from __future__ import annotations

import importlib.util
import keyword
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template

from layertap.errors import ConfigError, did_you_mean
from layertap.plugins import Plugins

_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class _Kind:
    """What differs in the templates: the suite, the test's plugin, and how a configuration names it."""

    suite: str
    example: str
    arguments: str = ""
    test: str = "test.py.tmpl"


KINDS: Mapping[str, _Kind] = {
    "source": _Kind("SourceSuite", "source: {type: $type, path: images.txt}", test="test_source.py.tmpl"),
    "sink": _Kind("FileSinkSuite", "sink: {type: $type, path: features/}", 'path="features"'),
    "preprocessor": _Kind("PreprocessorSuite", "preprocess: {type: $type, size: 224}", "size=32"),
    "reducer": _Kind("ReducerSuite", "taps:\n  - {layer: classifier.5, reduce: [{type: $type, count: 8}]}"),
    "model": _Kind("ModelProviderSuite", 'model: {type: $type, width: 8}\ntaps: ["0"]\npreprocess: {type: imagenet}'),
    "observer": _Kind("ObserverSuite", "observers: [progress, {type: $type, name: mine}]"),
}
"""The kinds of plugins that can be written, by the value of `--kind`."""


def write_plugin(name: str, kind: str) -> Path:
    """Write a distribution into the new folder `name`, and return that folder.

    Its type is `name` without a leading `layertap-`. Raises `ConfigError` for an invalid name, for one that something
    installed already has or whose folder exists, and for a folder that cannot be written.
    """
    if kind not in KINDS:
        raise ConfigError(f"--kind must be one of {', '.join(KINDS)}, not {kind!r}{did_you_mean(kind, KINDS)}")
    module = _module(name)
    type_name = module.removeprefix("layertap_")
    _refuse_taken(kind, type_name)
    chosen = KINDS[kind]
    words = {
        "name": name,
        "kind": kind,
        "type": type_name,
        "module": module,
        "class_name": "".join(word.capitalize() for word in type_name.split("_")),
        "suite": chosen.suite,
        "arguments": chosen.arguments,
        "example": Template(chosen.example).substitute(type=type_name),
    }
    texts = {
        "pyproject.toml": "pyproject.toml.tmpl",
        "README.md": "README.md.tmpl",
        f"{module}.py": f"{kind}.py.tmpl",
        f"tests/test_{module}.py": chosen.test,
    }
    folder = Path(name)
    templates = files("layertap.cli") / "templates"
    filled = {path: Template((templates / file).read_text("utf-8")).substitute(words) for path, file in texts.items()}
    try:
        folder.mkdir()
        (folder / "tests").mkdir()
        for path, text in filled.items():
            (folder / path).write_text(text, "utf-8")
    except FileExistsError:
        raise ConfigError(f"{folder}: already exists; choose another name, or move it") from None
    except OSError as error:
        raise ConfigError(f"{error.filename}: cannot be written: {error.strerror}") from error
    return folder


def _module(name: str) -> str:
    """The module that a distribution of this name holds."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be the name of a plugin: use lower-case letters and digits, and join words by `-` or "
            "`_`, as in my-images"
        )
    module = name.replace("-", "_")
    if keyword.iskeyword(module) or module in sys.stdlib_module_names or module == "tests":
        raise ConfigError(f"{name!r} is a name that Python itself uses; choose another name, such as layertap-{name}")
    if importlib.util.find_spec(module) is not None:
        raise ConfigError(f"a package {module!r} is already installed; choose another name")
    return module


def _refuse_taken(kind: str, type_name: str) -> None:
    if (kind, type_name) == ("preprocessor", "model"):
        raise ConfigError("`preprocess:` itself uses the name `model`; choose another name")
    if taken := Plugins.load().get(kind, type_name):
        raise ConfigError(f"{taken.distribution} already has a {kind} of the type {type_name!r}; choose another name")
