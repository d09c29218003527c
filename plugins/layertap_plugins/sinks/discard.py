"""A sink that writes nothing: for timing everything before a sink, and for runs in which only observers matter."""

from __future__ import annotations

from collections.abc import Callable

import layertap


class DiscardSink(layertap.Sink):
    """Drops every shard."""

    def write(self, shard: layertap.Shard) -> None:
        pass


@layertap.hookimpl
def register_sinks(register: Callable[[str, type[layertap.Sink]], None]) -> None:
    register("discard", DiscardSink)
