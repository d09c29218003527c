"""The cost of one tap in AlexNet's forward pass, 64 images, CPU: `python tests/comparison/overhead.py [ROUNDS]`."""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torchvision.models import alexnet

import layertap

TAPS = ["classifier.5"]


CLOCKS = {"elapsed": time.perf_counter, "processor": time.process_time}


def measure(rounds: int = 31) -> dict[tuple[str, str], list[float]]:
    """Ratios of the time of each kind of forward pass to that of the plain one in the same round, by kind and clock.

    The order is drawn again for each round, so that effects between neighbours even out. Processor time is that of all
    threads.
    """
    model, x = alexnet().eval(), torch.randn(64, 3, 224, 224)

    def plain() -> None:
        model(x)

    def tapped() -> None:
        with layertap.tap(model, TAPS):
            model(x)

    closed = layertap.tap(model, TAPS)
    with closed:
        model(x)

    kinds: dict[str, Callable[[], None]] = {
        "plain": plain,
        "the plain forward again": plain,
        "inside a tap": tapped,
        "after a tap was closed": plain,
    }
    names, order = list(kinds), random.Random(0)
    ratios: dict[tuple[str, str], list[float]] = {(name, clock): [] for name in names[1:] for clock in CLOCKS}
    with torch.no_grad():
        for kind in kinds.values():
            kind()
        for _ in range(rounds):
            seconds = {}
            for name in order.sample(names, len(names)):
                started = {clock: now() for clock, now in CLOCKS.items()}
                kinds[name]()
                seconds |= {(name, clock): now() - started[clock] for clock, now in CLOCKS.items()}
            for (name, clock), found in ratios.items():
                found.append(seconds[name, clock] / seconds["plain", clock])
    return ratios


def shown(ratios: dict[tuple[str, str], list[float]]) -> list[str]:
    """A table of medians and quartiles, in percent over the plain forward pass."""
    lines = ["| forward | time | median | quartiles | pairs |", "|---|---|---|---|---|"]
    for (name, clock), found in ratios.items():
        low, middle, high = ((value - 1) * 100 for value in statistics.quantiles(found, n=4))
        lines.append(f"| {name} | {clock} | {middle:+.2f} % | {low:+.2f} % to {high:+.2f} % | {len(found)} |")
    return lines


if __name__ == "__main__":
    print("\n".join(shown(measure(*map(int, sys.argv[1:2])))))
