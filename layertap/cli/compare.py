"""`layertap compare`: how alike taps see the same images."""

from __future__ import annotations

import csv
import itertools
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layertap.cli.format import print_table, printable
from layertap.cli.options import Json, Own, own_plugins, print_json
from layertap.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from layertap.looking.similarity import Similarity


def compare(
    context: typer.Context,
    outputs: Annotated[list[Path], typer.Argument(metavar="OUT...", help="Output folders; rows are joined by id.")],
    tap: Annotated[
        list[str] | None, typer.Option("--tap", metavar="NAME", help="Only this tap. May be given several times.")
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV: one line per measure and pair of taps.")] = False,
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="FILE", help="Write heat maps to FILE, as SVG.")
    ] = None,
    as_json: Json = False,
    plugin: Own = None,
) -> None:
    """Compare the taps of one output or of several, by CKA and RSA on the same images."""
    from layertap.looking.page import refuse_inside, write_page
    from layertap.looking.similarity import similarity
    from layertap.outputs.features import open_output
    from layertap.store.paths import user_path

    if as_csv and as_json:
        raise ConfigError("compare: choose one of --csv and --json")
    path = user_path(picture) if picture else None
    if path and path.suffix != ".svg":
        raise ConfigError(f"compare: --picture writes an SVG; name a file that ends in .svg, not {str(path)!r}")
    with ExitStack() as stack:
        opened = [stack.enter_context(open_output(each, plugins=own_plugins(context, plugin))) for each in outputs]
        if path:
            refuse_inside(path, *opened)
        found = similarity(opened, _chosen(opened, tap))
    if as_json:
        print_json(_data(found))
    elif as_csv:
        _write_csv(found)
    else:
        _print_matrices(found)
    if path:
        write_page(path, found.to_svg())
        typer.echo(printable(f"wrote {path}"), err=as_csv or as_json)


def _chosen(opened: list[Any], taps: list[str] | None) -> list[list[str]]:
    """The taps of each output: of those that are named, the ones that it has."""
    if taps is None:
        return [features.taps for features in opened]
    for name in taps:
        if not any(name in features for features in opened):
            opened[0].facts(name)
    return [[name for name in features.taps if name in taps] for features in opened]


def _data(found: Similarity) -> dict[str, Any]:
    facts = {"names": list(found.names), "images": found.images, "shared": found.shared, "left_out": found.left_out}
    return {**facts, "cka": _plain(found.cka), "rsa": _plain(found.rsa)}


def _plain(matrix: NDArray[Any]) -> list[list[float | None]]:
    """NaN as null, which JSON has."""
    return [[None if value != value else value for value in row] for row in matrix.tolist()]


def _write_csv(found: Similarity) -> None:
    from layertap.looking.similarity import MEASURES

    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["measure", "tap", "other_tap", "value", "images"])
    names = [printable(name) for name in found.names]
    for measure in MEASURES:
        matrix = _plain(getattr(found, measure))
        for (row, one), (column, other) in itertools.product(enumerate(names), repeat=2):
            writer.writerow([measure, one, other, matrix[row][column], found.images])


def _print_matrices(found: Similarity) -> None:
    from layertap.looking.similarity import MEASURES

    typer.echo(f"{len(found.names)} taps by {found.said}")
    for measure, title in MEASURES.items():
        typer.echo(f"\n{title}")
        matrix = getattr(found, measure).tolist()
        cells = [["-" if value != value else f"{value:.3f}" for value in row] for row in matrix]
        rows = [[name, *row] for name, row in zip(found.names, cells, strict=True)]
        print_table(["", *found.names], rows)
