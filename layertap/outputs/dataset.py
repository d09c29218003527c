"""Taps as a torch dataset."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from layertap.errors import StoreError, did_you_mean
from layertap.outputs.output import Output
from layertap.outputs.rows import Rows
from layertap.records import MetaValue


class TapDataset(Dataset[Any]):
    """The rows of one or several taps, each with a label if a metadata column is named. Made by `Features.to_torch`.

    An item is `values`, or `(values, label)`. `values` are a tensor where `taps` is a name, and a dict of one tensor
    per tap where it is a list of names. `labels` are the labels of all rows. Text becomes codes, which are positions in
    `classes`, the sorted texts; for other labels, `classes` is None. Only the labels are kept in memory.
    """

    def __init__(self, features: Output, taps: str | Sequence[str], label: str | None = None) -> None:
        self.taps = taps if isinstance(taps, str) else tuple(taps)
        self.classes: list[str] | None = None
        self.labels: list[Any] | None = None
        self._features = features
        self._names = [taps] if isinstance(taps, str) else list(taps)
        if not self._names:
            raise StoreError(f"{features.path}: to_torch needs at least one tap ({', '.join(features.taps)})")
        self._rows: dict[str, Rows] | None = {name: features[name] for name in self._names}
        self._count = len(self._rows[self._names[0]])
        self._process = os.getpid()
        if label is not None:
            self.labels = _labels(features, label)
            if features.meta[label] == "str":
                self.classes = sorted({str(value) for value in self.labels})
                codes = {text: code for code, text in enumerate(self.classes)}
                self.labels = [codes[str(value)] for value in self.labels]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        position = range(self._count)[index]
        values = {name: _tensor(np.array(rows[position])) for name, rows in self._read().items()}
        return self._item(values, position)

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """The items of a batch in one read per tap, as a `DataLoader` asks for them."""
        positions = [range(self._count)[index] for index in indices]
        read = {name: rows[positions] for name, rows in self._read().items()}
        return [
            self._item({name: _tensor(values[at]) for name, values in read.items()}, position)
            for at, position in enumerate(positions)
        ]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rows": None}

    def _read(self) -> dict[str, Rows]:
        # A file that was opened before a fork has one position for both processes: each opens its own.
        if self._rows is None or self._process != os.getpid():
            self._features.close()
            self._rows = {name: self._features[name] for name in self._names}
            self._process = os.getpid()
        return self._rows

    def _item(self, values: dict[str, Tensor], position: int) -> Any:
        found = values[self.taps] if isinstance(self.taps, str) else values
        return found if self.labels is None else (found, self.labels[position])


def _tensor(row: NDArray[Any]) -> Tensor:
    """An array of its own as a tensor of the same bits; torch knows bfloat16, numpy only by ml_dtypes."""
    if row.dtype.name == "bfloat16":
        return torch.from_numpy(np.ascontiguousarray(row).view(np.uint16).reshape(row.shape)).view(torch.bfloat16)
    return torch.from_numpy(row)


def _labels(features: Output, label: str) -> list[MetaValue]:
    if label not in features.meta:
        known = ", ".join(features.meta) or "none"
        raise StoreError(
            f"{features.path}: no metadata is named {label!r}{did_you_mean(label, features.meta)} ({known})"
        )
    labels = [row[label] for row in features.rows()]
    if missing := sum(value is None for value in labels):
        first = next(row["id"] for row in features.rows() if row[label] is None)
        raise StoreError(f"{features.path}: {missing} rows have no {label!r}, such as that of {first!r}")
    return labels
