"""What several commands have in common: their options, and how they print JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

Own = Annotated[
    list[str] | None,
    typer.Option("--plugin", metavar="FILE_OR_MODULE", help="Load a plugin of your own. May be given several times."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Values that override CONFIG's, as in batch_size=32."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Ops = Annotated[
    str | None, typer.Option("--ops", metavar="LAYER", help="List the operations of this layer, or of a pattern.")
]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="An output folder.")]


def own_plugins(context: typer.Context, plugin: list[str] | None) -> list[str]:
    """The user's own plugins, named before the command word and after it."""
    return [*context.obj, *(plugin or [])]


def print_json(data: Any) -> None:
    """Data as JSON on stdout."""
    typer.echo(json.dumps(data, indent=2))
