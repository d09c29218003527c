"""Entry points -> the classes of each kind, by type. A plugin is imported when its type is used."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from layertap import hookspecs
from layertap.contracts import PROJECT, Plugin
from layertap.errors import CONFIG, ConfigError, LayertapError, PluginError, did_you_mean, missing_extra
from layertap.hookspecs import KINDS, check_type

GROUP = "layertap"
LIMIT = "LAYERTAP_PLUGINS"


@dataclass(frozen=True, slots=True)
class Registered:
    """One type of one kind, and where it came from.

    A plugin of the user's own has its file's name for a distribution and a digest of its text for a version, so that
    an edited plugin counts as another. `named` says that its entry point has the type's name, or that it is the user's.
    """

    kind: str
    type_name: str
    cls: type[Plugin]
    plugin: str
    distribution: str
    version: str
    file: str
    named: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    """An entry point of one distribution, not imported."""

    point: EntryPoint
    distribution: str
    version: str

    @property
    def names(self) -> set[str]:
        """What `LAYERTAP_PLUGINS` may call it."""
        return {self.distribution, self.point.name, self.plugin}

    @property
    def plugin(self) -> str:
        return f"{self.distribution}:{self.point.name}"


class Plugins:
    """The installed plugins and the user's own; created by `Plugins.load()`.

    An installed plugin is imported when its type is first asked for: the name of its entry point, `kind-type`, says
    which one that is. A plugin that fails, or a type that two of them claim, is an error only if it is asked for.
    """

    def __init__(self) -> None:
        self.failures: dict[str, str] = {}
        """Why a plugin could not be loaded, by its name, for those that have been tried."""
        self.own: Sequence[str] = ()
        self._entries = self._waiting = list[_Entry]()
        self._found: dict[str, dict[str, list[Registered]]] = {kind: {} for kind in KINDS}
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(hookspecs.Registration)

    @classmethod
    def load(cls, own: Sequence[str] = ()) -> Plugins:
        """The installed plugins, and the user's `own` files or modules, which are imported at once. Never raises."""
        plugins = cls()
        plugins.own = own
        plugins._entries = plugins._waiting = _installed(plugins.failures)
        for reference in own:
            # A module that is also installed is not a second plugin.
            plugins._load_entries([entry for entry in plugins._waiting if entry.point.value == reference])
            with plugins._kept(reference):
                plugins._register(*_own_module(reference))
        return plugins

    def find(self, kind: str, type_name: str) -> Registered:
        """The registered type; imports what may provide it.

        Raises `PluginError` for a type that several plugins claim, `ConfigError` for an unknown one, with the nearest
        names and the plugins that failed to load.
        """
        claims = self._claims(kind, type_name)
        if len(claims) > 1:
            raise PluginError(_conflict(claims), code=CONFIG)
        if claims:
            return claims[0]
        tables = self.tables
        table = tables[kind]
        message = f"no {kind} has the type {type_name!r}{did_you_mean(type_name, table)}"
        if table:
            message += (
                f" (installed: {', '.join(sorted(table))}; `--plugin FILE`, or `plugins=` in Python, adds your own)"
            )
        elif not any(tables.values()):
            message += " (no plugin is installed: install layertap itself, `pip install -e .` in a checkout)"
        message += "".join(f"; the plugin {fault}" for fault in self._not_loaded())
        if os.environ.get(LIMIT) is not None:
            message += f"; {LIMIT}={os.environ[LIMIT]} limits what is loaded"
        raise ConfigError(message)

    def get(self, kind: str, type_name: str) -> Registered | None:
        """The registered type; None for one that `find` would refuse."""
        claims = self._claims(kind, type_name)
        return claims[0] if len(claims) == 1 else None

    @property
    def tables(self) -> dict[str, dict[str, Registered]]:
        """Every type that can be used, by kind and name. Imports every plugin."""
        self._load_entries(self._waiting)
        names = {kind: sorted(found) for kind, found in self._found.items()}
        return {kind: {name: one for name in names[kind] if (one := self.get(kind, name))} for kind in KINDS}

    def __iter__(self) -> Iterator[Registered]:
        """Every registered type, by kind and then by name; one that two plugins claim comes twice."""
        self._load_entries(self._waiting)
        for found in self._found.values():
            for name in sorted(found):
                yield from found[name]

    def faults(self) -> list[str]:
        """What is wrong with the plugins, one line each. Imports every plugin."""
        self._load_entries(self._waiting)
        several = [claims for found in self._found.values() for claims in found.values() if len(claims) > 1]
        return [*self._not_loaded(), *map(_conflict, several)]

    def add(self, new: Registered) -> None:
        """Register one more type."""
        self._found[new.kind].setdefault(new.type_name, []).append(new)

    def _claims(self, kind: str, type_name: str) -> list[Registered]:
        """The plugins that register a type: those whose names say so come before any others."""
        found, name = self._found[kind], f"{kind}-{type_name}"
        self._load_entries([entry for entry in self._waiting if entry.point.name == name])
        if not any(one.named for one in found.get(type_name, [])):
            self._load_entries(self._waiting)
        claims = found.get(type_name, [])
        return [one for one in claims if one.named] or claims

    def _not_loaded(self) -> list[str]:
        return [f"{name} could not be loaded: {reason}" for name, reason in self.failures.items()]

    def _load_entries(self, entries: Sequence[_Entry]) -> None:
        self._waiting = [entry for entry in self._waiting if entry not in entries]
        for entry in entries:
            names = {e.point.name for e in self._entries if e.point.value == entry.point.value}
            with self._kept(entry.plugin):
                self._register(entry.point.load(), entry.plugin, entry.distribution, entry.version, names)

    @contextmanager
    def _kept(self, name: str) -> Iterator[None]:
        """Record why a plugin could not be loaded: it must not prevent the use of another."""
        try:
            yield
        except (Exception, SystemExit) as error:
            near = f"; there is a file {name}.py" if Path(f"{name}.py").is_file() else ""
            self.failures[name] = _said(error) + near

    def _register(
        self, module: Any, name: str, distribution: str, version: str, names: Collection[str] | None = None
    ) -> None:
        """Add everything that a plugin registers, once all of it has passed.

        `names`: those of its entry points, by which a type is found first; None for the user's own.
        """
        manager = self._manager
        if manager.is_registered(module):
            return
        found: list[Registered] = []
        file = getattr(module, "__file__", None) or "-"

        def taker(kind: str) -> Callable[[str, type[Plugin]], None]:
            def register(type_name: str, cls: type[Plugin]) -> None:
                check_type(kind, type_name, cls)
                is_named = names is None or f"{kind}-{type_name}" in names
                plugin = f"{distribution}:{kind}-{type_name}" if names and is_named else name
                found.append(Registered(kind, type_name, cls, plugin, distribution, version, file, is_named))

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
        for new in found:
            self.add(new)


