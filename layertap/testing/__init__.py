"""Conformance suites for plugin authors: tests, for a plugin to inherit, of everything that layertap relies on.

    # test_mine.py
    import layertap.testing
    from mine import MySource

    class TestMySource(layertap.testing.SourceSuite):
        def plugin(self):
            return MySource.of(path="tests/images")

Each test checks one promise; its message says which promise was broken and what to do. The suites need only pytest
and layertap. `plugin` must give a new instance every time it is called.

    SourceSuite         records: the same every time, cheap, readable on any thread
    PreprocessorSuite   one shape and dtype, on any thread; a batch gives the same as its single images
    ReducerSuite        axis 0 stays the batch; a batch gives the same as its rows; refusals are `TapError`
    SinkSuite           accepts a repeated and an empty shard (a sink without a folder)
    FileSinkSuite       gives the same bits back: from parts, merged, killed and resumed
    ModelProviderSuite  the same weights every time, facts that JSON can hold
    EngineSuite         the same bytes as one process, errors in one line, nothing left behind
    ObserverSuite       watches a run and changes nothing
"""

from layertap.testing.engines import EngineSuite
from layertap.testing.file_sinks import FileSinkSuite
from layertap.testing.models import ModelProviderSuite
from layertap.testing.observers import ObserverSuite
from layertap.testing.preprocessors import PreprocessorSuite
from layertap.testing.reducers import ReducerSuite
from layertap.testing.sinks import SinkSuite
from layertap.testing.sources import SourceSuite

__all__ = [
    "EngineSuite",
    "FileSinkSuite",
    "ModelProviderSuite",
    "ObserverSuite",
    "PreprocessorSuite",
    "ReducerSuite",
    "SinkSuite",
    "SourceSuite",
]
