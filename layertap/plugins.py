"""Entry points -> one table of classes a kind. Plugins are named, never searched for."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pluggy

from layertap import hookspecs
from layertap.contracts import ModelProvider, Observer, Plugin, Preprocessor, Reducer, Sink, Source
from layertap.errors import ConfigError, LayertapError, PluginError, did_you_mean

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


@dataclass(frozen=True, slots=True)
class Registered:
    """One type of one kind, and where it came from."""

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
            dist = entry.dist.name if entry.dist else "-"
            name = f"{dist}:{entry.name}"
            try:
                plugins._register(entry.load(), name, dist, entry.dist.version if entry.dist else "-")
            except LayertapError:
                raise
            except (Exception, SystemExit) as error:
                plugins.failures[name] = _said(error)
        for reference in own:
            plugins._register_own(reference)
        return plugins

    def find(self, kind: str, type_name: str) -> Registered:
        """The registered type; raises `ConfigError` with the nearest names and the plugins that failed to load."""
        table = self.tables[kind]
        if type_name in table:
            return table[type_name]
        message = f"no {kind} has the type {type_name!r}{did_you_mean(type_name, table)}"
        if table:
            message += f" (installed: {', '.join(sorted(table))})"
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

    def _register_own(self, reference: str) -> None:
        try:
            module, name = _own_module(reference)
            before = sum(1 for _ in self)
            self._register(module, name, "-", "-")
        except LayertapError:
            raise
        except (Exception, SystemExit) as error:
            raise ConfigError(f"--plugin {reference}: {_said(error)}") from error
        if sum(1 for _ in self) == before:
            raise ConfigError(
                f"--plugin {reference}: registers nothing; add a function such as "
                "`@layertap.hookimpl def register_sources(register): register('name', Class)`"
            )

    def _register(self, module: ModuleType, name: str, distribution: str, version: str) -> None:
        manager = self._manager
        others = manager.get_plugins()
        manager.register(module, name)
        try:
            manager.check_pending()
            for kind, base in KINDS.items():

                def register(type_name: str, cls: type[Plugin], kind: str = kind, base: type[Plugin] = base) -> None:
                    if not (isinstance(cls, type) and issubclass(cls, base)):
                        raise TypeError(f"{kind} {type_name!r} is no subclass of layertap.{base.__name__}")
                    file = getattr(module, "__file__", None) or "-"
                    self._add(Registered(kind, type_name, cls, name, distribution, version, file))

                manager.subset_hook_caller(f"register_{kind}s", others)(register=register)
        except BaseException:
            manager.unregister(module)
            raise

    def _add(self, new: Registered) -> None:
        old = self.tables[new.kind].setdefault(new.type_name, new)
        if old is not new:
            raise PluginError(
                f"two plugins register the {new.kind} type {new.type_name!r}: {old.plugin} ({old.file}) and "
                f"{new.plugin} ({new.file}); uninstall one, or name those to load in {LIMIT}",
                code=ConfigError.code,
            )


def _installed() -> list[importlib.metadata.EntryPoint]:
    entries = sorted(
        importlib.metadata.entry_points(group=GROUP), key=lambda e: (e.dist.name if e.dist else "", e.name)
    )
    limit = os.environ.get(LIMIT)
    if limit is None:
        return entries
    wanted = {word.strip() for word in limit.split(",") if word.strip()}
    names = [({e.dist.name, e.name, f"{e.dist.name}:{e.name}"} if e.dist else {e.name}, e) for e in entries]
    known = set().union(*(aliases for aliases, _ in names))
    for word in sorted(wanted - known):
        raise ConfigError(f"{LIMIT}: no installed plugin or distribution is named {word!r}{did_you_mean(word, known)}")
    return [entry for aliases, entry in names if aliases & wanted]


def _own_module(reference: str) -> tuple[ModuleType, str]:
    path = Path(reference)
    if path.suffix != ".py" and not path.is_file():
        return importlib.import_module(reference), f"module:{reference}"
    if not path.is_file():
        raise FileNotFoundError("no such file")
    path = path.resolve()
    name = f"layertap_own_{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module, f"file:{path}"


@contextmanager
def guard(plugin: Plugin | type[Plugin]) -> Iterator[None]:
    """Turn what a plugin raises into one clean `PluginError`; layertap's own errors pass."""
    cls = plugin if isinstance(plugin, type) else type(plugin)
    try:
        yield
    except LayertapError:
        raise
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and cls.extra is not None:
            top = cls.__module__.partition(".")[0]
            dist = importlib.metadata.packages_distributions().get(top, [top])[0]
            message = f"{_label(cls)} needs the package {error.name!r}: pip install '{dist}[{cls.extra}]'"
            raise PluginError(message, code=ConfigError.code) from error
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise PluginError(f"{_label(cls)} raised {_said(error)} (at {last.filename}:{last.lineno})") from error


def _label(cls: type[Plugin]) -> str:
    kind = next((kind for kind, base in KINDS.items() if issubclass(cls, base)), "plugin")
    return f"the {kind} {cls.__name__}"


def _said(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
