"""The promises of a sink without a folder, and how outputs are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from layertap.contracts import FileSink, Sink
from layertap.errors import ImageError, LayertapError, StoreError
from layertap.outputs.features import Features, open_output
from layertap.records import Column, ImageRecord, RunInfo, Shard, TapInfo
from layertap.store.filenames import stems
from layertap.testing import trial
from layertap.testing.promises import Suite, promise, same_bits

_CURE = "have abort() undo what it can, of any number of shards, and raise nothing"

Kept: TypeAlias = "tuple[Sequence[str], Mapping[str, NDArray[Any]]]"


class SinkSuite(Suite[Sink]):
    """A sink accepts every shard, including empty and repeated ones, and stores each row once, even after a failed run.

    Override `stored` for a sink that does not return its rows in the report, such as a database.
    """

    kind = Sink

    def stored(self, sink: Sink) -> Kept | None:
        """The ids that `sink` has stored and their values by tap, in any order; None for a sink that stores none."""
        return sink.result()

    def test_is_not_a_file_sink(self) -> None:
        promise(not isinstance(self.plugin(), FileSink), "it is a FileSink", "test it with FileSinkSuite")

    def test_same_shard_may_come_again(self) -> None:
        shards = [shard(0, 2), shard(1, 2), shard(2, 1)]
        sink = self._opened(shards[0])
        for number in (0, 1, 1, 2, 0):
            sink.write(shards[number])
        self._check(sink, shards, "when a shard is repeated, as it may be after a crash,")

    def test_shard_may_be_empty(self) -> None:
        shards = [shard(0, 0), shard(1, 2), shard(2, 0)]
        sink = self._opened(shards[0])
        for each in shards:
            sink.write(each)
        self._check(sink, shards, "when every image of a shard has failed,")

    def test_run_may_fail_before_its_first_shard(self) -> None:
        self._abort(self._opened(shard(0, 2)), "a run that has failed right after `open`")

    def test_rows_of_a_failed_run_are_not_stored_twice(self) -> None:
        shards = [shard(0, 2), shard(1, 2), shard(2, 1)]
        failed = self._opened(shards[0])
        for each in shards[:2]:
            failed.write(each)
        self._abort(failed, "a run that has failed after two shards")
        sink = self._opened(shards[0])
        for each in shards:
            sink.write(each)
        self._check(sink, shards, "when a run starts again after one that has failed,")

    def test_run_that_fails_says_why(self) -> None:
        sink = self.plugin()
        plugins = trial.tables(sink=type(sink))
        try:
            trial.run(plugins, trial.spec(sink), on_error="fail")
        except LayertapError as error:
            notes = getattr(error, "__notes__", [])
            promise(
                isinstance(error, ImageError) and not notes,
                f"a run that an unreadable image ends, ends with: {[str(error), *notes]}",
                _CURE,
            )

    def test_run_hands_over_every_row(self, tmp_path: Path) -> None:
        sink, built = self.plugin(), list[Sink]()
        cls = type(sink)

        class Kept(cls):  # type: ignore[misc, valid-type]
            def __init__(self, params: Any = None) -> None:
                super().__init__(params)
                built.append(self)

        plugins = trial.tables(sink=Kept)
        trial.run(plugins, trial.npy(tmp_path / "npy"))
        trial.run(plugins, trial.spec(sink))
        reference = open_output(tmp_path / "npy")
        self._compare(self.stored(built[-1]), (reference.ids, _arrays(reference)), "after a run")

    def _opened(self, like: Shard) -> Sink:
        sink = self.plugin()
        sink.open(run_info(like))
        return sink

    def _abort(self, sink: Sink, after: str) -> None:
        try:
            sink.abort(StoreError("the disk is full"))
        except Exception as error:
            promise(False, f"abort() raises {type(error).__name__}: {error}, after {after}", _CURE)

    def _check(self, sink: Sink, shards: Sequence[Shard], when: str) -> None:
        ids = [record.id for each in shards for record in each.records]
        values = {tap: np.concatenate([each.values[tap] for each in shards]) for tap in shards[0].values}
        self._compare(self.stored(sink), (ids, values), when)

    @staticmethod
    def _compare(found: Kept | None, expected: Kept, when: str) -> None:
        if found is None:
            return
        ids, values = found
        promise(
            sorted(ids) == sorted(expected[0]),
            f"{when} {len(ids)} rows are stored, but {len(expected[0])} were written",
            "store a shard under its number, or a row under its id, so that it replaces the earlier one",
        )
        order = [list(ids).index(record_id) for record_id in expected[0]]
        for tap, rows in expected[1].items():
            promise(
                tap in values and same_bits(np.asarray(values[tap])[order], rows),
                f"{when} the values of {tap!r} are not bit for bit those that were written",
                "keep every tap's dtype and the order of its rows",
            )


def shard(number: int, rows: int) -> Shard:
    """A shard of taps of several dtypes and shapes; the same one for the same arguments."""
    random = np.random.default_rng(number)
    records = [ImageRecord(f"shard {number}/{row}.jpg", b"", {"label": None}) for row in range(rows)]
    return Shard(number, records, values(random, rows))


def values(random: np.random.Generator, rows: int) -> dict[str, NDArray[Any]]:
    """Vectors, maps and single numbers with every kind of float, under names that are difficult as file names."""
    import ml_dtypes

    drawn = random.standard_normal((rows, 3, 4, 4)).astype(np.float32)
    drawn[:, 0, 0] = np.array([np.nan, np.inf, -0.0, 1e-40], np.float32)
    flat = np.ascontiguousarray(drawn.reshape(rows, 48))
    return {
        "features.0": drawn,
        "a/b: é\n": flat,
        "A/B: é\n": flat.astype(np.float16),
        "aux": flat.astype(ml_dtypes.bfloat16),
        "..": drawn.astype(ml_dtypes.bfloat16),
        "index.csv": flat[:, 0].copy(),
        "x" * 300: (flat[:, :2] > 0).astype(np.int64),
    }


def run_info(like: Shard) -> RunInfo:
    """The run to which such a shard belongs."""
    files = stems(like.values)
    columns = {
        name: Column(
            TapInfo(name, "layer", "output", None, (), array.shape[1:], array.dtype.name, ""),
            array.shape[1:],
            array.dtype.name,
            files[name],
        )
        for name, array in like.values.items()
    }
    return trial.run_info(columns=columns)


def values_of(folder: Path) -> tuple[list[str], dict[str, bytes]]:
    """The ids and the bits of every tap of an npy output."""
    features = open_output(folder)
    return features.ids, {tap: array.tobytes() for tap, array in _arrays(features).items()}


def _arrays(features: Features) -> dict[str, NDArray[Any]]:
    return {tap: features[tap][:] for tap in features.taps}
