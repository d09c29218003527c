"""The layouts of other libraries: what their own programs write, and read back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from layertap.errors import ConfigError
from layertap.outputs.output import Output
from layertap.outputs.tables import array, kinds, needing
from layertap.records import INDEX_COLUMNS, Shard
from layertap.store.dtypes import numpy_dtype, widened
from layertap.store.manifest import TapFacts

_NAMES, _FEATURES = "file_names.txt", "features.npy"
_EMBEDDINGS, _METADATA = "img_emb/img_emb_0.npy", "metadata/metadata_0.parquet"
_PATH = "image_path"


@dataclass(frozen=True, slots=True)
class Layout:
    """One library's layout: the `files` it writes, what it cannot hold, and how it is written."""

    files: tuple[str, ...]
    check: Callable[[Output, str], None]
    """Raises `ConfigError` for a tap that it cannot hold, before anything is written."""
    write: Callable[[Output, str, Iterable[Shard], Path], None]


def _check_names(features: Output, tap: str) -> None:
    for row in features.rows():
        if row["id"].splitlines() != [row["id"]]:
            raise ConfigError(f"thingsvision keeps one name per line, but the id {row['id']!r} holds a line break")


def _write_thingsvision(features: Output, tap: str, shards: Iterable[Shard], folder: Path) -> None:
    facts = features.facts(tap)
    with open(folder / _FEATURES, "wb") as file, open(folder / _NAMES, "w", encoding="utf-8", newline="\n") as names:
        _write_header(file, len(features[tap]), facts)
        for shard in shards:
            _write_rows(file, shard.values[tap])
            names.writelines(f"{record.id}\n" for record in shard.records)


def _check_vectors(features: Output, tap: str) -> None:
    facts = features.facts(tap)
    if len(facts.shape) != 1:
        raise ConfigError(
            f"clip_retrieval holds vectors, but {tap!r} has the shape {tuple(facts.shape)} per image; extract it with "
            "a reducer such as mean_pool"
        )
    if facts.dtype not in ("float16", "float32", "bfloat16"):
        raise ConfigError(f"clip_retrieval holds float16 or float32, but {tap!r} is {facts.dtype}")
    with needing("pyarrow", "parquet"):
        import pyarrow.parquet  # type: ignore[import-untyped]  # noqa: F401


def _write_clip_retrieval(features: Output, tap: str, shards: Iterable[Shard], folder: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    # As in clip-retrieval itself, the image's name takes precedence over metadata of that name.
    columns = {name: kind for name, kind in kinds(features).items() if name not in (*INDEX_COLUMNS, _PATH)}
    empty = {_PATH: array([], "str"), **{name: array([], kind, nested=False) for name, kind in columns.items()}}
    embeddings, metadata = folder / _EMBEDDINGS, folder / _METADATA
    for file in (embeddings, metadata):
        file.parent.mkdir()
    with open(embeddings, "wb") as vectors, parquet.ParquetWriter(metadata, pyarrow.table(empty).schema) as writer:
        _write_header(vectors, len(features[tap]), features.facts(tap))
        for shard in shards:
            _write_rows(vectors, shard.values[tap])
            writer.write_table(pyarrow.table(_metadata(shard, columns)))


def _metadata(shard: Shard, columns: Mapping[str, str]) -> dict[str, Any]:
    found = {_PATH: array([record.id for record in shard.records], "str")}
    for name, kind in columns.items():
        found[name] = array([record.meta[name] for record in shard.records], kind, nested=False)
    return found


def _write_header(file: BinaryIO, rows: int, facts: TapFacts) -> None:
    """The head of a `.npy` file, so that its rows can follow a piece at a time."""
    from numpy.lib import format

    described = format.dtype_to_descr(widened(numpy_dtype(facts.dtype)))
    format.write_array_header_1_0(file, {"descr": described, "fortran_order": False, "shape": (rows, *facts.shape)})


def _write_rows(file: BinaryIO, values: NDArray[Any]) -> None:
    rows = np.ascontiguousarray(values, widened(values.dtype))
    file.write(rows.reshape(-1).view(np.uint8).data)


LAYOUTS: Mapping[str, Layout] = {
    "thingsvision": Layout((_FEATURES, _NAMES), _check_names, _write_thingsvision),
    "clip_retrieval": Layout((_EMBEDDINGS, _METADATA), _check_vectors, _write_clip_retrieval),
}
