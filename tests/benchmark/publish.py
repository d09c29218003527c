"""How fast the pipeline is, and how fast it could be: `layertap bench` on a published set of models, as a page.

`python -m tests.benchmark.publish [--images N] [--rounds N]` prints the page and writes it beside this file as
README.md, with its figures. It takes half an hour, on a machine that should do nothing else.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
import tempfile
import textwrap
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from layertap.bench.benchmark import Bench, bench
from layertap.bench.changes import compared
from layertap.bench.figures import Figure
from layertap.bench.scorecard import binding
from layertap.bench.trials import Trial, folder_beside, sampled
from layertap.config.loading import load_config
from layertap.pipeline.prepare import prepared
from layertap.plugins import Plugins
from tests.benchmark import commands, doors, photographs, plots
from tests.benchmark.cases import CASES, SEVERAL, SWEEP, SWEPT

HERE = Path(__file__).resolve().parent

IMAGES = 1_000

LIBRARIES = ("torch", "torchvision", "pillow", "numpy")

HEAD = """\
# How fast, and how fast it could be

`layertap bench` on a published set of models: photographs of 500 x 375 pixels in JPEG (quality 90), batches of 64.
A script writes this page. Run it on a machine that does nothing else:

```sh
make bench
```

On a CPU the stages share the cores, so their core-seconds add up. The limit is the number of cores divided by the
core-seconds per image that reading, decoding, preparing, the model up to its last tap, and writing take, each measured
alone. It is never more than one writer can write. `achieved` is the pipeline, from the first image read to the last
commit, divided by the limit of the same round. Figures are medians, with quartiles in brackets.

Two scripts without layertap run with the same model and taps, in the same rounds (`layertap/bench/baselines.py`):

- careful: a DataLoader with one process per core, the model's own transform on each image, one forward per batch, a
  hook that copies, and arrays that are saved and made durable at the end. Its processes start before the clock does.
- tutorial: it opens all images (at most 256), stacks them, runs one forward with a hook, and saves.
"""

SEVERAL_TAPS = """\
## Several taps, one pass

The {count} layers that `features.*` of AlexNet matches, mean-pooled, from one pass, and from {count} runs with one
tap each, each of which stops at its layer. The time is from the first image read to the last commit. Loading the model
{count} times is not counted.

| method | seconds for {images} images |
|---|---|
| one pass | {one} |
| {count} runs | {many} |

One pass is {ratio} times as fast.
"""

WHOLE = """\
## Whole commands

From the shell's prompt to features on disk: start, imports, model, {images} images, files. Each command runs in a
process of its own, in turn, for {rounds} rounds. Figures are medians, with quartiles for the ratio. The scripts are
in tests/benchmark/scripts. Each peer is as it installs today (thingsvision with the torch that it pins, in an
environment of its own). `python -m tests.benchmark.commands` makes only this table.
"""

DOORS = """\
## Sinks and sources

Sinks write vectors of 4,096 float32 in shards of 2,048 rows. Each shard is made durable, and the merge at the end
counts. A plain write is files of the same bytes with an fsync each. Where a sink reaches about half of that or less,
the reason is this: npy writes each row twice, into its part and into the merged array; hdf5, zarr and lance spend the
time on their libraries' encoding and checksums, and parquet on its pages' checksums. Sources list their records, and
give bytes or pixels of 500 x 375 photographs, undecoded. `python -m tests.benchmark.doors` makes only these tables.
"""

# A batch of another size may take another algorithm.
VALUES = {"batch_size": "the same except for the last bits", "workers": "the same"}


def config(path: Path, case: Any) -> dict[str, Any]:
    return case.config(path / "images", path / "features")


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def brief(figure: Figure, digits: int = 2) -> str:
    return f"{figure.median:.{digits}f} ({figure.low:.{digits}f} to {figure.high:.{digits}f})"


def against(found: Bench, name: str) -> str:
    ratio = found.baselines[name].ratio
    return found.baselines[name].why or "" if ratio is None else brief(ratio)


def table(benches: dict[str, Bench]) -> str:
    lines = [
        row(
            "tap",
            "images/s",
            "limit",
            "achieved / limit",
            "layertap / careful",
            "layertap / tutorial",
            "memory",
            "the limit is",
        ),
        row(*["---"] * 8),
    ]
    for title, found in benches.items():
        memory = "" if found.memory.process is None else f"{found.memory.process / 1e6:.0f} MB"
        shares = brief(found.achieved), against(found, "careful"), against(found, "tutorial")
        lines.append(row(title, brief(found.line, 1), f"{found.limit:.1f}", *shares, memory, binding(found)))
    return "\n".join(lines)


def stages(benches: dict[str, Bench]) -> str:
    names = list(next(iter(benches.values())).stages)
    lines = [row("tap", *names), row(*["---"] * (len(names) + 1))]
    for title, found in benches.items():
        lines.append(row(title, *(f"{found.stages[name].cores.median * 1e3:.3f}" for name in names)))
    return "\n".join(lines)


def settings(benches: dict[str, Bench]) -> str:
    lines = [row("tap", "setting", "times as fast", "noise", "values"), row(*["---"] * 5)]
    for title, found in benches.items():
        for change in found.changes:
            values = "; ".join(
                f"differs by at most {far.relative:.2%} of the largest value; cosine at least {far.cosine:.6f}"
                for far in (change.differences or {}).values()
            )
            cells = (
                f"{change.key}={change.value}",
                brief(change.ratio),
                f"{found.noise:.0%}",
                values or VALUES[change.key],
            )
            lines.append(row(title, *cells))
    return "\n".join(lines)


def alone(asked: dict[str, Any], **options: Any) -> Bench:
    """A bench in a process of its own, whose memory no other one has used."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(bench, asked, **options).result()


