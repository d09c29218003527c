"""How fast each sink writes and each source reads: `python -m tests.benchmark.doors` prints two tables.

A sink writes the shards of a run one by one, makes each durable, and merges the parts at the end. In the same round,
for comparison, the same bytes are written to plain files with an fsync each. A source lists its records, and gives the
bytes or pixels of all images, one after another; decoding is not included.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from layertap.bench.figures import Figure
from layertap.contracts import FileSink
from layertap.images.reading import read
from layertap.plugins import Plugins
from layertap.records import ImageRecord, Planned, Shard
from layertap.store import durable
from tests.benchmark import photographs
from tests.plugins.storing import WAYS

SHARDS, ROWS, VALUES = 8, 2048, 4096


def shards() -> list[Shard]:
    """Vectors as in a run: half of the values are zero, as after a ReLU."""
    numbers = np.random.default_rng(0)
    return [
        Shard(
            number,
            [ImageRecord(f"{number:03d}/{row:05d}.jpg", b"", {"label": f"{number:03d}"}) for row in range(ROWS)],
            {"classifier.5": np.maximum(numbers.standard_normal((ROWS, VALUES), np.float32), 0)},
        )
        for number in range(SHARDS)
    ]


def plainly(these: list[Shard], folder: Path) -> None:
    for shard in these:
        for number, values in enumerate(shard.values.values()):
            path = folder / f"{shard.number}-{number}"
            path.write_bytes(values.data)
            durable.sync(path)


def by_sink(sink: FileSink, these: list[Shard], folder: Path) -> None:
    parts = []
    for shard in these:
        part = folder / f"{shard.number:05d}"
        part.mkdir()
        sink.save(shard, part)
        durable.sync_tree(part)
        parts.append(part)
    if type(sink).merge is not FileSink.merge:
        merged = folder / "merged"
        merged.mkdir()
        sink.merge(parts, merged)
        durable.sync_tree(merged)


def seconds(what: Callable[[Path], object]) -> float:
    with tempfile.TemporaryDirectory() as place:
        started = time.perf_counter()
        what(Path(place))
        return time.perf_counter() - started


def sinks(rounds: int) -> str:
    known, these = Plugins.load(), shards()
    megabytes = sum(values.nbytes for shard in these for values in shard.values.values()) / 1e6
    lines = ["| sink | MB/s | a plain write, MB/s | share of it |", "|---|---|---|---|"]
    for registered in known:
        if registered.kind != "sink" or not issubclass(registered.cls, FileSink):
            continue
        print(registered.type_name, file=sys.stderr)
        sink = registered.cls.of(path="unused")
        sink.stems = {"classifier.5": "classifier.5"}
        ours, plain = [], []
        for _ in range(rounds):
            plain.append(megabytes / seconds(lambda folder: plainly(these, folder)))
            ours.append(megabytes / seconds(lambda folder, sink=sink: by_sink(sink, these, folder)))
        share = Figure.of([our / their for our, their in zip(ours, plain, strict=True)])
        cells = [f"{Figure.of(ours).median:.0f}", f"{Figure.of(plain).median:.0f}", f"{share.median:.2f}"]
        lines.append(f"| {registered.type_name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def sources(images: int, rounds: int) -> str:
    lines = ["| source | records/s | images/s | MB/s |", "|---|---|---|---|"]
    known = Plugins.load()
    with tempfile.TemporaryDirectory() as place:
        for name in ("a", "b"):
            root = Path(place) / "images" / name
            root.mkdir(parents=True)
            photographs.write(root, images // 2)
        paths = sorted(Path(place).rglob("*.jpg"))
        for name, way in WAYS.items():
            out = Path(place) / name
            out.mkdir()
            print(name, file=sys.stderr)
            lines.append(f"| {name.replace('_', ' ')} | {_read(way(paths, out), known, rounds)} |")
    return "\n".join(lines)


def _read(spec: Mapping[str, object], known: Plugins, rounds: int) -> str:
    listed, given, sizes = [], [], []
    registered = known.find("source", str(spec["type"]))
    for _ in range(rounds):
        source = registered.cls.of(**{key: value for key, value in spec.items() if key != "type"})
        started = time.perf_counter()
        records = list(source.records())
        listed.append(len(records) / (time.perf_counter() - started))
        started = time.perf_counter()
        size = sum(_bytes(read(Planned(record))) for record in records)
        spent = time.perf_counter() - started
        given.append(len(records) / spent)
        sizes.append(size / spent / 1e6)
    return " | ".join(f"{Figure.of(found).median:,.0f}" for found in (listed, given, sizes))


def _bytes(data: object) -> int:
    return len(data) if isinstance(data, bytes) else data.width * data.height * len(data.getbands())


def main() -> None:
    parser = argparse.ArgumentParser(description="Time each sink and each source.")
    parser.add_argument("--images", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    print(sinks(asked.rounds), sources(asked.images, asked.rounds), sep="\n\n")


if __name__ == "__main__":
    main()
