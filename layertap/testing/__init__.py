"""Conformance suites for plugin authors: what layertap relies on, as tests that a plugin inherits.

    # test_mine.py
    import layertap.testing
    from mine import MySource

    class TestMySource(layertap.testing.SourceSuite):
        def plugin(self):
            return MySource.of(path="tests/images")

Each test is one promise; its message says which one was broken and what to do. They need pytest, and nothing else
besides layertap. `plugin` gives a new instance every time it is called.

    SourceSuite         records: the same every time, cheap, readable on any thread
    PreprocessorSuite   one shape and dtype, on any thread, a batch as its single images
    ReducerSuite        axis 0 stays the batch, a batch as its rows, refusals as `TapError`
    SinkSuite           takes a shard twice and an empty one (a sink without a folder)
    FileSinkSuite       the same bits back from parts, merged, killed and resumed
    ModelProviderSuite  the same weights every time, facts that JSON holds
    ObserverSuite       watches a run and changes nothing
"""

from layertap.testing.file_sinks import FileSinkSuite
from layertap.testing.models import ModelProviderSuite
from layertap.testing.observers import ObserverSuite
from layertap.testing.preprocessors import PreprocessorSuite
from layertap.testing.reducers import ReducerSuite
from layertap.testing.sinks import SinkSuite
from layertap.testing.sources import SourceSuite

__all__ = [
    "FileSinkSuite",
    "ModelProviderSuite",
    "ObserverSuite",
    "PreprocessorSuite",
    "ReducerSuite",
    "SinkSuite",
    "SourceSuite",
]
