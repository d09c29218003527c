"""Matrices as a picture: a heat map each, as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from layertap.looking.page import rendered

_LONGEST = 28
_LETTER = 7
_MARGIN = 48
_TITLE = 160

# From no similarity to 1; values below 0 are drawn as 0. Whoever sees no colours sees light and dark.
_SCALE = ((247, 251, 255), (158, 202, 225), (8, 81, 156), (8, 29, 68))
_UNKNOWN = "#d0d0d0"


def heat_maps(title: str, names: Sequence[str], matrices: Mapping[str, NDArray[Any]]) -> str:
    """The text of an SVG with one heat map per matrix (names x names), under its own title. NaN is grey."""
    count = len(names)
    names = [_shown(name) for name in names]
    step = 44 if count <= 12 else max(8, 640 // count)
    room = 16 + _LETTER * max(len(_short(name)) for name in names)
    side = step * count
    block = max(side, _TITLE) + room + _MARGIN
    maps: list[dict[str, Any]] = [
        {
            "title": own,
            "x": room + number * block,
            "y": _MARGIN + 24,
            "side": side,
            "step": step,
            "labels": [
                {"name": name, "short": _short(name), "at": step * place + step / 2} for place, name in enumerate(names)
            ],
            "cells": _cells(names, matrix, step),
        }
        for number, (own, matrix) in enumerate(matrices.items())
    ]
    width = max(room + len(maps) * block - room, 480)
    height = _MARGIN + 24 + side + room
    return rendered("heat_maps.svg", title=title, maps=maps, width=width, height=height)


def _cells(names: Sequence[str], matrix: NDArray[Any], step: int) -> list[dict[str, Any]]:
    return [
        {
            "x": column * step,
            "y": row * step,
            "title": f"{one}, {other}: {_number(value)}",
            "text": _number(value) if step >= 40 else "",
            "fill": _colour(value),
            "ink": "#ffffff" if value > 0.45 else "#222222",
        }
        for row, (one, values) in enumerate(zip(names, matrix.tolist(), strict=True))
        for column, (other, value) in enumerate(zip(names, values, strict=True))
    ]


def _number(value: float) -> str:
    return "-" if value != value else f"{value:.2f}"


def _colour(value: float) -> str:
    if value != value:
        return _UNKNOWN
    at = min(max(value, 0.0), 1.0) * (len(_SCALE) - 1)
    low = min(int(at), len(_SCALE) - 2)
    mixed = (round(a + (b - a) * (at - low)) for a, b in zip(_SCALE[low], _SCALE[low + 1], strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def _shown(name: str) -> str:
    """A name without what an XML file cannot hold."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in name)


def _short(name: str) -> str:
    """The end of a name that is too long: layers differ there."""
    return name if len(name) <= _LONGEST else f"...{name[3 - _LONGEST :]}"
