"""Entry points -> one table of classes a kind. Plugins are named, never searched for."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from layertap import hookspecs
from layertap.contracts import ModelProvider, Observer, Params, Plugin, Preprocessor, Reducer, Sink, Source
from layertap.errors import CONFIG, ConfigError, LayertapError, PluginError, did_you_mean, missing_extra

GROUP = "layertap"
LIMIT = "LAYERTAP_PLUGINS"

KINDS: Mapping[str, type[Plugin]] = {
    "model": ModelProvider,
    "source": Source,
    "preprocessor": Preprocessor,
    "reducer": Reducer,
    "sink": Sink,
    "observer": Observer,
}

# Words of the pipeline and of a configuration that no plugin can take.
_TAKEN_TYPES = {("preprocessor", "model")}
_TAKEN_PARAMS = {"type", "params"}
_TYPE_NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True, slots=True)
class Registered:
    """One type of one kind, and where it came from.

    A plugin of the user's own has its file's name for a distribution and a digest of its text for a version, so that
    an edited one is another one.
    """

    kind: str
    type_name: str
    cls: type[Plugin]
    plugin: str
    distribution: str
    version: str
    file: str


class Plugins:
    """The tables of what is installed, made once by `Plugins.load()`."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[str, Registered]] = {kind: {} for kind in KINDS}
        self.failures: dict[str, str] = {}
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs.Registration)

    @classmethod
    def load(cls, own: Sequence[str] = ()) -> Plugins:
        """The installed plugins and the user's `own` files or modules.

        An installed plugin that cannot be imported is kept in `failures` and named when an unknown type is asked for.
        Raises `PluginError` for a type that two plugins claim, `ConfigError` for an own plugin that fails.
        """
        plugins = cls()
        for entry in _installed():
            distribution, version = _origin(entry)
            name = f"{distribution}:{entry.name}"
            try:
                found = plugins._registered_by(entry.load(), name, distribution, version)
            except (Exception, SystemExit) as error:
                plugins.failures[name] = _said(error)
            else:
                plugins._add(found)
        for reference in own:
            plugins._add_own(reference)
        return plugins

    def find(self, kind: str, type_name: str) -> Registered:
        """The registered type; raises `ConfigError` with the nearest names and the plugins that failed to load."""
        table = self.tables[kind]
        if type_name in table:
            return table[type_name]
        message = f"no {kind} has the type {type_name!r}{did_you_mean(type_name, table)}"
        if table:
            message += (
                f" (installed: {', '.join(sorted(table))}; `--plugin FILE`, or `plugins=` in Python, adds your own)"
            )
        elif not any(self.tables.values()):
            message += " (no plugin is installed: install layertap itself, `pip install -e .` in a checkout)"
        for name, reason in self.failures.items():
            message += f"; the plugin {name} could not be loaded: {reason}"
        if os.environ.get(LIMIT) is not None:
            message += f"; {LIMIT}={os.environ[LIMIT]} limits what is loaded"
        raise ConfigError(message)

    def __iter__(self) -> Iterator[Registered]:
        """Every registered type, by kind and then by name."""
        for table in self.tables.values():
            yield from (table[name] for name in sorted(table))

    def _add_own(self, reference: str) -> None:
        try:
            found = self._registered_by(*_own_module(reference))
        except (Exception, SystemExit) as error:
            hint = f"; there is a file {reference}.py" if Path(f"{reference}.py").is_file() else ""
            raise ConfigError(f"--plugin {reference}: {_said(error)}{hint}") from error
        self._add(found)

    def _registered_by(self, module: Any, name: str, distribution: str, version: str) -> list[Registered]:
        """All that a plugin registers, none of which is in the tables before the whole plugin has passed."""
        manager = self._manager
        if manager.is_registered(module):
            return []
        found: list[Registered] = []
        file = getattr(module, "__file__", None) or "-"

        def taker(kind: str) -> Callable[[str, type[Plugin]], None]:
            def register(type_name: str, cls: type[Plugin]) -> None:
                _check(kind, type_name, cls)
                found.append(Registered(kind, type_name, cls, name, distribution, version, file))

            return register

        others = manager.get_plugins()
        manager.register(module, name)
        try:
            manager.check_pending()
            for kind in KINDS:
                manager.subset_hook_caller(f"register_{kind}s", others)(register=taker(kind))
            if not found:
                raise TypeError(
                    "registers nothing; add a function such as "
                    "`@layertap.hookimpl def register_sources(register): register('name', Class)`"
                )
        except BaseException:
            manager.unregister(module)
            raise
        return found

    def _add(self, found: Sequence[Registered]) -> None:
        for new in found:
            old = self.tables[new.kind].setdefault(new.type_name, new)
            if old is not new:
                raise PluginError(
                    f"two plugins register the {new.kind} type {new.type_name!r}: {old.plugin} ({old.file}) and "
                    f"{new.plugin} ({new.file}); uninstall one, or name those to load in {LIMIT}",
                    code=CONFIG,
                )


