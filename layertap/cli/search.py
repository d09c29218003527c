"""`layertap search`: the images nearest to one, and the pairs that are alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layertap.cli.format import print_table, printable
from layertap.cli.options import Json, Out, Overrides, Own, own_plugins, print_json
from layertap.errors import SOME_FAILED, ConfigError
from layertap.pipeline.malloc import uncollected

if TYPE_CHECKING:
    from layertap.looking.neighbours import Neighbours
    from layertap.looking.pairs import Pairs
    from layertap.outputs.features import Features
    from layertap.records import Failure

_LEFT_OUT = {"nonfinite": "with values that are not finite", "zero": "of zeros, which have no cosine"}


def search(
    context: typer.Context,
    output: Out,
    query: Annotated[
        str | None, typer.Argument(metavar="[QUERY]", help="An id of OUT, an image file, or a folder of images.")
    ] = None,
    overrides: Overrides = None,
    tap: Annotated[str | None, typer.Option("--tap", metavar="NAME", help="The tap, where there are several.")] = None,
    count: Annotated[int, typer.Option("-k", min=1, help="How many rows to find.")] = 10,
    metric: Annotated[
        str | None, typer.Option("--metric", help="cosine, dot or euclidean.", show_default="cosine")
    ] = None,
    pairs: Annotated[bool, typer.Option("--pairs", help="Find the pairs of rows that are alike instead.")] = False,
    above: Annotated[
        float | None, typer.Option("--above", help="With --pairs: the least cosine.", show_default="0.95")
    ] = None,
    plugin: Own = None,
    as_json: Json = False,
) -> int:
    """Find the rows of OUT nearest to QUERY, exactly. An image goes through the model of OUT itself."""
    from layertap.looking.vectors import one_tap
    from layertap.outputs.features import open_output

    _refuse_mixed(query, pairs, above, metric)
    own = own_plugins(context, plugin)
    with open_output(output, plugins=own) as features:
        name = one_tap(features, tap)
        if query is None:
            return _print_pairs(features, name, 0.95 if above is None else above, as_json)
        return _print_nearest(features, query, name, count, metric or "cosine", overrides or [], own, as_json)


def _refuse_mixed(query: str | None, pairs: bool, above: float | None, metric: str | None) -> None:
    if query is None and not pairs:
        raise ConfigError("search: give a QUERY (an id, an image or a folder), or --pairs")
    if query is not None and pairs:
        raise ConfigError(f"search: --pairs compares all rows with one another; leave {query!r} out")
    if above is not None and not pairs:
        raise ConfigError("search: --above is for --pairs; a QUERY has its -k nearest rows")
    if pairs and metric not in (None, "cosine"):
        raise ConfigError(f"search: --pairs compares by cosine, not by {metric}")


def _print_nearest(
    features: Features,
    query: str,
    tap: str,
    count: int,
    metric: str,
    overrides: list[str],
    own: Sequence[str],
    as_json: bool,
) -> int:
    from layertap.config.loading import parse_overrides
    from layertap.looking.neighbours import nearest
    from layertap.looking.queries import queries_of

    failed: list[Failure] = []
    with uncollected():
        queries = queries_of(features, query, tap, failed.append, overrides=parse_overrides(overrides), plugins=own)
        found = list(nearest(features, queries, tap, count, metric))
    if as_json:
        print_json(_nearest_data(features.path, tap, metric, found, failed))
    else:
        _print_table(features, tap, metric, found)
    for failure in failed:
        said = f"{failure.record.id!r} cannot be used: {failure.reason} ({failure.stage})"
        typer.echo(printable(said), err=True)
    return SOME_FAILED if failed else 0


def _nearest_data(
    path: Path, tap: str, metric: str, found: Sequence[Neighbours], failed: Sequence[Failure]
) -> dict[str, Any]:
    from layertap.looking.metrics import metric_named

    value = metric_named(metric).value
    return {
        "path": str(path),
        "tap": tap,
        "metric": metric,
        "queries": [
            {
                "query": one.query,
                "rows": one.rows,
                "left_out": dict(one.left_out),
                "found": [{"row": hit.row, "id": hit.id, value: hit.value} for hit in one],
            }
            for one in found
        ],
        "failed": [{"id": one.record.id, "stage": one.stage, "reason": one.reason} for one in failed],
    }


def _print_table(features: Features, tap: str, metric: str, found: Sequence[Neighbours]) -> None:
    from layertap.looking.metrics import metric_named

    if not found:
        return
    first = found[0]
    asked = repr(first.query) if len(found) == 1 else f"{len(found)} images"
    title = f"{asked}: the nearest of {first.rows:,} rows of {_described(features, tap)} by {metric}"
    typer.echo(printable(title))
    _print_left_out(first.left_out)
    columns = [metric_named(metric).value, "row", "id"]
    rows = [[f"{hit.value:.6g}" if metric != "cosine" else f"{hit.value:.6f}", str(hit.row), hit.id] for hit in first]
    if len(found) > 1:
        columns = ["query", *columns]
        rows = [[one.query, f"{hit.value:.6g}", str(hit.row), hit.id] for one in found for hit in one]
    print_table(columns, rows)


def _print_pairs(features: Features, tap: str, above: float, as_json: bool) -> int:
    from layertap.looking.pairs import alike

    found = alike(features, tap, above)
    if as_json:
        pairs = [pair._asdict() for pair in found]
        facts = {"tap": tap, "above": above, "rows": found.rows, "left_out": dict(found.left_out)}
        print_json({"path": str(features.path), **facts, "pairs": pairs})
    else:
        _print_pair_table(features, tap, found)
    return 0


def _print_pair_table(features: Features, tap: str, found: Pairs) -> None:
    described = _described(features, tap)
    pairs = _counted(len(found), "pair")
    title = f"{pairs} among {found.rows:,} rows of {described} with a cosine of at least {found.above}"
    typer.echo(printable(title))
    _print_left_out(found.left_out)
    if len(found):
        rows = [[f"{p.similarity:.6f}", str(p.row), p.id, str(p.other_row), p.other_id] for p in found]
        print_table(["similarity", "row", "id", "other row", "other id"], rows)


def _described(features: Features, tap: str) -> str:
    """A tap, and that its maps are compared as vectors where it holds any."""
    shape = features[tap].shape[1:]
    return f"{tap} (maps {' x '.join(map(str, shape))}, flattened)" if len(shape) > 1 else tap


def _print_left_out(left_out: Any) -> None:
    for word, count in left_out.items():
        if count:
            typer.echo(f"left out: {_counted(count, 'row')} {_LEFT_OUT[word]}")


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"
