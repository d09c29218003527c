"""`layertap report`: the page that shows an output."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from layertap.cli.format import printable
from layertap.cli.options import Out, Overrides, Own, own_plugins


def report(
    context: typer.Context,
    output: Out,
    overrides: Overrides = None,
    tap: Annotated[
        list[str] | None, typer.Option("--tap", metavar="NAME", help="Only this tap. May be given several times.")
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="FOLDER", help="Where to write it.", show_default="OUT.report")
    ] = None,
    projection: Annotated[str, typer.Option("--projection", help="Of the map: pca or umap.")] = "pca",
    remote: Annotated[
        list[str] | None,
        typer.Option("--remote", metavar="HOST", help="Fetch pictures from this host. May be given several times."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
    plugin: Own = None,
) -> None:
    """Write a page that shows OUT: the run, a map, units, activation maps, layers, duplicates. It opens offline."""
    from layertap.config.loading import parse_overrides
    from layertap.looking.report.report import report as written
    from layertap.outputs.features import open_output

    own = own_plugins(context, plugin)
    asked: dict[str, Any] = {"overrides": parse_overrides(overrides or []), "plugins": own, "remote": remote or ()}
    with open_output(output, plugins=own) as features:
        page = written(features, tap, to, projection, **asked, say=_silent if quiet else _say)
    if not quiet:
        typer.echo(printable(f"the report is written; open {page}"))


def _say(what: str) -> None:
    typer.echo(printable(what), err=True)


def _silent(what: str) -> None:
    """Print nothing."""
