"""The figures of the page, as one SVG that is the same for the same numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from layertap.bench.figures import Figure

_INK, _OTHER = "#1f5fa8", "#999999"


def draw(path: Path, sweep: Mapping[tuple[str, int | str], Figure], achieved: Mapping[str, Figure]) -> None:
    """Images per second by batch size and workers, and the share of the limit by tap."""
    style = {"svg.fonttype": "none", "svg.hashsalt": "layertap", "font.size": 9, "font.family": "sans-serif"}
    with matplotlib.rc_context(style):
        drawing = Drawing(figsize=(10, 3.2), layout="constrained")
        by_batch, by_workers, by_tap = drawing.subplots(1, 3, width_ratios=[1, 1, 1.3])
        for axes, key, label in ((by_batch, "batch_size", "batch size"), (by_workers, "workers", "workers")):
            _line(axes, [(int(value), rate) for (name, value), rate in sweep.items() if name == key], label)
        _bars(by_tap, achieved)
        drawing.savefig(path, format="svg", metadata={"Date": None})


def _line(axes: Axes, points: Sequence[tuple[int, Figure]], label: str) -> None:
    places = [place for place, _ in points]
    axes.plot(places, [rate.median for _, rate in points], color=_INK, marker="o")
    axes.fill_between(
        places, [rate.low for _, rate in points], [rate.high for _, rate in points], color=_INK, alpha=0.2
    )
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, [str(place) for place in places])
    axes.set_ylim(bottom=0)
    axes.set_xlabel(label)
    axes.set_ylabel("images/s")
    axes.spines[["top", "right"]].set_visible(False)


def _bars(axes: Axes, achieved: Mapping[str, Figure]) -> None:
    names = [name.replace("`", "") for name in achieved][::-1]
    found = list(achieved.values())[::-1]
    medians = [share.median for share in found]
    errors = [[share.median - share.low for share in found], [share.high - share.median for share in found]]
    axes.barh(names, medians, xerr=errors, color=_INK, ecolor=_OTHER, height=0.6)
    axes.axvline(1, color=_OTHER, linestyle="--", linewidth=1)
    axes.set_xlim(0, max(1.1, *(share.high for share in found)))
    axes.set_xlabel("achieved / limit")
    axes.spines[["top", "right"]].set_visible(False)
