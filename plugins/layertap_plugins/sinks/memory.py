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
        self._shards: dict[int, layertap.Shard] = {}

    def write(self, shard: layertap.Shard) -> None:
        self._shards[shard.number] = shard

    def result(self) -> tuple[Sequence[str], Mapping[str, NDArray[np.generic]]]:
        import numpy as np

        shards = [self._shards[number] for number in sorted(self._shards)]
        ids = [record.id for shard in shards for record in shard.records]
        taps = shards[0].values if shards else ()
        return ids, {tap: np.concatenate([shard.values[tap] for shard in shards]) for tap in taps}


@layertap.hookimpl
def register_sinks(register: Callable[[str, type[layertap.Sink]], None]) -> None:
    register("memory", MemorySink)