def swept(path: Path, images: int, rounds: int, usual_rate: float) -> dict[tuple[str, int | str], Figure]:
    """Images per second by setting."""
    known = Plugins.load()
    loaded = load_config({**config(path, SWEPT), "limit": images, "observers": []}, None, known)
    with prepared(loaded, known) as this, folder_beside(this) as folder:
        usual = Trial(sampled(this), folder)
        settings = [(key, value) for key, values in SWEEP.items() for value in values if value <= images]
        ratios, _ = compared(usual, {(key, value): usual.changed(key, value).once for key, value in settings}, rounds)
    return {setting: Figure.of([ratio * usual_rate for ratio in found]) for setting, found in ratios.items()}


def several(path: Path, images: int, rounds: int) -> str:
    """The taps of one case in one pass, compared with one run per tap."""
    one, many, names = [], [], []
    for _ in range(rounds):
        seconds, names = seconds_and_taps(path, SEVERAL.taps, images)
        one.append(seconds)
        each = [{"layer": name, "reduce": ["mean_pool"]} for name in names]
        many.append(sum(seconds_and_taps(path, [tap], images)[0] for tap in each))
    ratio = Figure.of([theirs / ours for ours, theirs in zip(one, many, strict=True)])
    figures = {"one": brief(Figure.of(one)), "many": brief(Figure.of(many)), "ratio": brief(ratio)}
    return SEVERAL_TAPS.format(count=len(names), images=images, **figures)


def seconds_and_taps(path: Path, taps: list[Any], images: int) -> tuple[float, list[str]]:
    known = Plugins.load()
    asked = {**config(path, SEVERAL), "taps": taps, "limit": images, "observers": []}
    with prepared(load_config(asked, None, known), known) as this, folder_beside(this) as folder:
        this.forward.rehearse(this.info.batch_size)
        return Trial(this, folder).once().seconds, [column.tap.layer for column in this.info.columns.values()]


def machine() -> str:
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE)
    except OSError:
        found = None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    name = f"{found[1]}, " if found else ""
    return f"{name}{platform.machine()} {platform.system()}, {memory:.0f} GB of memory"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the published set and write the page.")
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        (path / "images").mkdir()
        photographs.write(path / "images", IMAGES)
        benches = {}
        for case in CASES:
            print(case.title, file=sys.stderr)
            count = max(1, int(asked.images * case.share))
            benches[case.title] = alone(config(path, case), images=count, rounds=asked.rounds, suggest=case.suggest)
        sweep = swept(path, asked.images, asked.rounds, benches[SWEPT.title].line.median)
        passes = several(path, asked.images, max(1, asked.rounds // 2))
        results = commands.measured(path, path / "images", asked.rounds)
    first = next(iter(benches.values()))
    known = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    measured = textwrap.fill(
        f"Measured on {machine()}, {first.cores} cores, torch with {first.threads} threads; Python "
        f"{platform.python_version()}, {known}; {asked.images} images (half as many for the ViT), "
        f"{asked.rounds} rounds.",
        118,
    )
    plots.draw(HERE / "figures.svg", sweep, {title: found.achieved for title, found in benches.items()})
    page = "\n".join(
        [
            HEAD,
            measured,
            "",
            table(benches),
            "",
            f"![Images per second by batch size and workers of {SWEPT.title}; achieved / limit by tap](figures.svg)",
            "",
            "Core-milliseconds per image, each stage alone (`gather` is layertap's own work, not part of the limit):",
            "",
            stages(benches),
            "",
            "Other settings, each run between two runs with the defaults:",
            "",
            settings(benches),
            "",
            passes,
            WHOLE.format(images=IMAGES, rounds=asked.rounds),
            commands.table(results),
            "",
            DOORS,
            doors.sinks(asked.rounds),
            "",
            doors.sources(IMAGES, asked.rounds),
            "",
        ]
    )
    (HERE / "README.md").write_text(page, "utf-8")
    print(page)


if __name__ == "__main__":
    main()
