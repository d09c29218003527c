"""What `layertap plugins` shows of each plugin: its origin, its parameters, and the packages that it lacks."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import pydantic_core
import typer
from pydantic.fields import FieldInfo

from layertap.cli.format import PLUGIN_COLUMNS as COLUMNS
from layertap.errors import install_command
from layertap.plugins import Plugins, Registered

_LONGEST_DEFAULT = 32
_OF_AN_EXTRA = re.compile(r"(?P<name>[\w.-]+)[^;]*;.*\bextra\s*==\s*['\"](?P<extra>[\w.-]+)['\"]")

# A place where a line must not be folded.
_UNBROKEN = "\u00a0"


def plugin_row(plugin: Registered) -> list[str]:
    """The cells of `layertap.cli.format.PLUGIN_COLUMNS`."""
    return [plugin.kind, plugin.type_name, plugin.distribution, plugin.version, plugin.file]


def plugin_data(plugin: Registered) -> dict[str, Any]:
    """A plugin as data for JSON: its row, parameters and extra, and the command that installs missing packages."""
    cells = dict(zip(COLUMNS, plugin_row(plugin), strict=True))
    return {**cells, "parameters": _parameters(plugin), "extra": plugin.cls.extra, "install": install(plugin)}


def install(plugin: Registered) -> str | None:
    """The command that installs the packages that the plugin needs and this environment lacks; None if it lacks none.

    They are read from the metadata of its distribution: nothing is imported.
    """
    if plugin.cls.extra is None or all(map(_is_installed, _needed(plugin.distribution, plugin.cls.extra))):
        return None
    return install_command(plugin.cls.extra, plugin.distribution)


def print_plugins(plugins: Iterable[Registered]) -> None:
    """Print a table for a terminal: below each plugin's row its parameters with defaults, and the packages it lacks."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    found = list(plugins)
    *narrow, _ = zip(COLUMNS, *map(plugin_row, found), strict=True)
    widths = [max(map(len, cells)) for cells in narrow]
    indent = " " * (widths[0] + 2)

    def line(text: str, style: str = "") -> None:
        # Not folded, because users copy paths and commands.
        console.print(Text(text, style=style), soft_wrap=True)

    line(_aligned(COLUMNS, widths), "dim")
    for plugin in found:
        line(_aligned(plugin_row(plugin), widths), "bold")
        named = [_named(parameter).replace(" ", _UNBROKEN) for parameter in _parameters(plugin)]
        width = max(console.width - len(indent), 40)
        for folded in textwrap.wrap(", ".join(named) or "no parameters", width, break_on_hyphens=False):
            line(indent + folded.replace(_UNBROKEN, " "))
        if command := install(plugin):
            line(f"{indent}needs packages that are not installed: {command}", "yellow")


def print_faults(known: Plugins) -> None:
    """Report on stderr the plugins that could not be included in the output of a command."""
    for fault in known.faults():
        typer.echo(fault, err=True)


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    *narrow, last = cells
    return "  ".join([*(cell.ljust(width) for cell, width in zip(narrow, widths, strict=True)), last])


def _parameters(plugin: Registered) -> list[dict[str, Any]]:
    """Each parameter as a configuration names it, with its default as plain data."""
    return [
        {
            "name": field.alias or name,
            "required": field.is_required(),
            "default": None if field.is_required() else _default(field),
            "description": field.description,
        }
        for name, field in plugin.cls.Params.model_fields.items()
    ]


def _default(field: FieldInfo) -> Any:
    try:
        return pydantic_core.to_jsonable_python(field.get_default(call_default_factory=True), fallback=str)
    except Exception as error:  # a factory whose needs are not met must not hide the other plugins
        return f"unknown: {error!r}"


def _named(parameter: dict[str, Any]) -> str:
    if parameter["required"]:
        return str(parameter["name"])
    default = parameter["default"]
    text = default if isinstance(default, str) and default.isprintable() and default else json.dumps(default)
    return f"{parameter['name']}={textwrap.shorten(text, _LONGEST_DEFAULT, placeholder=' ...')}"


@functools.cache
def _needed(distribution: str, extra: str) -> list[str]:
    """The distributions that an extra installs."""
    try:
        lines = importlib.metadata.requires(distribution) or []
    except importlib.metadata.PackageNotFoundError:  # a file of the user's own
        return []
    found = filter(None, map(_OF_AN_EXTRA.match, lines))
    return [match["name"] for match in found if _normal(match["extra"]) == _normal(extra)]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@functools.cache
def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
