"""Other settings of a run, each tried between two runs with the configured ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from layertap.bench.figures import Figure
from layertap.bench.trials import Pass, Trial, sampled, stream
from layertap.images.batches import default_workers
from layertap.pipeline import malloc
from layertap.pipeline.forward import OutOfMemory
from layertap.pipeline.prepare import Prepared, prepared
from layertap.records import PROFILES

Setting: TypeAlias = tuple[str, int | str]
Values: TypeAlias = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Difference:
    """How far a tap's values differ from the exact ones.

    It gives the largest distance, the same as a share of the largest value, and the smallest cosine of an image's
    values.
    """

    largest: float
    relative: float
    cosine: float


@dataclass(frozen=True, slots=True)
class Change:
    """Another setting: how many times as fast it is, and how it changes the values of each tap, if at all."""

    key: str
    value: int | str
    ratio: Figure
    differences: Mapping[str, Difference] | None = None

    def gains(self, noise: float) -> bool:
        """Whether the gain is more than chance: larger than the noise, and present in three of four trials."""
        return self.ratio.low > 1 and self.ratio.median > 1 + noise


def tried(this: Prepared, folder: Path, rounds: int) -> tuple[tuple[Change, ...], float]:
    """The effect of other batch sizes, numbers of workers and the profile `fast`, and the noise: see `compared`."""
    usual = Trial(this, folder)
    others: dict[Setting, Callable[[], Pass]] = {
        (key, value): usual.changed(key, value).once for key, value in _settings(this)
    }
    differences = None
    if this.config.profile == PROFILES["exact"]:
        # One after the other, because the profile sets how the whole process rounds.
        exact = _values(this)
        with _fast(this) as fast:
            differences = _differences(exact, _values(fast))

        def once() -> Pass:
            with _fast(this) as fast:
                return Trial(fast, folder).once()

        others["profile", "fast"] = once
    ratios, noise = compared(usual, others, rounds)
    return tuple(
        Change(key, value, Figure.of(found), differences if key == "profile" else None)
        for (key, value), found in ratios.items()
    ), noise


def compared(
    usual: Trial, others: Mapping[Setting, Callable[[], Pass]], rounds: int
) -> tuple[dict[Setting, list[float]], float]:
    """How many times as fast each alternative is as the mean of the usual runs before and after it, in every round.

    It also gives the noise: how far from 1 the ratio of the usual run to itself is, in three of four pairs of
    neighbours. Alternatives that do not fit into memory are left out.
    """
    ratios: dict[Setting, list[float]] = {setting: [] for setting in others}
    usual_again, order = [], list(others)
    before = usual.once().rate
    for number in range(rounds):
        for setting in order[number % len(order) :] + order[: number % len(order)] if order else ():
            try:
                rate = others[setting]().rate
            except OutOfMemory:
                ratios.pop(setting, None)
                continue
            after = usual.once().rate
            if setting in ratios:
                ratios[setting].append(2 * rate / (before + after))
            usual_again.append(abs(after / before - 1))
            before = after
    return ratios, Figure.of(usual_again).high if usual_again else 0.0


def _settings(this: Prepared) -> Sequence[tuple[str, int]]:
    batch, cores = this.info.batch_size, default_workers()
    sizes = [size for size in (batch // 2, batch * 2) if size and size * 2 <= this.plan.count]
    counts = dict.fromkeys((max(1, cores // 2), cores, 2 * cores))
    return [
        *(("batch_size", size) for size in sizes),
        *(("workers", count) for count in counts if count != this.workers),
    ]


@contextmanager
def _fast(this: Prepared) -> Iterator[Prepared]:
    """The same run with the profile `fast`, loaded again, because the profile may set the model's memory layout."""
    update = {"profile": PROFILES["fast"], "batch_size": this.info.batch_size, "limit": this.plan.count}
    with prepared(this.config.model_copy(update=update), this.plugins) as fast:
        fast = sampled(fast)
        fast.forward.rehearse(fast.info.batch_size)
        yield fast


def _differences(exact: Mapping[str, Values], other: Mapping[str, Values]) -> dict[str, Difference]:
    """The differences by tap, for the images that both have, given their values by id."""
    found = {}
    for name in next(iter(exact.values())):
        far, scale, cosine = 0.0, 0.0, 1.0
        for image in exact.keys() & other.keys():
            a, b = (values[image][name].reshape(-1).double() for values in (exact, other))
            far, scale = max(far, _most(a - b)), max(scale, _most(a))
            cosine = min(cosine, 1.0 if torch.equal(a, b) else torch.cosine_similarity(a, b, dim=0).item())
        found[name] = Difference(far, far / scale if scale else far, cosine)
    return found


def _values(this: Prepared) -> dict[str, Values]:
    """The values of the images of the first shard, by id."""
    found: dict[str, Values] = {}
    with closing(stream(this, workers=default_workers())) as made:
        batches = itertools.islice(made, this.info.shard_rows // this.info.batch_size)
        for _, done in malloc.keeping(this.forward.activations(batches, this.info.columns)):
            for row, record in enumerate(done.records):
                found[record.id] = {name: value[row] for name, value in done.values.items()}
    return found


def _most(values: Tensor) -> float:
    return values.abs().max().item() if values.numel() else 0.0
