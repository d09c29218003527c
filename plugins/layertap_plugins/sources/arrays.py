"""Arrays in npy, npz and HDF5 files, read a row at a time. Nothing is unpickled, and no links to files are followed."""

from __future__ import annotations

import importlib
import math
import os
import struct
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

import layertap
from layertap_plugins.sources import files

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_NPY, _ZIP, _HDF5 = b"\x93NUMPY", b"PK\x03\x04", b"\x89HDF\r\n\x1a\n"
_SUFFIXES = (".h5", ".hdf5", ".hdf")

# A compressed member of an npz can only be unpacked whole.
_MOST_UNPACKED = 4 * 2**30

# Bytes of decompressed HDF5 chunks to keep: rows that share a chunk are requested nearly in order.
_CHUNK_CACHE = 64 * 2**20

_LOCAL_HEADER = struct.Struct("<26xHH")


class Array:
    """An array in a file: its rows one by one, on any thread, or all values as a list. Can be pickled."""

    shape: tuple[int, ...]
    dtype: str

    def row(self, number: int) -> NDArray[Any]:
        """One row. Raises `ImageError` if the file has changed since it was listed, and `OSError`."""
        raise NotImplementedError

    def values(self) -> list[Any]:
        """All values, flat. Raises as `row` does."""
        raise NotImplementedError


def arrays_of(path: str, stamp: str) -> dict[str, Array]:
    """The arrays in a file by name; the one array of an npy file has the name "". Raises `ConfigError`."""
    with _understood(path), os.fdopen(layertap.open_regular(path, stamp), "rb") as file:
        start = file.read(8)
        if start == _HDF5 or os.path.splitext(path)[1].lower() in _SUFFIXES:
            return _of_hdf5(path, stamp)
        file.seek(0)
        if start.startswith(_ZIP):
            return _of_npz(file, path, stamp)
        if not start.startswith(_NPY):
            raise ValueError("it is neither npy nor npz nor HDF5")
        return {"": _stored(file, 0, os.fstat(file.fileno()).st_size, path, stamp)}


