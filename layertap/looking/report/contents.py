"""What a report shows of an output, computed in a few passes over its rows, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layertap.errors import ConfigError
from layertap.looking.report.activations import MOST_IMAGES, Activations, activations, block, has_maps, view_text
from layertap.looking.report.closeness import CODES, Duplicates, Near, code_block, drawn, duplicates, neighbours
from layertap.looking.report.columns import Column, read_shown
from layertap.looking.report.components import components
from layertap.looking.report.packing import number, packed
from layertap.looking.report.projection import of_components, umap_of
from layertap.looking.report.units import ShownUnits, refusal, related, shown_units
from layertap.looking.similarity import similarity
from layertap.outputs.features import Features
from layertap.plugins import Plugins

MOST_POINTS = 1_000_000
"""How many images the map shows."""

MOST_PICTURES = 20_000
"""How many images have a picture: a larger output has those of a seeded sample and of the units' first images."""

_SAMPLED_PICTURES = 5_000

Rows = NDArray[np.int64]
Blocks = Iterator[tuple[str, Any]]
Said = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a report is asked for, and from where: see `report`."""

    taps: tuple[str, ...]
    projection: str
    overrides: Mapping[str, Any]
    plugins: Sequence[str]
    remote: Collection[str]


@dataclass(slots=True)
class Shown:
    """What the page shows: `rows` of the output in ascending order, their ids and their metadata."""

    rows: Rows
    ids: list[str]
    columns: list[Column]
    of: int

    def numbers(self, rows: NDArray[Any]) -> NDArray[np.int32]:
        """The places of some rows among those shown, -1 for -1."""
        if not len(self.rows):
            return np.full(rows.shape, -1, np.int32)
        places = np.minimum(np.searchsorted(self.rows, rows), len(self.rows) - 1)
        return np.where(self.rows[places] == rows, places, -1).astype(np.int32)


class Contents:
    """The blocks of data of a report; what has been computed for one section serves the next."""

    def __init__(self, features: Features, asked: Asked, say: Said) -> None:
        self.features = features
        self.asked = asked
        self._say = say
        self.count = sum(1 for _ in features.rows())
        self.refused = {tap: why for tap in asked.taps if (why := refusal(features, tap))}
        self.taps = [tap for tap in asked.taps if tap not in self.refused] if self.count else []
        if self.refused and not self.taps and self.count:
            raise ConfigError(next(iter(self.refused.values())))
        self.sample = drawn(np.arange(self.count), MOST_POINTS)
        self._units: list[ShownUnits] = []
        self._near: list[Near] = []
        self._pairs: list[Duplicates] = []
        self._picked: list[Rows] = []
        self.mapped: dict[str, dict[str, Any]] = {}
        """How many channels of each tap have `maps` on the page, and `why` there are none; known after `blocks`."""

    def survey(self) -> Shown:
        """What needs all rows: units, neighbours, pairs. Gives what the page shows of them."""
        columns = related(self.features)
        for tap in self.taps:
            self._say(f"units of {tap}")
            self._units.append(shown_units(self.features, tap, columns))
            self._say(f"neighbours in {tap}")
            self._near.append(neighbours(self.features, tap, self.sample))
            self._pairs.append(duplicates(self.features, tap))
        self._picked = [one.rows for one in self._units]
        others = [one.near.reshape(-1) for one in self._near] + [one.pairs.reshape(-1) for one in self._pairs]
        every = np.unique(np.concatenate([self.sample, *self._picked, *others]))
        rows = every[every >= 0]
        ids, found = read_shown(self.features, rows)
        return Shown(rows, ids, found, self.count)

    def blocks(self, shown: Shown) -> Blocks:
        """Everything but ids, metadata and pictures, block by block."""
        for place, tap in enumerate(self.taps):
            units, near, pairs = self._units[place], self._near[place], self._pairs[place]
            yield f"units-{place}", units.block(shown.numbers)
            yield from ((f"relation-{place}-{n}", one) for n, one in enumerate(units.relations()))
            yield f"near-{place}", near.block(shown.numbers)
            yield f"pairs-{place}", pairs.block(shown.numbers)
            self._say(f"map of {tap}")
            yield from self._map(tap, place, shown)
        yield "layers", self._layers()
        yield from self._maps(shown)

    def pictured(self) -> Rows:
        """The rows to draw, in ascending order: all, or a seeded sample and the first images of the units."""
        if self.count <= MOST_PICTURES:
            return np.arange(self.count)
        chosen = dict.fromkeys(drawn(np.arange(self.count), _SAMPLED_PICTURES).tolist())
        # Round by round, so that each tap and unit has its first images before any has its last ones.
        for row in _in_turn([rows[rows >= 0] for rows in self._picked]):
            if len(chosen) == MOST_PICTURES:
                break
            chosen.setdefault(row)
        return np.array(sorted(chosen), np.int64)

    def _map(self, tap: str, place: int, shown: Shown) -> Blocks:
        near, umap = self._near[place], self.asked.projection == "umap"
        is_sample = len(near.rows) < len(shown.rows)
        if is_sample or not umap:
            found = components(self.features, tap, shown.rows, CODES if is_sample else 2)
        projected = umap_of(self.features, tap, shown.rows) if umap else of_components(found)
        yield (
            f"map-{place}",
            {
                "method": projected.method,
                "x": packed(projected.places[:, 0]),
                "y": packed(projected.places[:, 1]),
                "fitted": projected.fitted,
                "shares": [number(share) for share in projected.shares],
                "parameters": dict(projected.parameters),
            },
        )
        if is_sample:
            yield f"codes-{place}", code_block(found.scores, near, shown.numbers)

    def _layers(self) -> dict[str, Any]:
        if len(self.taps) < 2:
            return {"names": self.taps, "why": "There is one tap, and nothing to compare it with."}
        self._say("similarity of the taps")
        try:
            found = similarity([self.features], [self.taps])
        except ConfigError as error:
            return {"names": self.taps, "why": str(error)}
        matrices = {name: [[number(value) for value in row] for row in getattr(found, name)] for name in ("cka", "rsa")}
        return {"names": list(found.names), **matrices, "images": found.images, "of": found.shared,
                "leftOut": found.left_out}  # fmt: skip

    def _maps(self, shown: Shown) -> Blocks:
        taps = [tap for tap in self.taps if has_maps(self.features.facts(tap))]
        if not taps:
            return
        self._say("activation maps")
        asked = self.asked
        found = activations(
            self.features, taps, _most_often([one.rows for one in self._units if one.tap in taps]),
            overrides=asked.overrides, plugins=Plugins.load(asked.plugins), remote=asked.remote,
        )  # fmt: skip
        numbers = shown.numbers(np.array(found.rows, np.int64))
        self.mapped = {tap: {"maps": len(found.maps.get(tap, [[]])[0]), "why": found.why} for tap in taps}
        for tap, maps in found.maps.items():
            yield f"maps-{self.taps.index(tap)}", {**block(maps, numbers), **self._layer(tap, found)}
        yield "views", {str(place): view_text(view) for place, view in zip(numbers, found.views, strict=False)}

    def _layer(self, tap: str, found: Activations) -> dict[str, Any]:
        facts = self.features.facts(tap)
        axes = dict(zip(facts.raw.axes[1:], facts.raw.shape, strict=True))
        return {"layer": facts.layer, "sides": [axes["H"], axes["W"]], "why": found.why}


def _in_turn(several: Sequence[Rows]) -> Iterator[int]:
    for place in range(max(map(len, several), default=0)):
        for rows in several:
            if place < len(rows):
                yield int(rows[place])


def _most_often(several: Sequence[Rows]) -> list[int]:
    """The rows that are most often among the first images of units."""
    rows = np.concatenate([one[: len(one) // 2] for one in several])
    found, counts = np.unique(rows[rows >= 0], return_counts=True)
    return sorted(found[np.argsort(-counts, kind="stable")][:MOST_IMAGES].tolist())
