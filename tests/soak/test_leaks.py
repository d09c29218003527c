"""Many images: neither memory nor descriptors nor threads grow with them."""

from __future__ import annotations

import os
from collections.abc import Callable
from statistics import mean

import pytest

from tests.soak.cases import Case, Place

MOST_BYTES = 1024
"""The bytes per image by which memory may grow: the noise of an allocator, but not a row, which has 6,312."""


def grown(case: Callable[[str], Case], tmp_path, photographs, count: int) -> None:
    """Run over the given number of images, each of them one of five, and compare the second quarter with the last."""
    (tmp_path / "images").mkdir()
    for number, photograph in enumerate(photographs):
        photograph.resize((48, 36)).save(tmp_path / f"{number}.jpg")
    for number in range(count):
        os.link(tmp_path / f"{number % len(photographs)}.jpg", tmp_path / f"images/{number:05d}.jpg")
    gauge = {"type": "gauge", "path": str(tmp_path / "gauge"), "every": count // 100}
    source = {"type": "folder", "path": str(tmp_path / "images")}
    place = Place(case("npy"), tmp_path, source=source, batch_size=20, shard_rows=200, observers=[gauge])
    outcome = place.run()
    assert (outcome["code"], outcome["kept"]) == (0, count), outcome
    seen = [[int(word) for word in line.split()] for line in (tmp_path / "gauge").read_text().splitlines()]
    quarter = len(seen) // 4
    second, last = seen[quarter : 2 * quarter], seen[-quarter:]
    images = mean(row[0] for row in last) - mean(row[0] for row in second)
    slope = (mean(row[1] for row in last) - mean(row[1] for row in second)) / images
    print(f"\n{count} images: memory grows by {slope:.0f} bytes per image")
    for name, column, unit in (("MiB", 1, 2**20), ("descriptors", 2, 1), ("threads", 3, 1)):
        print(f"{name:>12}: {' '.join(str(row[column] // unit) for row in seen[:: len(seen) // 20])}")
    assert slope < MOST_BYTES
    # At any moment some file may be open; files that stay open show in the minimum.
    for column in (2, 3):
        assert min(row[column] for row in last) == min(row[column] for row in second)


def test_nothing_grows_over_two_thousand_images(case, tmp_path, photographs):
    grown(case, tmp_path, photographs, 2_000)


@pytest.mark.soak
def test_nothing_grows_over_twenty_thousand_images(case, tmp_path, photographs):
    grown(case, tmp_path, photographs, 20_000)
