"""Records -> batches: in order, bounded, every slot its own, and no image worth more than its time."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import layertap
from layertap.images.batches import Decoding, Slot, batches
from layertap.records import Planned
from layertap.timing import Stopwatch

SLOT = Slot((2,), torch.uint8)


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


class Stuck(Shade):
    """Hangs at every image of the shades 100 and more until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.stuck = threading.Semaphore(0)
        self.threads: list[threading.Thread] = []

    def prepare(self, image: Image.Image) -> torch.Tensor:
        prepared = super().prepare(image)
        if prepared[0] >= 100:
            self.threads.append(threading.current_thread())
            self.stuck.release()
            assert self.go.wait(60)
        return prepared


class StuckImage(Image.Image):
    """Hangs while it is loaded, until it is let go."""

    go = threading.Event()

    def load(self) -> None:
        assert self.go.wait(60)


@pytest.fixture
def stuck():
    stuck = Stuck()
    yield stuck
    stuck.go.set()
    for thread in stuck.threads:
        thread.join(60)


def record(shade: int) -> Planned:
    return Planned(layertap.ImageRecord(str(shade), Image.new("L", (2, 2), shade)))


def failures(*found: layertap.Batch) -> dict[str, tuple[str, str]]:
    return {f.record.id: (f.stage, f.reason) for batch in found for f in batch.failures.values()}


def threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("layertap-decode")]


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 30), size=st.integers(1, 9), workers=st.integers(1, 5))
def test_batch_i_is_the_same_records_whatever_fails_and_whoever_works(count, size, workers):
    records = [record(shade) for shade in range(count)]
    found = list(batches(records, Shade(), SLOT, batch_size=size, workers=workers))
    assert [r.id for batch in found for r in batch.records] == [str(shade) for shade in range(count)]
    assert all(len(batch.records) == size for batch in found[:-1])
    pixels = torch.cat([batch.pixels for batch in found])
    for shade in range(count):
        assert pixels[shade].tolist() == [0 if shade in (13, 14, 15) else shade] * 2
    expected = {"13": ("prepare", "too_small"), "14": ("prepare", "error"), "15": ("prepare", "shape")}
    assert failures(*found) == {name: what for name, what in expected.items() if int(name) < count}


def test_records_are_read_no_further_than_three_batches_ahead():
    pulled = 0

    def records():
        nonlocal pulled
        for pulled in range(1, 101):
            yield record(pulled)

    stream = batches(records(), Shade(), SLOT, batch_size=4, workers=2)
    for consumed in range(1, 6):
        next(stream)
        assert pulled <= 4 * (consumed + 2)
    stream.close()


def test_closing_the_stream_ends_its_threads():
    stream = batches((record(s) for s in range(200)), Shade(), SLOT, batch_size=4, workers=3)
    next(stream)
    stream.close()
    assert threads() == []


def test_source_that_raises_ends_the_stream_with_its_error():
    def records():
        yield from (record(shade) for shade in range(6))
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        list(batches(records(), Shade(), SLOT, batch_size=2, workers=2))
    assert threads() == []


@pytest.mark.parametrize("fault", [SystemExit, KeyboardInterrupt])
def test_what_is_no_failure_of_an_image_ends_the_stream(fault):
    class Leaving(Shade):
        def prepare(self, image: Image.Image) -> torch.Tensor:
            if image.getpixel((0, 0)) == 5:
                raise fault("a preprocessor's own idea")
            return super().prepare(image)

    with pytest.raises(fault, match="own idea"):
        list(batches([record(shade) for shade in range(9)], Leaving(), SLOT, batch_size=2, workers=2))
    assert threads() == []


@pytest.mark.parametrize("workers", [1, 3])
def test_late_image_fails_alone_and_its_thread_is_left_behind(stuck, workers):
    shades = [1, 100, 2, 3, 101, 102, 4, 5]
    how = Decoding(timeout=0.2)
    found = list(batches(map(record, shades), stuck, SLOT, batch_size=3, workers=workers, decoding=how))
    expected = [[0 if shade >= 100 else shade] * 2 for shade in shades]
    late = {str(shade): ("prepare", "timeout") for shade in (100, 101, 102)}
    assert (torch.cat([batch.pixels for batch in found]).tolist(), failures(*found)) == (expected, late)
    stuck.go.set()
    for thread in stuck.threads:
        thread.join(60)
    # What they came back with has gone nowhere.
    assert (torch.cat([batch.pixels for batch in found]).tolist(), failures(*found)) == (expected, late)
    assert threads() == []


def test_late_image_that_comes_back_while_its_batch_is_filled_is_not_written(stuck):
    entered = threading.Event()

    def read_late() -> Image.Image:
        entered.set()
        assert stuck.go.wait(60)
        stuck.threads[0].join(60)
        return Image.new("L", (2, 2), 2)

    records = [record(100), Planned(layertap.ImageRecord("late", read_late))]
    found: list[layertap.Batch] = []

    def consume() -> None:
        found.extend(batches(records, stuck, SLOT, batch_size=2, workers=1, decoding=Decoding(timeout=0.2)))

    consumer = threading.Thread(target=consume)
    consumer.start()
    assert entered.wait(60)  # by the thread that has taken the place of the one that is stuck
    stuck.go.set()
    consumer.join(60)
    assert (found[0].pixels.tolist(), failures(*found)) == ([[0, 0], [2, 2]], {"100": ("prepare", "timeout")})