def _conflict(claims: Sequence[Registered]) -> str:
    kind, type_name = claims[0].kind, claims[0].type_name
    plugins = " and ".join(f"{one.plugin} ({one.file})" for one in claims)
    named = [one for one in claims if one.named]
    used = f"; {named[0].plugin} is used, which is named after it" if len(named) == 1 else ""
    return (
        f"two plugins register the {kind} type {type_name!r}: {plugins}{used}; "
        f"uninstall one, or name those to load in {LIMIT}"
    )


def _installed(failures: dict[str, str]) -> list[_Entry]:
    """What is installed, or what `LAYERTAP_PLUGINS` names of it; what is wrong with either goes into `failures`."""
    entries = [_Entry(point, *_origin(point.dist)) for point in _points(failures)]
    entries.sort(key=lambda entry: entry.plugin)
    limit = os.environ.get(LIMIT)
    if limit is None:
        return entries
    wanted = {word.strip() for word in limit.split(",") if word.strip()}
    known = set().union(*(entry.names for entry in entries))
    for word in sorted(wanted - known):
        near = did_you_mean(word, known)
        failures[f"{word!r} of {LIMIT}"] = f"no installed plugin or distribution is named {word!r}{near}"
    return [entry for entry in entries if entry.names & wanted]


def _points(failures: dict[str, str]) -> list[EntryPoint]:
    """The entry points of the group; distributions whose entry points cannot be read go into `failures`."""
    try:
        return list(importlib.metadata.entry_points(group=GROUP))
    except Exception:  # one damaged file of any distribution makes the entry points of all unreadable
        found: dict[tuple[str, str], EntryPoint] = {}
        for distribution in importlib.metadata.distributions():
            name, _ = _origin(distribution)
            try:
                for point in distribution.entry_points.select(group=GROUP):
                    found.setdefault((name, point.name), point)
            except Exception as error:
                failures[name] = f"its entry points cannot be read: {_said(error)}"
        return list(found.values())


