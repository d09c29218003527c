"""Images as a page shows them: a picture or the reason why there is none, and what is known."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from layertap.looking.thumbnails import MIME, Thumbnail
from layertap.outputs.output import Output
from layertap.records import INDEX_COLUMNS


@dataclass(frozen=True, slots=True)
class Tile:
    """One image on a page: its id, what is known of it, and a picture, or the reason why there is none."""

    id: str
    facts: Sequence[tuple[str, Any]] = ()
    picture: str | None = None
    reason: str | None = None
    may_differ: bool = False

    @classmethod
    def of(cls, name: str, facts: Sequence[tuple[str, Any]], thumbnail: Thumbnail | None) -> Tile:
        """A tile with a thumbnail; without one its image is gone."""
        if thumbnail is None or thumbnail.data is None:
            return cls(name, facts, reason=thumbnail.reason if thumbnail else "gone")
        picture = f"data:{MIME};base64,{base64.b64encode(thumbnail.data).decode()}"
        return cls(name, facts, picture, may_differ=thumbnail.may_differ)


def metadata(features: Output, rows: Iterable[int]) -> dict[int, list[tuple[str, Any]]]:
    """The metadata of some rows, by row."""
    wanted = set(rows)
    found: dict[int, list[tuple[str, Any]]] = {}
    for row in features.rows() if wanted else ():
        if row["row"] in wanted:
            known = [(key, value) for key, value in row.items() if key not in INDEX_COLUMNS and value is not None]
            found[row["row"]] = known
            if len(found) == len(wanted):
                break
    return found