def _check(kind: str, type_name: str, cls: type[Plugin]) -> None:
    """Refuse a registration that could only go wrong later, in the middle of somebody's run."""
    base = KINDS[kind]
    if not (isinstance(type_name, str) and _TYPE_NAME.fullmatch(type_name)) or (kind, type_name) in _TAKEN_TYPES:
        raise TypeError(f"{type_name!r} cannot be the name of a {kind}: letters, digits, `_`, `-` and `.`, not a word")
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise TypeError(f"{kind} {type_name!r} is no subclass of layertap.{base.__name__}")
    if not (isinstance(cls.Params, type) and issubclass(cls.Params, Params)):
        raise TypeError(f"{kind} {type_name!r}: its Params is no subclass of layertap.Params")
    for taken in _TAKEN_PARAMS & cls.Params.model_fields.keys():
        raise TypeError(f"{kind} {type_name!r}: no parameter can be named {taken!r}")


def _installed() -> list[importlib.metadata.EntryPoint]:
    entries = sorted(importlib.metadata.entry_points(group=GROUP), key=lambda entry: (_origin(entry), entry.name))
    limit = os.environ.get(LIMIT)
    if limit is None:
        return entries
    wanted = {word.strip() for word in limit.split(",") if word.strip()}
    names = [({_origin(e)[0], e.name, f"{_origin(e)[0]}:{e.name}"}, e) for e in entries]
    known = set().union(*(aliases for aliases, _ in names))
    for word in sorted(wanted - known):
        raise ConfigError(f"{LIMIT}: no installed plugin or distribution is named {word!r}{did_you_mean(word, known)}")
    return [entry for aliases, entry in names if aliases & wanted]


def _origin(entry: importlib.metadata.EntryPoint) -> tuple[str, str]:
    """An entry point's distribution and version; half-removed installations have lost them."""
    try:
        facts = entry.dist.metadata if entry.dist else None
    except Exception:  # whatever it is that importlib.metadata raises for a folder without METADATA
        facts = None
    known = {key: facts[key] for key in ("Name", "Version") if key in facts} if facts is not None else {}
    return known.get("Name", "-"), known.get("Version", "-")


def _own_module(reference: str) -> tuple[ModuleType, str, str, str]:
    """The user's module, the plugin's name, and what stands for its distribution and version."""
    path = Path(reference)
    if path.suffix != ".py" and not path.is_file():
        module = importlib.import_module(reference)
        file = Path(getattr(module, "__file__", None) or "")
        return module, f"module:{reference}", reference, _version_of(file.read_bytes()) if file.is_file() else "-"
    if not path.is_file():
        raise FileNotFoundError("no such file")
    path = path.resolve()
    text = path.read_bytes()
    # The text is part of the name: a file is run once as long as it stays the same, and again after an edit.
    name = f"layertap_own_{_digest(os.fsencode(path))[:8]}_{_digest(text)[:8]}_{path.stem}"
    return sys.modules.get(name) or _executed(name, path, text), f"file:{path}", path.name, _version_of(text)


def _executed(name: str, path: Path, text: bytes) -> ModuleType:
    """The module out of this very text: Python's cache of compiled files misses an edit within the same second."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise ImportError("not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        exec(compile(text, path, "exec", dont_inherit=True), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _version_of(text: bytes) -> str:
    return f"sha256:{_digest(text)[:12]}"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextmanager
def guard(plugin: Plugin | type[Plugin]) -> Iterator[None]:
    """Turn what a plugin raises into one clean `PluginError`; layertap's own errors pass."""
    cls = plugin if isinstance(plugin, type) else type(plugin)
    try:
        yield
    except LayertapError:
        raise
    # A plugin that calls sys.exit(0) must not end half a run as if all were well.
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and cls.extra is not None:
            message = missing_extra(_label(cls), error.name, cls.extra, _distribution_of(cls))
            raise PluginError(message, code=CONFIG) from error
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise PluginError(f"{_label(cls)} raised {_said(error)} (at {last.filename}:{last.lineno})") from error


def _distribution_of(cls: type[Plugin]) -> str:
    """The name to give to pip: that of the entry point which brought the class, or of its package's files."""
    for entry in importlib.metadata.entry_points(group=GROUP):
        if entry.module == cls.__module__:
            return _origin(entry)[0]
    # Not the first choice: the files of an editable installation are not listed.
    top = cls.__module__.partition(".")[0]
    return importlib.metadata.packages_distributions().get(top, [top])[0]


def _label(cls: type[Plugin]) -> str:
    kind = next((kind for kind, base in KINDS.items() if issubclass(cls, base)), "plugin")
    return f"the {kind} {cls.__name__}"


def _said(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    said = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    hook = re.search(r"unknown hook '(\w+)'", said) if isinstance(error, pluggy.PluginValidationError) else None
    return said + did_you_mean(hook[1], [f"register_{kind}s" for kind in KINDS]) if hook else said
