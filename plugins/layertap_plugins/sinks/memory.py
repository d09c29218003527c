"""Activations kept in memory and handed back, for notebooks and tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import layertap

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class MemorySink(layertap.Sink):
    """Keeps every shard until `result` joins them; nothing is stored, and nothing can be resumed."""

    def __init__(self, params: Any = None) -> None:
        super().__init__(params)
        self._shards: dict[int, tuple[list[str], Mapping[str, NDArray[Any]]]] = {}

    def write(self, shard: layertap.Shard) -> None:
        # Only the ids are kept: a record may hold its whole image.
        self._shards[shard.number] = [record.id for record in shard.records], shard.values

    def result(self) -> tuple[Sequence[str], Mapping[str, NDArray[np.generic]]]:
        import numpy as np

        shards = [self._shards[number] for number in sorted(self._shards)]
        taps = shards[0][1] if shards else ()
        values = {tap: np.concatenate([arrays[tap] for _, arrays in shards]) for tap in taps}
        return [record_id for ids, _ in shards for record_id in ids], values


@layertap.hookimpl
def register_sinks(register: Callable[[str, type[layertap.Sink]], None]) -> None:
    register("memory", MemorySink)
