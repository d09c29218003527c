"""`layertap report`: everything about an output on one page."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from layertap.errors import ConfigError
from layertap.looking.report.contents import Asked, Contents, Said, Shown
from layertap.looking.report.facts import facts_of
from layertap.looking.report.figures import figures, scale
from layertap.looking.report.packing import packed
from layertap.looking.report.page import PAGE, PageFolder, replacing
from layertap.looking.report.pictures import MOST_INSIDE, Pictures
from layertap.looking.thumbnails import thumbnails
from layertap.outputs.features import Features
from layertap.store.paths import user_path

PROJECTIONS = ("pca", "umap")

# Ids in one block.
_TOGETHER = 10_000


def report(
    features: Features,
    taps: str | Sequence[str] | None = None,
    to: str | os.PathLike[str] | None = None,
    projection: str = "pca",
    *,
    overrides: Mapping[str, Any] | None = None,
    plugins: Sequence[str] = (),
    remote: Collection[str] = (),
    say: Said = lambda what: None,
) -> Path:
    """Write the report of an output and give the path of its page: `OUT.report/index.html` by default.

    `taps` are all by default. `overrides` say what has moved, such as `source.path`; nothing is fetched from a machine
    that `remote` does not name. `say` is called with each step that begins. Raises `ConfigError` for an unknown
    projection, a folder that cannot be written to, and a missing extra.
    """
    if projection not in PROJECTIONS:
        raise ConfigError(f"no projection is named {projection!r} ({', '.join(PROJECTIONS)})")
    names = tuple(features.chosen(taps))
    target = user_path(to) if to is not None else _beside(features.path)
    figures_then = figures()
    with replacing(target, features) as folder:
        contents = Contents(features, Asked(names, projection, dict(overrides or {}), plugins, remote), say)
        shown = contents.survey()
        rows = contents.pictured()
        page = PageFolder(folder, beside=len(rows) > MOST_INSIDE or len(shown.rows) > MOST_INSIDE)
        page.add("figures", figures_then)
        for name, value in contents.blocks(shown):
            page.add(name, value)
        for name, value in _images(shown):
            page.add(name, value)
        say(f"pictures of {len(rows):,} images")
        pictures = _pictured(features, shown, rows, page, contents.asked)
        page.add("report", _facts(features, shown, contents, pictures))
        page.finish(
            facts=facts_of(features, contents.count),
            refused=contents.refused,
            shown={"rows": f"{contents.count:,}", "limits": _limits(shown, rows, pictures)},
        )
    return target / PAGE


def _beside(path: Path) -> Path:
    real = Path(os.path.realpath(path))
    return real.with_name(f"{real.name}.report")


def _images(shown: Shown) -> Any:
    for start in range(0, len(shown.ids), _TOGETHER):
        yield f"ids-{start // _TOGETHER}", shown.ids[start : start + _TOGETHER]
    for place, column in enumerate(shown.columns):
        yield f"column-{place}", column.block()


def _pictured(features: Features, shown: Shown, rows: Any, page: PageFolder, asked: Asked) -> Pictures:
    pictures = Pictures.of(
        len(shown.rows),
        len(rows) > MOST_INSIDE,
        lambda number, data: page.add(f"pictures-{number}", data),
        page.add_sprite,
    )
    source = {key: value for key, value in asked.overrides.items() if key.partition(".")[0] == "source"}
    drawn = thumbnails(features, rows.tolist(), overrides=source, plugins=asked.plugins, remote=asked.remote)
    numbers = shown.numbers(rows).tolist()
    pictures.take(zip(numbers, drawn, strict=True))
    return pictures


def _facts(features: Features, shown: Shown, contents: Contents, pictures: Pictures) -> dict[str, Any]:
    return {
        "path": str(features.path),
        "of": contents.count,
        "rows": packed(shown.rows.astype(np.int32)) if len(shown.rows) < contents.count else None,
        "together": _TOGETHER,
        "taps": [{"name": tap, **contents.mapped.get(tap, {"maps": 0, "why": None})} for tap in contents.taps],
        "columns": [{"name": column.name} for column in shown.columns],
        "scale": scale(),
        "pictures": pictures.facts(),
    }


def _limits(shown: Shown, rows: Any, pictures: Pictures) -> list[str]:
    """What of the output is on the page, in sentences, where it is not everything."""
    limits = []
    if len(shown.rows) < shown.of:
        limits.append(f"The page shows a seeded sample of {len(shown.rows):,} of {shown.of:,} images.")
    if len(rows) < shown.of:
        limits.append(
            f"Pictures are of {len(rows):,} of {shown.of:,} images: a seeded sample, and the first images of units."
        )
    missing = len(rows) - pictures.count
    if missing:
        limits.append(f"{missing:,} images are gone, have changed or cannot be read: they are grey tiles.")
    return limits
