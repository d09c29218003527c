"""An output with conversions for other libraries: pandas, Arrow, torch, and every sink."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from layertap.contracts import FileSink
from layertap.errors import StoreError
from layertap.outputs.output import Output, readable
from layertap.plugins import Plugins, guard
from layertap.store.manifest import Manifest, read_output
from layertap.store.paths import user_path
from layertap.taps.grammar import Spec

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped]
    import pyarrow  # type: ignore[import-untyped]

    from layertap.outputs.dataset import TapDataset


class Features(Output):
    """An output folder: `features["classifier.5"]` are its rows, in the order of `ids`.

    `taps` are the names, `manifest` is everything known about the run. An unfinished output shows what is committed.
    Files are opened when they are read; `close`, or the end of a `with` block, closes them.
    """

    def __init__(self, path: Path, manifest: Manifest, sink: FileSink, plugins: Sequence[str] = ()) -> None:
        super().__init__(path, manifest, sink)
        self._plugins = tuple(plugins)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).opened, (self.path, self._plugins)

    @classmethod
    def opened(cls, path: str | os.PathLike[str], plugins: Sequence[str] = ()) -> Self:
        """Those in the output folder at `path`. Raises `StoreError`."""
        folder = user_path(path)
        manifest = read_output(folder)
        known = Plugins.load(plugins)
        with readable(folder):  # a pydantic fault is a ValueError
            spec = Spec.model_validate(manifest.config.get("sink"))
            registered = known.find("sink", spec.type)
            params = registered.cls.Params.model_validate(spec.params)
        with guard(registered.cls):
            sink = registered.cls(params)
        if not isinstance(sink, FileSink):
            raise StoreError(f"{folder}: the sink {spec.type!r} keeps no files to open")
        return cls(folder, manifest, sink, plugins)

    def to_pandas(self, taps: str | Sequence[str] | None = None) -> pandas.DataFrame:
        """All rows as a DataFrame: `row`, `id`, the metadata, and one column per tap, in memory. Needs extra `pandas`.

        A cell of a tap is an array of its shape and dtype, or the number itself where the shape is `()`;
        `np.stack(frame["classifier.5"])` makes one array of a column again. Metadata has
        pandas' nullable types, so that None is `<NA>` and an int stays one. `taps` are all of them by default; one that
        is named as a column of metadata gets `_` after its name.
        """
        from layertap.outputs.tables import frame

        return frame(self, self.chosen(taps))

    def to_arrow(self, taps: str | Sequence[str] | None = None) -> pyarrow.Table:
        """All rows as a table: `row`, `id`, the metadata, and one column per tap, in memory; needs the extra `parquet`.

        A vector is a fixed-size list, a map a fixed-shape tensor, a single number itself. Arrow has no bfloat16: it
        becomes float32, which holds each of its values exactly.
        """
        from layertap.outputs.tables import table

        return table(self, self.chosen(taps))

    def to_torch(self, taps: str | Sequence[str], label: str | None = None) -> TapDataset:
        """Taps as a map-style `torch.utils.data.Dataset` that reads when it is asked, for a `DataLoader`.

        Its items are `values`, or `(values, label)` where `label` names a metadata column: `values` are a tensor for
        one tap's name, and a dict of one tensor per tap for a list of names. Text becomes codes, the positions in its
        sorted `classes`. It can be pickled. Raises `StoreError` for an unknown tap, or a row without a label.
        """
        from layertap.outputs.dataset import TapDataset

        return TapDataset(self, taps, label)

    def export(self, type: str, path: str | os.PathLike[str], taps: str | Sequence[str] | None = None) -> Path:
        """Write these rows into the new folder `path` by the sink `type`, or in another library's layout; the path.

        By a sink it is a whole output again, which `open` and `verify` take: the same values to the bit, written shard
        by shard in bounded memory. `thingsvision` (one tap: `features.npy` and `file_names.txt`) and `clip_retrieval`
        (one tap of vectors: `img_emb/` and `metadata/`, not normalised) are for other programs. `path` exists only
        when it is complete; the same call resumes an interrupted export. Raises `StoreError`: this output is
        unfinished or damaged, `path` holds something (6), another export is writing there (5).
        """
        from layertap.outputs.export import export

        return export(self, type, user_path(path), self.chosen(taps), Plugins.load(self._plugins))


def open_output(path: str | os.PathLike[str], *, plugins: Sequence[str] = ()) -> Features:
    """The features in an output folder, without the ways to look at them that `layertap.open` adds."""
    return Features.opened(path, plugins)
