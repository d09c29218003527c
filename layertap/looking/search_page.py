"""What a search found, as a page with pictures."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from layertap.images.reading import stamp_of
from layertap.looking.metrics import metric_named
from layertap.looking.neighbours import Neighbour, Neighbours
from layertap.looking.originals import configured
from layertap.looking.page import rendered
from layertap.looking.pairs import Pairs
from layertap.looking.queries import given
from layertap.looking.thumbnails import Thumbnail, thumbnails, thumbnails_of
from layertap.looking.tiles import Tile, metadata
from layertap.outputs.output import Output
from layertap.plugins import Plugins
from layertap.records import Planned
from layertap.store.paths import user_path

SIDE = 192

MOST = 2_000
"""How many pictures a page holds at most."""


def nearest_page(features: Output, asked: str, found: Sequence[Neighbours], facts: Sequence[str], **moved: Any) -> str:
    """A page with the picture of each query and of the rows nearest to it.

    `moved` is what `thumbnails` takes: `overrides`, `plugins`, `remote`.
    """
    shown = found[: max(1, MOST // (1 + max((len(one) for one in found), default=0)))]
    facts = [*facts, *_omitted(len(shown), len(found), "queries")]
    rows = {hit.row for one in shown for hit in one}
    names = {one.query for one in shown}
    own = {name: row for row, name in enumerate(features.ids) if name in names} if asked in features.ids else {}
    pictures, known = _pictures(features, rows | set(own.values()), moved), metadata(features, rows)
    queries = {name: pictures.get(row) for name, row in own.items()} if own else _given(features, asked, names, moved)
    data = [
        {
            "name": one.query,
            "asked": Tile.of(one.query, [], queries.get(one.query)),
            "tiles": [_found(hit, one.metric, known[hit.row], pictures.get(hit.row)) for hit in one],
        }
        for one in shown
    ]
    return rendered("search.html", title=f"Search in {features.path}", facts=facts, queries=data, pairs=[])


def _found(hit: Neighbour, metric: str, known: Sequence[tuple[str, Any]], picture: Thumbnail | None) -> Tile:
    value = f"{hit.value:.6f}" if metric == "cosine" else f"{hit.value:.6g}"
    return Tile.of(hit.id, [(metric_named(metric).value, value), ("row", hit.row), *known], picture)


def pairs_page(features: Output, found: Pairs, facts: Sequence[str], **moved: Any) -> str:
    """A page with the two pictures of each pair. `moved` is what `thumbnails` takes."""
    shown = found[: MOST // 2]
    facts = [*facts, *_omitted(len(shown), len(found), "pairs")]
    rows = {row for pair in shown for row in (pair.row, pair.other_row)}
    pictures, known = _pictures(features, rows, moved), metadata(features, rows)
    data = [
        {
            "title": f"similarity {pair.similarity:.6f}",
            "tiles": [
                Tile.of(name, [("row", row), *known[row]], pictures.get(row))
                for row, name in ((pair.row, pair.id), (pair.other_row, pair.other_id))
            ],
        }
        for pair in shown
    ]
    return rendered("search.html", title=f"Pairs in {features.path}", facts=facts, queries=[], pairs=data)


def _omitted(shown: int, found: int, what: str) -> list[str]:
    return [f"The first {shown:,} of {found:,} {what} are on this page."] if shown < found else []


def _pictures(features: Output, rows: Collection[int], moved: Mapping[str, Any]) -> dict[int, Thumbnail]:
    return {one.row: one for one in thumbnails(features, rows, side=SIDE, **moved)}


def _given(features: Output, asked: str, ids: Collection[str], moved: Mapping[str, Any]) -> dict[str, Thumbnail]:
    """The pictures of queries that are not rows: of a file, or of the images in a folder."""
    known = Plugins.load(moved["plugins"])
    records = (record for record in given(user_path(asked), known).records() if record.id in ids)
    config = configured(features, moved["overrides"], known)
    drawn = thumbnails_of((Planned(record, stamp_of(record)) for record in records), config, SIDE)
    return {one.id: one for one in drawn}
