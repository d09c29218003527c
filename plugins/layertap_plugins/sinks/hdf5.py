"""One HDF5 file with a dataset per tap and a dataset of the ids."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import layertap
from layertap_plugins.sinks.rows import Joined, StoredRows, is_bfloat16, member, readable, rows_in_block

if TYPE_CHECKING:
    import h5py  # type: ignore[import-untyped]
    import numpy as np
    from numpy.typing import NDArray

_FILE = "features.h5"
_IDS = "id"
_PIECE = 16 * 2**20
"""The number of bytes that a merge holds in memory."""


class Hdf5Sink(layertap.FileSink):
    """Writes `features.h5`: each tap in chunks of about 1 MiB with checksums, bfloat16 as its bits in uint16.

    A dataset has the name of its tap as a file name, and the tap's name and dtype as attributes; `id` is
    variable-length UTF-8, in which a NUL becomes `%00`. The bytes depend only on the rows.
    """

    extra: ClassVar[str | None] = "hdf5"

    def __init__(self, params: Any = None) -> None:
        super().__init__(params)
        # If it is missing, the run must not begin.
        import h5py  # noqa: F401

    def save(self, shard: layertap.Shard, folder: Path) -> None:
        import numpy as np

        with _created(folder / _FILE) as (file, checked):
            # HDF5 ends a text at its first NUL.
            ids = [record.id.replace("\0", "%00") for record in shard.records]
            self._fill(file, _IDS, np.array(ids, dtype=object), checked)
            for tap, values in shard.values.items():
                stored = values.view(np.uint16) if is_bfloat16(values.dtype) else values
                self._fill(file, tap, stored, checked, {"tap": tap, "dtype": values.dtype.name})

    def load(self, folder: Path, tap: str) -> StoredRows:
        return _Dataset.of(folder / _FILE, member(self.stems[tap]))

    def merge(self, parts: Sequence[Path], folder: Path) -> None:
        files = [part / _FILE for part in parts]
        with _created(folder / _FILE) as (file, checked):
            self._fill(file, _IDS, Joined(folder, [_Ids.of(part) for part in files]), checked)
            for tap in self.stems:
                pieces = [_Dataset.of(part, member(self.stems[tap])) for part in files]
                self._fill(file, tap, Joined(folder, pieces), checked, pieces[0].about)

    def _fill(
        self,
        file: h5py.File,
        tap: str,
        rows: StoredRows | NDArray[Any],
        checked: Callable[[], None],
        about: Mapping[str, str] | None = None,
    ) -> None:
        """Make a dataset of rows, a few chunks at a time, so that each is written once and in its order."""
        import h5py

        name, dtype = (member(self.stems[tap]), rows.dtype) if about else (_IDS, h5py.string_dtype("utf-8"))
        # HDF5 does not allow chunks of size 0.
        chunk = min(rows_in_block(rows.shape[1:], dtype), rows.shape[0]) if 0 not in rows.shape else None
        chunks = (chunk, *rows.shape[1:]) if chunk else None
        checksums = bool(chunk and about)  # only for numbers: text is stored elsewhere in the file
        dataset = file.create_dataset(name, rows.shape, dtype, chunks=chunks, fletcher32=checksums, track_times=False)
        for key, text in (about or {}).items():
            # Of a fixed length, so that a checksum covers it: the library hangs on some damaged text without one.
            dataset.attrs.create(key, text.encode(), dtype=h5py.string_dtype("utf-8", len(text.encode())))
        if chunk:
            step = chunk * max(1, rows_in_block(rows.shape[1:], dtype, _PIECE) // chunk)
            for start in range(0, rows.shape[0], step):
                dataset[start : start + step] = rows[start : start + step]
                checked()


class _Stored(StoredRows):
    """A dataset in a file that is open only during a read."""

    about: Mapping[str, str]

    def __init__(self, path: Path, name: str, dataset: h5py.Dataset, dtype: np.dtype[Any]) -> None:
        super().__init__(path, dataset.shape, dtype, block=dataset.chunks[0] if dataset.chunks else None)
        self._name = name
        self.about = {key: value.decode() for key, value in dataset.attrs.items()}


class _Dataset(_Stored):
    """The dataset of a tap."""

    @classmethod
    def of(cls, path: Path, name: str) -> _Dataset:
        with readable(path), _opened(path, name) as dataset:
            if dataset.dtype.kind not in "biufc":
                raise ValueError(f"{name!r} does not hold numbers")
            return cls(path, name, dataset, dataset.dtype)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        with _opened(self.path, self._name) as dataset:
            values: NDArray[Any] = dataset[start:stop]
        return values


class _Ids(_Stored):
    """The dataset of the ids."""

    @classmethod
    def of(cls, path: Path) -> _Ids:
        import numpy as np

        with readable(path), _opened(path, _IDS) as dataset:
            return cls(path, _IDS, dataset, np.dtype(object))

    def read(self, start: int, stop: int) -> NDArray[Any]:
        with _opened(self.path, self._name) as dataset:
            values: NDArray[Any] = dataset.asstr()[start:stop]
        return values


class _DeferredErrors(io.FileIO):
    """A file that holds errors back until `check`: the library would crash later if it saw one, such as a full disk."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        written = 0
        try:
            while self.error is None and written < len(view):
                written += super().write(view[written:])
        except OSError as error:
            self.error = error
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0

    def check(self) -> None:
        """Raise the first error so far."""
        if self.error is not None:
            raise self.error


@contextmanager
def _created(path: Path) -> Iterator[tuple[h5py.File, Callable[[], None]]]:
    """A new file, and a function that raises any `OSError` of the disk so far. The metadata have checksums too."""
    import h5py

    with _DeferredErrors(path, "w+") as raw:
        try:
            with h5py.File(raw, "w", libver=("v110", "v110")) as file:
                yield file, raw.check
        finally:
            raw.check()


@contextmanager
def _opened(path: Path, name: str) -> Iterator[h5py.Dataset]:
    """A dataset that is stored in this very file. Raises `ValueError` for one that refers to another file."""
    import h5py

    with h5py.File(path, "r", locking=False) as file:
        link = file.get(name, getlink=True)
        dataset = file[name] if isinstance(link, h5py.HardLink) else None
        if not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.external:
            raise ValueError(f"{name!r} is not a dataset of this file")
        yield dataset


@layertap.hookimpl
def register_sinks(register: Callable[[str, type[layertap.Sink]], None]) -> None:
    register("hdf5", Hdf5Sink)