def test_late_decoder_is_told_from_a_late_preprocessor():
    image = StuckImage()
    image._size, image._mode = (2, 2), "L"
    records = [Planned(layertap.ImageRecord("stuck", image)), record(1)]
    stream = batches(records, Shade(), SLOT, batch_size=2, workers=1, decoding=Decoding(timeout=0.2))
    (found,) = stream
    assert (found.pixels.tolist(), failures(found)) == ([[0, 0], [1, 1]], {"stuck": ("decode", "timeout")})
    image.go.set()


def test_neither_reading_nor_waiting_for_a_worker_counts():
    def slowly() -> Image.Image:
        time.sleep(0.5)
        return Image.new("L", (2, 2), 7)

    records = [Planned(layertap.ImageRecord(str(at), slowly)) for at in range(2)] + [record(1)]
    (found,) = batches(records, Shade(), SLOT, batch_size=3, workers=1, decoding=Decoding(timeout=0.2))
    assert (found.pixels.tolist(), failures(found)) == ([[7, 7], [7, 7], [1, 1]], {})


def test_closing_waits_a_second_for_what_is_stuck(stuck):
    stream = batches(map(record, [1, 100, 101, 102]), stuck, SLOT, batch_size=1, workers=2)
    next(stream)
    assert stuck.stuck.acquire(timeout=60)
    start = time.monotonic()
    stream.close()
    assert 0.5 < time.monotonic() - start < 3


SCRIPT = """
import os, torch, layertap
from layertap.records import ImageRecord, Planned
from layertap.images.batches import Decoding, Slot, batches
from PIL import Image

class Asking(layertap.Preprocessor):
    def prepare(self, image):
        print("preparing", flush=True)
        os.read(0, 1)
        return torch.ones(2, dtype=torch.uint8)

records = [Planned(ImageRecord("only", Image.new("L", (2, 2))))]
for timeout in (1.0, 3600.0):
    how = Decoding(timeout=timeout)
    for batch in batches(records, Asking(), Slot((2,), torch.uint8), batch_size=1, workers=1, decoding=how):
        print(batch.pixels.tolist(), dict(batch.failures), flush=True)
"""


def test_process_that_is_stopped_is_charged_nothing_and_one_that_is_interrupted_ends_though_an_image_hangs():
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as script:
        assert script.stdout.readline() == b"preparing\n"
        script.send_signal(signal.SIGSTOP)
        time.sleep(1.5)  # longer than the limit
        script.send_signal(signal.SIGCONT)
        script.stdin.write(b"x")
        script.stdin.flush()
        assert script.stdout.readline() == b"[[1, 1]] {}\n"
        assert script.stdout.readline() == b"preparing\n"
        script.send_signal(signal.SIGINT)
        assert script.wait(20) == -signal.SIGINT
        assert script.stderr.read().endswith(b"KeyboardInterrupt\n")


def test_signal_that_wakes_nobody_is_found():
    noticed = threading.Event()

    class Signalling(layertap.Preprocessor):
        def prepare(self, image):
            # The waiting thread does not take it, as when it comes a moment before the wait begins.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
            os.kill(os.getpid(), signal.SIGUSR1)
            return torch.tensor(noticed.wait(20))

    before = signal.signal(signal.SIGUSR1, lambda *_: noticed.set())
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        (found,) = batches([record(1)], Signalling(), Slot((), torch.bool), batch_size=1, workers=1)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        signal.signal(signal.SIGUSR1, before)
    assert found.pixels.tolist() == [True]


def test_stopwatch_is_told_the_three_stages():
    watch = Stopwatch()
    list(batches(map(record, range(1, 13)), Shade(), SLOT, batch_size=5, workers=2, stopwatch=watch))
    assert list(watch.seconds) == ["read", "decode", "prepare"]
    assert watch.seconds["prepare"] >= 0.001 * sum(shade % 3 for shade in range(1, 13))


def test_stopwatch_counts_a_late_image_where_it_was_late(stuck):
    watch = Stopwatch()
    how = Decoding(timeout=0.2)
    list(batches(map(record, [1, 100]), stuck, SLOT, batch_size=2, workers=1, decoding=how, stopwatch=watch))
    assert watch.seconds["prepare"] >= 0.2


def test_notes_are_those_of_the_images_kept():
    def cmyk(shade: int) -> Image.Image:
        return Image.merge("CMYK", [Image.new("L", (2, 2), shade)] * 4)

    file = io.BytesIO()
    cmyk(3).save(file, "JPEG")
    given = [record(1).record.data, cmyk(2), cmyk(14), file.getvalue(), Image.new("LA", (2, 2))]
    records = [Planned(layertap.ImageRecord(str(at), data)) for at, data in enumerate(given)]
    (found,) = batches(records, Shade(), SLOT, batch_size=5, workers=2)
    assert found.notes == {1: ("cmyk",), 3: ("cmyk",), 4: ("alpha",)}
    assert failures(found) == {"2": ("prepare", "error")}


def test_pillow_told_to_fill_up_cut_images_is_refused(monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(layertap.ConfigError, match="LOAD_TRUNCATED_IMAGES"):
        Slot.of(Shade(), torch.device("cpu"))


def test_preprocessor_that_gives_no_tensor_is_told_before_the_run():
    class Wrong(layertap.Preprocessor):
        def prepare(self, image: Image.Image):
            return "pixels"

    with pytest.raises(layertap.PluginError, match="gives a str, not a tensor"):
        Slot.of(Wrong(), torch.device("cpu"))
