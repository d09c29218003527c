"""The promises of a sink with a folder."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from layertap.contracts import FileSink
from layertap.errors import LayertapError
from layertap.outputs.features import Features, open_output
from layertap.outputs.rows import Rows
from layertap.plugins import Plugins
from layertap.records import Shard
from layertap.store.commits import COMMITS, PARTS
from layertap.store.filenames import stems
from layertap.store.listings import FAILURES, INDEX
from layertap.store.manifest import MANIFEST, read_output
from layertap.testing import killed, trial
from layertap.testing.promises import Suite, promise, same_bits
from layertap.testing.sinks import run_info, shard

if TYPE_CHECKING:
    import pytest

# Names that already exist in an output folder, into which the merged files go.
_TAKEN = {MANIFEST, INDEX, FAILURES, PARTS, COMMITS}

_CURE = (
    "preserve every dtype (bfloat16 as its bits), and store nothing on self between shards: a resumed run uses a new "
    "instance"
)


class FileSinkSuite(Suite[FileSink]):
    """A file sink gives back exactly the bits it received: from a part, from the merged parts, and after a crash.

    `plugin` may use any path: the suite chooses its own. Set `deterministic` to False for a format in which files
    differ from run to run although their values are equal.
    """

    kind = FileSink
    deterministic: ClassVar[bool] = True

    def sink(self, path: Path) -> FileSink:
        """A new instance that writes to `path`, for the taps of this suite's shards."""
        plugin = self.plugin()
        sink = type(plugin)(plugin.params.model_copy(update={"path": str(path)}))
        sink.stems = stems(shard(0, 0).values)
        sink.open(run_info(shard(0, 0)))
        return sink

    def test_part_gives_back_what_was_saved(self, tmp_path: Path) -> None:
        given = shard(0, 3)
        part = self._saved(tmp_path, given)
        self._check(part, [given], "a part that was saved")

    def test_rows_can_be_read_singly_and_in_slices(self, tmp_path: Path) -> None:
        given = shard(0, 5)
        part = self._saved(tmp_path, given)
        for tap, expected in given.values.items():
            rows = self._rows(part, tap, given)
            for key in (0, -1, slice(1, 3), slice(0, 5, 2), [4, 0, 0]):
                promise(
                    same_bits(np.asarray(rows[key]), expected[key]),
                    f"rows {key} of {tap!r} are not the ones that were saved",
                    "return an object from load() that indexes like a numpy array: an array, a memory map, a dataset",
                )

    def test_part_without_rows(self, tmp_path: Path) -> None:
        given = shard(0, 0)
        self._check(self._saved(tmp_path, given), [given], "a part without rows (all its images failed)")

    def test_parts_merge_to_all_rows_in_order(self, tmp_path: Path) -> None:
        if not self._merges():
            return
        given = [shard(0, 2), shard(1, 0), shard(2, 3), shard(3, 1)]
        parts = [self._saved(tmp_path, each) for each in given]
        before = [_bytes(part) for part in parts]
        merged = self._merged(tmp_path, parts)
        self._check(merged, given, "the merged output")
        promise([_bytes(part) for part in parts] == before, "merge() changes the parts", "only read them")
        for name in sorted(_bytes(merged)):
            promise(
                name.split("/")[0].lower() not in _TAKEN,
                f"merge() writes {name!r}, a name that an output folder already uses",
                "name files after self.stems, or put them into a folder such as rows/",
            )

    def test_parts_that_are_all_empty_merge(self, tmp_path: Path) -> None:
        if self._merges():
            given = [shard(0, 0), shard(1, 0)]
            merged = self._merged(tmp_path, [self._saved(tmp_path, each) for each in given])
            self._check(merged, given, "the merged output of parts without rows")

    def test_same_shard_gives_the_same_files_again(self, tmp_path: Path) -> None:
        one = self._saved(tmp_path / "one", shard(1, 3))
        sink = self.sink(tmp_path / "other" / "out")
        other = _folder(tmp_path / "other")
        sink.save(shard(0, 2), _folder(tmp_path / "before"))
        sink.save(shard(1, 3), other)
        self._check(other, [shard(1, 3)], "a shard that was saved after another")
        promise(
            not self.deterministic or _bytes(one) == _bytes(other),
            "saving the same shard again gives different bytes",
            "do not write times, random names or data of earlier shards; set `deterministic = False` on the test if "
            "the format requires them",
        )

    def test_writes_into_its_folder_and_nowhere_else(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        elsewhere, out = _folder(tmp_path / "elsewhere"), tmp_path / "out"
        monkeypatch.chdir(elsewhere)
        monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
        part = _folder(tmp_path / "part")
        sink = self.sink(out)
        sink.save(shard(0, 2), part)
        promise(_bytes(part), "save() writes nothing into its folder", "write into `folder`, not to self.params.path")
        if self._merges():
            sink.merge([part], _folder(tmp_path / "merged"))
        stray = [path.name for path in (*tmp_path.iterdir(), *elsewhere.iterdir())]
        stray = [name for name in stray if name not in {"elsewhere", "part", "merged"}]
        promise(
            not stray,
            f"save() or merge() leaves {stray} outside the given folder",
            "write only into `folder`: the core makes its contents durable, and nothing else",
        )
        odd = [path for path in part.rglob("*") if path.is_symlink() or not (path.is_file() or path.is_dir())]
        promise(not odd, f"it writes {odd[:1]}, which is not a regular file", "write files and folders, not links")

    def test_killed_and_resumed_is_as_never_stopped(self, tmp_path: Path) -> None:
        plugin = self.plugin()
        plugins = trial.tables(sink=type(plugin))
        whole, cut, npy = tmp_path / "whole", tmp_path / "cut", tmp_path / "npy"
        trial.run(plugins, trial.npy(npy))
        for folder, which in ((whole, "an uninterrupted run"), (cut, "a killed and resumed run")):
            if folder is cut:
                said = killed.run_until_killed(plugin, cut)
                promise(
                    said is None, f"a run that should be killed and resumed fails earlier: {said}", "see the message"
                )
            self._run_into(folder, plugins, which)
            self._compare(folder, open_output(npy), which)
        promise(
            not self.deterministic or _bytes(whole, _TAKEN) == _bytes(cut, _TAKEN),
            "a killed and resumed run leaves different bytes from an uninterrupted one",
            "do not write times or random names; set `deterministic = False` on the test if the format requires them",
        )

    def _run_into(self, path: Path, plugins: Plugins, which: str) -> None:
        try:
            trial.run(plugins, trial.spec(self.plugin(), path=str(path)))
        except LayertapError as error:
            promise(False, f"{which} does not finish: {error}", _CURE)

    def _compare(self, folder: Path, reference: Features, whose: str) -> None:
        features = Features(folder, read_output(folder), self.plugin())
        promise(
            (features.index, features.failures) == (reference.index, reference.failures),
            f"{whose} has a different index from the npy sink's",
            "leave index.csv and failures.csv to the core",
        )
        for tap in reference.taps:
            try:
                found: NDArray[Any] | Exception = features[tap][:]
            except LayertapError as error:
                found = error
            promise(
                not isinstance(found, Exception) and same_bits(found, reference[tap][:]),
                f"{tap!r} of {whose} is not bit for bit what the npy sink stores: {_seen(found)}",
                _CURE,
            )

    def _merges(self) -> bool:
        return type(self.plugin()).merge is not FileSink.merge

    def _saved(self, where: Path, given: Shard) -> Path:
        part = _folder(where / f"part {given.number}")
        self.sink(where / "out").save(given, part)
        return part

    def _merged(self, where: Path, parts: Sequence[Path]) -> Path:
        folder = _folder(where / "merged")
        # A new instance, as in a run that was stopped between saving and merging.
        self.sink(where / "out").merge(parts, folder)
        return folder

    def _rows(self, folder: Path, tap: str, like: Shard) -> Rows:
        loaded = self.sink(folder.parent / "out").load(folder, tap)
        for need in ("shape", "dtype", "__getitem__", "__array__"):
            promise(
                hasattr(loaded, need),
                f"the result of load() has no {need}",
                "return an array, or an object that acts like one",
            )
        return Rows([loaded], like.values[tap].shape[1:], like.values[tap].dtype)

    def _check(self, folder: Path, given: Sequence[Shard], what: str) -> None:
        for tap in given[0].values:
            expected = np.concatenate([each.values[tap] for each in given])
            try:
                found: NDArray[Any] | Exception = np.asarray(self._rows(folder, tap, given[0])[:])
            except Exception as error:
                found = error
            promise(
                not isinstance(found, Exception) and same_bits(found, expected),
                f"{what} does not give back the {expected.dtype} values {expected.shape} of {tap!r}: {_seen(found)}",
                "name files by self.stems[tap], keep dtype and shape (bfloat16 as its bits in uint16) and all rows in "
                "order, including when there are none",
            )


def _folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def _bytes(folder: Path, besides: set[str] = frozenset()) -> dict[str, bytes]:  # type: ignore[assignment]
    """The bytes of every file below a folder, by path."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name not in besides}


def _seen(found: object) -> str:
    if isinstance(found, Exception):
        return f"{type(found).__name__}: {found}"
    return f"{getattr(found, 'dtype', '')} {getattr(found, 'shape', '')}, or different values"
