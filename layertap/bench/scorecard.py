"""The measurements of `bench` as text for people, at most 100 columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from layertap.bench.benchmark import Baseline, Bench
    from layertap.bench.changes import Change
    from layertap.bench.figures import Figure

_WIDTH = 100
_LABEL = 11

# Below this, other processes use so much of the machine that the figures say little about it.
_ALONE = 0.9

_BASELINES = {"careful": "a DataLoader with a hook", "tutorial": "all images in one forward pass"}


def scorecard(found: Bench) -> str:
    """The table and the conclusions from it."""
    lines = [*_head(found), "", *_stages(found), "", *_results(found), "", *_advice(found)]
    return "\n".join(lines)


def _head(found: Bench) -> Iterator[str]:
    images = f"{found.images} images" + (f" ({found.failed} of them failed)" if found.failed else "")
    yield from _entry("model", f"{found.model}, {', '.join(found.taps)}")
    yield from _entry("on", f"{found.device}, {found.cores} cores, torch with {found.threads} threads")
    yield from _entry(
        "with",
        f"{images}, batches of {found.batch_size}, {found.workers} workers; medians and quartiles of "
        f"{found.rounds} rounds",
    )


def _stages(found: Bench) -> Iterator[str]:
    busy = sum(stage.cores.median for stage in found.stages.values())
    yield f"{'stage':{_LABEL}}{'ms per image':>12}{'core-ms':>10}{'quartiles':>20}{'share':>8}"
    for name, stage in found.stages.items():
        cores = stage.cores
        quartiles = f"{cores.low * 1e3:.3f} to {cores.high * 1e3:.3f}"
        yield (
            f"{name:{_LABEL}}{stage.wall.median * 1e3:12.3f}{cores.median * 1e3:10.3f}{quartiles:>20}"
            f"{cores.median / busy if busy else 0:8.0%}"
        )


def _results(found: Bench) -> Iterator[str]:
    yield f"{'':{_LABEL}}{'images/s':>10}{'quartiles':>20}{'':3}"
    yield f"{'limit':{_LABEL}}{found.limit:10.1f}{'':23}{binding(found)}"
    yield _rate("line", found.line, f"{found.achieved.median:.2f} of the limit {_between(found.achieved)}")
    for name in sorted(found.baselines):
        baseline = found.baselines[name]
        if baseline.rate is None or baseline.ratio is None:
            yield from _entry(name, f"not measured: {baseline.why}")
        else:
            yield _rate(name, baseline.rate, f"the line is {baseline.ratio.median:.2f} times as fast")
    for name in sorted(found.baselines):
        yield from _entry("", f"{name}: {_BASELINES[name]}{_processes(found.baselines[name])}")


def _processes(baseline: Baseline) -> str:
    if baseline.started is None:
        return f", {baseline.images} images"
    return f", {baseline.workers} processes that took {baseline.started:.1f} s to start, not counted"


def _advice(found: Bench) -> Iterator[str]:
    yield from _entry(
        "start",
        f"{found.ready:.1f} s until the model is loaded and probed, {found.first_batch:.1f} s more to the first batch; "
        f"{found.closing:.1f} s from the last commit to the finished output",
    )
    memory = found.memory
    if memory.process is not None:
        device = f", and {memory.device / 1e6:.0f} MB on the device" if memory.device is not None else ""
        yield from _entry("memory", f"{memory.process / 1e6:.0f} MB at most, libraries and model included{device}")
    prepare = found.stages["prepare"]
    own = prepare.cores.median / prepare.wall.median if prepare.wall.median else 1.0
    if own < _ALONE:
        yield from _entry(
            "busy", f"other processes use this machine: one worker got {own:.0%} of a core, so figures are rough"
        )
    if found.changes:
        tried = ", ".join(f"{c.key}={c.value} {c.ratio.median:.2f} {_between(c.ratio)}" for c in found.changes)
        yield from _entry("tried", f"{tried} times as fast; noise {found.noise:.0%}")
        suggested = found.suggested
        if not suggested:
            yield from _entry("suggested", "nothing: no other setting gains more than the noise")
        for change in suggested:
            yield from _entry("suggested", f"{change.key}={change.value}: {change.ratio.median:.2f} times as fast")
        for change in found.changes:
            yield from _errors(change)


def _errors(change: Change) -> Iterator[str]:
    for name, far in (change.differences or {}).items():
        yield from _entry(
            change.value if isinstance(change.value, str) else change.key,
            f"{name}: off by at most {far.largest:.3g}, {far.relative:.2%} of the largest value; "
            f"cosine at least {far.cosine:.6f}",
        )


def binding(found: Bench) -> str:
    """The cause of the limit, in words."""
    if found.binds != "cores":
        return f"bound by {found.binds}"
    name = max(found.stages, key=lambda name: found.stages[name].cores.median)
    busy = sum(stage.cores.median for stage in found.stages.values())
    return f"bound by the cores, {name} above all ({found.stages[name].cores.median / busy:.0%})"


def _rate(label: str, rate: Figure, what: str) -> str:
    quartiles = f"{rate.low:.1f} to {rate.high:.1f}"
    return f"{label:{_LABEL}}{rate.median:10.1f}{quartiles:>20}   {what}"


def _between(figure: Figure) -> str:
    return f"({figure.low:.2f} to {figure.high:.2f})"


def _entry(label: str, what: str) -> list[str]:
    return textwrap.wrap(
        what, _WIDTH, initial_indent=f"{label:{_LABEL}}", subsequent_indent=" " * _LABEL, break_on_hyphens=False
    )
