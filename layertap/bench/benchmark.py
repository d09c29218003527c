"""How fast a run is on the user's own images and model, how fast it could be, and what would make it faster.

Everything is measured in one process on one sample of the plan, from files that have just been read, in rounds. Each
round measures every stage alone, the line, and the two baselines, so that ratios compare neighbours in time. The line
is measured from the first image read to the last commit. Files are written only to a folder next to the output, which
is removed afterwards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from layertap.bench import changes, stages
from layertap.bench.baselines import Careful, Images, Tutorial
from layertap.bench.changes import Change
from layertap.bench.figures import Figure
from layertap.bench.peaks import Peak, peak_memory
from layertap.bench.stages import Cost, Stage
from layertap.bench.trials import Trial, folder_beside, sampled, stream
from layertap.config.loading import ConfigLike, load_config
from layertap.errors import ConfigError
from layertap.images.batches import default_workers
from layertap.pipeline.forward import OutOfMemory
from layertap.pipeline.prepare import Prepared, prepared
from layertap.plugins import Plugins
from layertap.records import ImageRecord
from layertap.timing import Stopwatch


@dataclass(frozen=True, slots=True)
class Baseline:
    """A script without layertap: images per second, and how many times as fast the line is, round by round.

    `started` is the seconds that its processes took to start, which no rate includes. `why` is the reason if it was not
    measured.
    """

    images: int
    workers: int
    rate: Figure | None = None
    ratio: Figure | None = None
    started: float | None = None
    why: str | None = None


@dataclass(frozen=True, slots=True)
class Bench:
    """The measurements.

    `ready` is the seconds until the model is loaded and probed, `first_batch` from then to the first batch, and
    `closing` from the last commit to the finished output. `stages` are in seconds per image, `limits` and `line` in
    images per second. `achieved` is the line divided by the limit of the same round.
    """

    model: str
    taps: Sequence[str]
    device: str
    cores: int
    threads: int
    images: int
    failed: int
    batch_size: int
    workers: int
    rounds: int
    ready: float
    first_batch: float
    closing: float
    stages: Mapping[str, Stage]
    limits: Mapping[str, float]
    line: Figure
    achieved: Figure
    baselines: Mapping[str, Baseline]
    memory: Peak
    changes: Sequence[Change]
    noise: float

    @property
    def binds(self) -> str:
        """The resource that the line waits for."""
        return min(self.limits, key=lambda name: self.limits[name])

    @property
    def limit(self) -> float:
        """The images per second that no line of these stages can exceed."""
        return self.limits[self.binds]

    @property
    def suggested(self) -> list[Change]:
        """The changes that gain more than the noise, best first."""
        return sorted((c for c in self.changes if c.gains(self.noise)), key=lambda c: -c.ratio.median)

    def data(self) -> dict[str, Any]:
        """Everything as plain data."""
        suggested = [{"key": change.key, "value": change.value} for change in self.suggested]
        return {**dataclasses.asdict(self), "limit": self.limit, "binds": self.binds, "suggested": suggested}


def bench(
    config: ConfigLike,
    overrides: Mapping[str, Any] | None = None,
    plugins: Sequence[str] = (),
    *,
    images: int = 256,
    rounds: int = 5,
    suggest: bool = True,
) -> Bench:
    """Measure what `run` would do with the first `images` of the plan, in whole batches if there is at least one.

    `suggest`: also try other batch sizes, numbers of workers and the profile `fast`. A sink without an output folder is
    not written to. Raises `LayertapError`.
    """
    known = Plugins.load(plugins)
    loaded = load_config(config, {**(overrides or {}), "engine": None}, known)
    few = loaded.model_copy(update={"limit": min(images, loaded.limit or images), "observers": ()})
    stopwatch = Stopwatch()
    with ExitStack() as stack:
        with stopwatch.measure("ready"):
            whole = stack.enter_context(prepared(few, known))
        this = sampled(whole)
        folder = stack.enter_context(folder_beside(this))
        good = _good(this)
        with peak_memory(this.forward.device) as peak:
            first = Trial(this, folder).once()
        found = _Rounds(this, folder)
        found.go(Images(good, this.forward.preprocessor, plugins), rounds)
        tried, noise = changes.tried(this, folder, rounds) if suggest else ((), 0.0)
        return Bench(
            model=str(this.info.about.get("name") or type(this.forward.tapped.module).__name__),
            taps=tuple(this.info.columns),
            device=this.info.device,
            cores=default_workers(),
            threads=torch.get_num_threads(),
            images=this.plan.count,
            failed=this.plan.count - len(good),
            batch_size=this.info.batch_size,
            workers=this.workers,
            rounds=rounds,
            ready=stopwatch.seconds["ready"],
            first_batch=first.first_batch,
            closing=first.closing,
            stages=stages.stages_of(found.costs),
            limits=found.limits(),
            line=Figure.of(found.rates["line"]),
            achieved=found.achieved(),
            baselines=found.baselines,
            memory=peak,
            changes=tried,
            noise=noise,
        )


def _good(this: Prepared) -> list[ImageRecord]:
    """The records with usable images. This reads their files, which are in memory from here on."""
    good = []
    for batch in stream(this, workers=default_workers()):
        good += [record for slot, record in enumerate(batch.records) if slot not in batch.failures]
    if not good:
        raise ConfigError(
            f"none of the first {this.plan.count} images can be used, so there is nothing to measure",
            where=("source",),
        )
    return good


class _Rounds:
    """Measures stages, line and baselines in turn, and holds the results round by round."""

    def __init__(self, this: Prepared, folder: Path) -> None:
        self._this = this
        self._folder = folder
        self._trial = Trial(this, folder)
        self._accelerated = this.forward.device.type != "cpu"
        self._cores = default_workers()
        self.costs: list[dict[str, Cost]] = []
        self.rates: dict[str, list[float]] = {"line": []}
        self.baselines: dict[str, Baseline] = {}

    def go(self, images: Images, rounds: int) -> None:
        """Measure. The order rotates from round to round, so that no candidate always follows the same one."""
        with self._scripts(images) as scripts:
            order = ["stages", "line", *scripts]
            for number in range(rounds):
                for name in order[number % len(order) :] + order[: number % len(order)]:
                    self._measure(name, scripts)
        for name in scripts:
            if name in self.rates:
                ratios = [ours / theirs for ours, theirs in zip(self.rates["line"], self.rates[name], strict=True)]
                rate, ratio = Figure.of(self.rates[name]), Figure.of(ratios)
                self.baselines[name] = dataclasses.replace(self.baselines[name], rate=rate, ratio=ratio)

    def limits(self) -> dict[str, float]:
        """The limits by the medians of all rounds."""
        found = stages.stages_of(self.costs)
        costs = {name: Cost(stage.wall.median, stage.cores.median) for name, stage in found.items()}
        return stages.limits_of(costs, self._cores, accelerated=self._accelerated)

    def achieved(self) -> Figure:
        """The line divided by the limit of the same round."""
        limits = [min(stages.limits_of(c, self._cores, accelerated=self._accelerated).values()) for c in self.costs]
        return Figure.of([rate / limit for rate, limit in zip(self.rates["line"], limits, strict=True)])

    def _measure(self, name: str, scripts: Mapping[str, Tutorial | Careful]) -> None:
        if name == "stages":
            with self._trial.output() as (_, info, output):
                self.costs.append(stages.measure(self._this, output if info.path is not None else None))
        elif name == "line":
            self.rates["line"].append(self._trial.once().rate)
        elif self.baselines[name].why is None:
            with TemporaryDirectory(dir=self._folder) as place:
                try:
                    seconds = scripts[name].once(Path(place))
                except OutOfMemory as error:
                    self.rates.pop(name, None)
                    self.baselines[name] = dataclasses.replace(self.baselines[name], why=str(error))
                else:
                    self.rates.setdefault(name, []).append(scripts[name].count / seconds)

    @contextmanager
    def _scripts(self, images: Images) -> Iterator[dict[str, Tutorial | Careful]]:
        tutorial = Tutorial(self._this, images)
        self.baselines["tutorial"] = Baseline(tutorial.count, tutorial.workers)
        why = images.why_not_sent()
        if why:
            self.baselines["careful"] = Baseline(len(images), self._cores, why=why)
            yield {"tutorial": tutorial}
            return
        with Careful(self._this, images, self._cores) as careful:
            self.baselines["careful"] = Baseline(careful.count, careful.workers, started=careful.started)
            yield {"tutorial": tutorial, "careful": careful}