def _origin(distribution: Distribution | None) -> tuple[str, str]:
    """A distribution's name and version; half-removed installations have lost them."""
    try:
        facts = distribution.metadata if distribution else None
    except Exception:  # whatever importlib.metadata raises for a folder without METADATA
        facts = None
    known = {key: facts[key] for key in ("Name", "Version") if key in facts} if facts is not None else {}
    return known.get("Name", "-"), known.get("Version", "-")


def _own_module(reference: str) -> tuple[ModuleType, str, str, str]:
    """The user's module, the plugin's name, and what serves as its distribution and version."""
    path = Path(os.path.expanduser(reference))
    if path.suffix != ".py" and not path.is_file():
        module = importlib.import_module(reference)
        file = Path(getattr(module, "__file__", None) or "")
        return module, f"module:{reference}", reference, _version_of(file.read_bytes()) if file.is_file() else "-"
    if not path.is_file():
        raise FileNotFoundError("no such file")
    path = path.resolve()
    text = path.read_bytes()
    # The text is part of the name: a file is run once while it is unchanged, and again after an edit.
    name = f"layertap_own_{_digest(os.fsencode(path))[:8]}_{_digest(text)[:8]}_{path.stem}"
    return sys.modules.get(name) or _executed(name, path, text), f"file:{path}", path.name, _version_of(text)


def _executed(name: str, path: Path, text: bytes) -> ModuleType:
    """The module made from this exact text: Python's cache of compiled files misses an edit within the same second."""
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
    # A plugin that calls sys.exit(0) must not end an unfinished run as if it had succeeded.
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and cls.extra is not None:
            message = missing_extra(label_of(cls), error.name, cls.extra, _distribution_of(cls))
            raise PluginError(message, code=CONFIG) from error
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise PluginError(f"{label_of(cls)} raised {_said(error)} (at {last.filename}:{last.lineno})") from error


def _distribution_of(cls: type[Plugin]) -> str:
    """The name to give to pip: that of the entry point that provided the class, or of its package's files."""
    for point in _points({}):
        if point.value.partition(":")[0].strip() == cls.__module__:
            return _origin(point.dist)[0]
    # Not the first choice: the files of an editable installation are not listed.
    top = cls.__module__.partition(".")[0]
    return importlib.metadata.packages_distributions().get(top, [top])[0]


def label_of(cls: type[Plugin]) -> str:
    """What a message calls a plugin."""
    if cls.label is not None:
        return cls.label
    kind = next((kind for kind, base in KINDS.items() if issubclass(cls, base)), "plugin")
    return f"the {kind} {cls.__name__}"


def _said(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    said = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    hook = re.search(r"unknown hook '(\w+)'", said) if isinstance(error, pluggy.PluginValidationError) else None
    return said + did_you_mean(hook[1], [f"register_{kind}s" for kind in KINDS]) if hook else said
