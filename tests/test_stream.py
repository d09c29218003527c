"""Records -> batches: in order, bounded, and every slot its own."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import layertap
from layertap.records import Planned
from layertap.stream import Slot, batches


class Shade(layertap.Preprocessor):
    """One number an image: how bright it is. Slow for some, so that threads finish out of order."""

    def prepare(self, image: Image.Image) -> torch.Tensor:
        value = image.getpixel((0, 0))
        shade = value if isinstance(value, int) else value[0]
        time.sleep(0.001 * (shade % 3))
        if shade == 13:
            raise layertap.ImageError("too_small")
        if shade == 14:
            raise ValueError("a stranger's bug at an odd image")
        return torch.full((2,) if shade != 15 else (3,), shade, dtype=torch.uint8)


def record(shade: int) -> Planned:
    return Planned(layertap.ImageRecord(str(shade), Image.new("L", (2, 2), shade)))


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 30), size=st.integers(1, 9), workers=st.integers(1, 5))
def test_batch_i_is_the_same_records_whatever_fails_and_whoever_works(count, size, workers):
    records = [record(shade) for shade in range(count)]
    preprocessor = Shade()
    found = list(batches(records, preprocessor, Slot((2,), torch.uint8), batch_size=size, workers=workers))
    assert [r.id for batch in found for r in batch.records] == [str(shade) for shade in range(count)]
    assert all(len(batch.records) == size for batch in found[:-1])
    pixels = torch.cat([batch.pixels for batch in found])
    for shade in range(count):
        assert pixels[shade].tolist() == [0 if shade in (13, 14, 15) else shade] * 2
    failures = {f.record.id: (f.stage, f.reason) for batch in found for f in batch.failures.values()}
    expected = {"13": ("prepare", "too_small"), "14": ("prepare", "error"), "15": ("prepare", "shape")}
    assert failures == {name: what for name, what in expected.items() if int(name) < count}


def test_records_are_read_no_further_than_three_batches_ahead():
    pulled = 0

    def records():
        nonlocal pulled
        for pulled in range(1, 101):
            yield record(pulled)

    stream = batches(records(), Shade(), Slot((2,), torch.uint8), batch_size=4, workers=2)
    for consumed in range(1, 6):
        next(stream)
        assert pulled <= 4 * (consumed + 2)
    stream.close()


def test_closing_the_stream_ends_its_threads():
    stream = batches((record(s) for s in range(200)), Shade(), Slot((2,), torch.uint8), batch_size=4, workers=3)
    next(stream)
    stream.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("layertap-decode")]


def test_source_that_raises_ends_the_stream_with_its_error():
    def records():
        yield from (record(shade) for shade in range(6))
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        list(batches(records(), Shade(), Slot((2,), torch.uint8), batch_size=2, workers=2))
    assert not [t for t in threading.enumerate() if t.name.startswith("layertap-decode")]


def test_pillow_told_to_fill_up_cut_images_is_refused(monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(layertap.ConfigError, match="LOAD_TRUNCATED_IMAGES"):
        Slot.of(Shade())


def test_preprocessor_that_gives_no_tensor_is_told_before_the_run():
    class Wrong(layertap.Preprocessor):
        def prepare(self, image: Image.Image):
            return "pixels"

    with pytest.raises(layertap.PluginError, match="prepares a str"):
        Slot.of(Wrong())