class _Stored(Array):
    """An array that is stored uncompressed in a file."""

    def __init__(self, whole: files.Piece, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = shape, str(dtype)
        self._whole, self._kind = whole, dtype
        self._row = dtype.itemsize * math.prod(shape[1:])

    def row(self, number: int) -> NDArray[Any]:
        import numpy as np

        whole = self._whole
        data = files.Piece(whole.path, whole.offset + number * self._row, self._row, whole.stamp)()
        return np.frombuffer(data, self._kind).reshape(self.shape[1:])

    def values(self) -> list[Any]:
        import numpy as np

        values: list[Any] = np.frombuffer(self._whole(), self._kind).tolist()
        return values


class _Compressed(Array):
    """A compressed member of an npz, unpacked into memory when it is first asked for."""

    def __init__(self, path: str, stamp: str, member: zipfile.ZipInfo, header: _Header) -> None:
        self.shape, self.dtype = header.shape, str(header.dtype)
        self._path, self._stamp, self._member = path, stamp, member
        self._lock = threading.Lock()
        self._unpacked: NDArray[Any] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _found_again, (self._path, self._stamp, self._member.filename.removesuffix(".npy"))

    def row(self, number: int) -> NDArray[Any]:
        import numpy as np

        return np.asarray(self._all()[number])

    def values(self) -> list[Any]:
        values: list[Any] = self._all().ravel().tolist()
        return values

    def _all(self) -> NDArray[Any]:
        import numpy as np

        with self._lock:
            if self._unpacked is None:
                descriptor = layertap.open_regular(self._path, self._stamp)
                with os.fdopen(descriptor, "rb") as file, zipfile.ZipFile(file) as archive:
                    if self._member.file_size > _MOST_UNPACKED:
                        raise layertap.ImageError("file_too_large")
                    with archive.open(self._member.filename) as member:
                        self._unpacked = np.lib.format.read_array(member, allow_pickle=False)
            return self._unpacked


class _Dataset(Array):
    """A data set in an HDF5 file, which only one thread at a time may read."""

    def __init__(self, path: str, stamp: str, dataset: Any) -> None:
        self.shape, self.dtype = tuple(dataset.shape), str(dataset.dtype)
        self._path, self._stamp, self._dataset = path, stamp, dataset
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return _found_again, (self._path, self._stamp, self._dataset.name.lstrip("/"))

    def row(self, number: int) -> NDArray[Any]:
        import numpy as np

        files.refuse_changed(self._path, self._stamp)
        with self._lock:
            row = np.asarray(self._dataset[number])
        files.refuse_changed(self._path, self._stamp)
        return row

    def values(self) -> list[Any]:
        values: list[Any] = self._dataset[()].ravel().tolist()
        return values


def _found_again(path: str, stamp: str, name: str) -> Array:
    return arrays_of(path, stamp)[name]


class _Header:
    """The header of an npy file or of a member of an npz."""

    def __init__(self, file: Any) -> None:
        from numpy.lib import format

        version = format.read_magic(file)
        read = {(1, 0): format.read_array_header_1_0, (2, 0): format.read_array_header_2_0}.get(version)
        if read is None:
            raise ValueError(f"it has the npy format {version}, for arrays of records")
        try:
            self.shape, self.fortran, self.dtype = read(file)
        except Exception as error:  # numpy parses it as Python literals, and lets most errors from that through
            raise ValueError("its header is damaged") from error
        self.size = self.dtype.itemsize * math.prod(self.shape)
        self.start = file.tell()
        if min(self.shape, default=0) < 0:
            raise ValueError(f"it has the shape {self.shape}")


def _stored(file: BinaryIO, offset: int, end: int, path: str, stamp: str) -> Array:
    file.seek(offset)
    header = _Header(file)
    if header.dtype.hasobject:
        raise ValueError("it holds pickled objects, which could run code")
    if header.fortran and len(header.shape) > 1:
        raise ValueError("its images are not stored one after another; save np.ascontiguousarray(...) of it")
    if header.start + header.size > end:
        raise ValueError(f"it is cut short: it is too small for an array of shape {header.shape}")
    return _Stored(files.Piece(path, header.start, header.size, stamp), header.shape, header.dtype)


def _of_npz(file: BinaryIO, path: str, stamp: str) -> dict[str, Array]:
    """All arrays except pickled ones."""
    found: dict[str, Array] = {}
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if not member.filename.endswith(".npy"):
                continue
            with archive.open(member) as opened:
                header = _Header(opened)
            name = member.filename.removesuffix(".npy")
            if header.dtype.hasobject:
                continue
            if member.compress_type != zipfile.ZIP_STORED:
                if header.size > member.file_size:
                    raise ValueError(f"{name!r} in it is cut short")
                found[name] = _Compressed(path, stamp, member, header)
                continue
            file.seek(member.header_offset)
            start = member.header_offset + _LOCAL_HEADER.size + sum(_LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size)))
            found[name] = _stored(file, start, start + member.file_size, path, stamp)
    return found


def _of_hdf5(path: str, stamp: str) -> dict[str, Array]:
    """All data sets in the file itself, but no links to other files and no data stored in other files."""
    h5py: Any = importlib.import_module("h5py")
    file = h5py.File(path, "r", rdcc_nbytes=_CHUNK_CACHE, locking=False)
    found: dict[str, Array] = {}

    def visit(name: str, thing: Any) -> None:
        # h5py follows only hard links here.
        if isinstance(thing, h5py.Dataset) and thing.shape and not (thing.is_virtual or thing.external):
            found[name] = _Dataset(path, stamp, thing)

    file.visititems(visit)
    return found


@contextmanager
def _understood(path: str) -> Iterator[None]:
    """Turn what a damaged file makes numpy, zipfile or HDF5 raise into one `ConfigError`."""
    try:
        yield
    except (
        ValueError,
        OSError,
        EOFError,
        RuntimeError,
        NotImplementedError,
        struct.error,
        zipfile.BadZipFile,
    ) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise layertap.ConfigError(f"cannot use {path!r}: {said}", where=("path",)) from error
