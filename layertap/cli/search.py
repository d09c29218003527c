"""`layertap search`: the images nearest to one, and the pairs that are alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page with pictures to FILE.")
    ] = None,
    remote: Annotated[
        list[str] | None,
        typer.Option(
            "--remote", metavar="HOST", help="With --html: fetch images from this host. May be given several times."
        ),
    ] = None,
    index: Annotated[
        str | None,
        typer.Option("--index", help="usearch: search an approximate index, which is built beside OUT once."),
    ] = None,
    plugin: Own = None,
    as_json: Json = False,
) -> int:
    """Find the rows of OUT nearest to QUERY, exactly by default. An image goes through the model of OUT itself."""
    from layertap.config.loading import parse_overrides
    from layertap.looking.vectors import one_tap
    from layertap.outputs.features import open_output
    from layertap.store.paths import user_path

    _refuse_mixed(query, pairs, above, metric, index)
    if remote and html is None:
        raise ConfigError("search: --remote is for the pictures of --html; nothing else is fetched")
    own = own_plugins(context, plugin)
    moved = {"overrides": parse_overrides(overrides or []), "plugins": own, "remote": remote or ()}
    page = user_path(html) if html else None
    with open_output(output, plugins=own) as features:
        written = _Written(features, one_tap(features, tap), page, as_json, moved)
        if query is None:
            return written.pairs(0.95 if above is None else above)
        return written.nearest(query, count, metric or "cosine", index)


def _refuse_mixed(query: str | None, pairs: bool, above: float | None, metric: str | None, index: str | None) -> None:
    if query is None and not pairs:
        raise ConfigError("search: give a QUERY (an id, an image or a folder), or --pairs")
    if query is not None and pairs:
        raise ConfigError(f"search: --pairs compares all rows with one another; leave {query!r} out")
    if above is not None and not pairs:
        raise ConfigError("search: --above is for --pairs; a QUERY has its -k nearest rows")
    if pairs and index is not None:
        raise ConfigError("search: --pairs is exact; leave --index out")
    if pairs and metric not in (None, "cosine"):
        raise ConfigError(f"search: --pairs compares by cosine, not by {metric}")


@dataclass(frozen=True, slots=True)
class _Written:
    """Searches in one tap, and prints what it finds as it is asked for: as a table or JSON, and as a page too."""

    features: Features
    tap: str
    html: Path | None
    as_json: bool
    moved: Mapping[str, Any]
    """What has moved since the run, and which machines may be asked: `overrides`, `plugins`, `remote`."""

    def __post_init__(self) -> None:
        from layertap.looking.page import refuse_inside

        if self.html:
            refuse_inside(self.html, self.features)

    def nearest(self, query: str, count: int, metric: str, index: str | None) -> int:
        """The rows nearest to a query. The exit code."""
        from layertap.looking.neighbours import nearest
        from layertap.looking.queries import queries_of
        from layertap.looking.search import indexed

        failed: list[Failure] = []
        overrides, plugins = self.moved["overrides"], self.moved["plugins"]
        graph = indexed(self.features, self.tap, metric, index, _say) if index else None
        with uncollected():
            queries = queries_of(self.features, query, self.tap, failed.append, overrides=overrides, plugins=plugins)
            found = list(
                graph.nearest(queries, count) if graph else nearest(self.features, queries, self.tap, count, metric)
            )
        facts = _facts(self.features, self.tap, metric, found)
        facts += [f"approximate, from the {index} index with a {graph.facts}"] if graph else []
        unusable = [f"{one.record.id!r} cannot be used: {one.reason} ({one.stage})" for one in failed]
        if self.as_json:
            data = _nearest_data(self.features.path, self.tap, metric, found, failed)
            print_json({**data, "index": graph.facts.model_dump(exclude={"key"}) if graph else None})
        else:
            _print_table(facts, metric, found)
        for said in unusable:
            typer.echo(printable(said), err=True)
        if self.html:
            from layertap.looking.search_page import nearest_page

            self._write(nearest_page(self.features, query, found, [*facts, *unusable], **self.moved))
        return SOME_FAILED if failed else 0

    def pairs(self, above: float) -> int:
        """The pairs of rows that are alike. The exit code."""
        from layertap.looking.pairs import alike

        found = alike(self.features, self.tap, above)
        facts = _pair_facts(self.features, found)
        if self.as_json:
            pairs = [pair._asdict() for pair in found]
            data = {"tap": self.tap, "above": above, "rows": found.rows, "left_out": dict(found.left_out)}
            print_json({"path": str(self.features.path), **data, "pairs": pairs})
        else:
            _print_pair_table(facts, found)
        if self.html:
            from layertap.looking.search_page import pairs_page

            self._write(pairs_page(self.features, found, facts, **self.moved))
        return 0

    def _write(self, page: str) -> None:
        from layertap.looking.page import write_page

        assert self.html
        write_page(self.html, page)
        typer.echo(printable(f"wrote {self.html}"), err=self.as_json)


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


def _say(text: str) -> None:
    typer.echo(printable(text), err=True)


def _facts(features: Features, tap: str, metric: str, found: Sequence[Neighbours]) -> list[str]:
    """What was compared, in sentences."""
    if not found:
        return []
    first = found[0]
    asked = repr(first.query) if len(found) == 1 else f"{len(found)} images"
    title = f"{asked}: the nearest of {first.rows:,} rows of {_described(features, tap)} by {metric}"
    return [title, *_left_out(first.left_out)]


def _print_table(facts: Sequence[str], metric: str, found: Sequence[Neighbours]) -> None:
    from layertap.looking.metrics import metric_named

    for fact in facts:
        typer.echo(printable(fact))
    columns = [metric_named(metric).value, "row", "id"]
    form = ".6f" if metric == "cosine" else ".6g"
    rows = [[one.query, f"{hit.value:{form}}", str(hit.row), hit.id] for one in found for hit in one]
    if len(found) > 1:
        print_table(["query", *columns], rows)
    elif found:
        print_table(columns, [row[1:] for row in rows])


def _pair_facts(features: Features, found: Pairs) -> list[str]:
    pairs = _counted(len(found), "pair")
    described = _described(features, found.tap)
    title = f"{pairs} among {found.rows:,} rows of {described} with a cosine of at least {found.above}"
    return [title, *_left_out(found.left_out)]


def _print_pair_table(facts: Sequence[str], found: Pairs) -> None:
    for fact in facts:
        typer.echo(printable(fact))
    if len(found):
        rows = [[f"{p.similarity:.6f}", str(p.row), p.id, str(p.other_row), p.other_id] for p in found]
        print_table(["similarity", "row", "id", "other row", "other id"], rows)


def _described(features: Features, tap: str) -> str:
    """A tap, and that its maps are compared as vectors where it holds any."""
    shape = features[tap].shape[1:]
    return f"{tap} (maps {' x '.join(map(str, shape))}, flattened)" if len(shape) > 1 else tap


def _left_out(left_out: Mapping[str, int]) -> list[str]:
    return [f"left out: {_counted(count, 'row')} {_LEFT_OUT[word]}" for word, count in left_out.items() if count]


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"
