"""`isolation: process`: the same pixels, and an image that kills its decoder costs one row."""

from __future__ import annotations

import fcntl
import io
import itertools
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import layertap
from layertap.images.batches import Decoding, Slot, batches
from layertap.images.decoding.bounds import DEFAULT
from layertap.images.decoding.child import Task
from layertap.images.decoding.fork_server import ForkServer
from layertap.images.decoding.formats import OPTIONAL
from layertap.images.decoding.isolation import InProcess, InThread
from layertap.records import Batch, ImageRecord, Planned
from tests.images import seeing
from tests.images.misbehaving import DEEDS
from tests.images.seeing import Choosy, Hungry, Seen
from tests.pipeline.test_pipeline import contents, run
from tests.tiny import Squash

SLOT = Slot((3, 16, 16), torch.uint8)
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="where memory is limited")


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def picture(shade: int = 0, mode: str = "RGB") -> Image.Image:
    levels = bytes((at * 7 + shade * 31) % 256 for at in range(20 * 14 * 3))
    return Image.frombytes("RGB", (20, 14), levels).convert(mode)


def stream(data: list[object], *, size: int = 4, workers: int = 2, **decoding: object) -> list[Batch]:
    records = [Planned(ImageRecord(str(number), item)) for number, item in enumerate(data)]
    how = Decoding(**{"timeout": 20.0, "isolation": "process", **decoding})
    return list(batches(records, Squash.of(), SLOT, batch_size=size, workers=workers, decoding=how))


def pixels(found: list[Batch]) -> torch.Tensor:
    return torch.cat([batch.pixels for batch in found])


def failures(found: list[Batch]) -> dict[str, tuple[str, str]]:
    return {f.record.id: (f.stage, f.reason) for batch in found for f in batch.failures.values()}


def notes(found: list[Batch]) -> list[dict[int, tuple[str, ...]]]:
    return [dict(batch.notes) for batch in found]


class Brood:
    """The children that `tests/images/misbehaving.py` has been started as."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.command = (sys.executable, str(Path(__file__).with_name("misbehaving.py")), str(folder))

    def born(self) -> list[int]:
        return [int(path.name) for path in self.folder.iterdir() if path.name.isdigit()]

    def alive(self) -> list[int]:
        return [pid for pid in self.born() if self._holds_its_lock(pid)]

    def wait(self, until: Callable[[], bool]) -> None:
        start = time.monotonic()
        while not until():
            assert time.monotonic() - start < 20, f"still there: {self.alive()}"
            time.sleep(0.02)

    def _holds_its_lock(self, pid: int) -> bool:
        with (self.folder / str(pid)).open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False


@pytest.fixture
def brood(tmp_path):
    brood = Brood(tmp_path)
    yield brood
    assert brood.alive() == []
    for pid in brood.born():
        with pytest.raises(ProcessLookupError):  # nobody has left it unburied
            os.kill(pid, 0)


def png_without_palette() -> bytes:
    data = encoded(picture(mode="P"), "PNG")
    at = data.index(b"PLTE") - 4
    return data[:at] + data[at + 12 + struct.unpack_from(">I", data, at)[0] :]


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def odd_files() -> dict[str, bytes]:
    profile = b"\0" * 36 + b"acsp" + b"\0" * 500
    xmp = b'<x:xmpmeta><rdf tiff:Orientation="6"/></x:xmpmeta>'
    found = {f"{mode}.png": encoded(picture(mode=mode), "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")}
    found |= {f"{mode}.jpg": encoded(picture(mode=mode), "JPEG") for mode in ("L", "RGB", "CMYK")}
    found |= {f"{mode}.webp": encoded(picture(mode=mode), "WEBP", lossless=True) for mode in ("RGB", "RGBA")}
    found |= {f"{mode}.bmp": encoded(picture(mode=mode), "BMP") for mode in ("1", "L", "P", "RGB", "RGBA")}
    found |= {f"{mode}.gif": encoded(picture(mode=mode), "GIF") for mode in ("1", "L", "P", "RGB", "RGBA")}
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I;16B", "I", "F"):
        length = len(Image.new(mode, (20, 14)).tobytes())
        tiff = Image.frombytes(mode, (20, 14), bytes(at % 101 for at in range(length)))
        found[f"{mode}.tif"] = encoded(tiff, "TIFF")
    found |= {"turned.tif": encoded(picture(), "TIFF", exif=turned(5)), "turned.jp2": encoded(picture(), "JPEG2000")}
    found |= {f"{turn}.jpg": encoded(picture(), "JPEG", exif=turned(turn)) for turn in range(1, 9)}
    found |= {
        "index.png": encoded(picture(mode="P"), "PNG", transparency=5),
        "alphas.png": encoded(picture(mode="P"), "PNG", transparency=bytes(range(0, 250, 3))),
        "colour.png": encoded(picture(), "PNG", transparency=(7, 14, 21)),
        "grey.png": encoded(picture(mode="L"), "PNG", transparency=77),
        "index.gif": encoded(picture(mode="P"), "GIF", transparency=9),
        "animated.gif": encoded(picture(), "GIF", save_all=True, append_images=[picture(1), picture(2)]),
        "animated.png": encoded(picture(), "PNG", save_all=True, append_images=[picture(1), picture(2)]),
        "animated.webp": encoded(picture(), "WEBP", save_all=True, append_images=[picture(1), picture(2)]),
        "turned.png": encoded(picture(), "PNG", exif=turned(6)),
        "turned.webp": encoded(picture(), "WEBP", exif=turned(3)),
        "xmp.jpg": encoded(picture(), "JPEG", xmp=xmp),
        "xmp.webp": encoded(picture(), "WEBP", xmp=xmp),
        "profile.jpg": encoded(picture(), "JPEG", icc_profile=profile),
        "profile.png": encoded(picture(), "PNG", icc_profile=profile),
        "no palette.png": png_without_palette(),
        "odd exif.jpg": encoded(picture(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09junk"),
        "long.jpg": encoded(picture(), "JPEG", comment=b"x" * 60_000, icc_profile=b"y" * 200_000),
        "large.png": encoded(picture().resize((1200, 1000)), "PNG", compress_level=1),
        "cut.jpg": encoded(picture().resize((300, 300)), "JPEG")[:900],
        "cut.png": encoded(picture(), "PNG")[:300],
        "spoilt.png": encoded(picture(), "PNG").replace(b"IDAT", b"IDAT\1", 1),
        "text": b"no image at all",
        "lfs": b"version https://git-lfs.github.com/spec/v1\n",
        "tiff": b"II*\0" + b"\0" * 100,
        "bomb.gif": b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\0;",
        "short": b"\xff\xd8\xff",
    }
    return found


FILES = odd_files()


def outcome(decoder: InThread | InProcess, data: bytes) -> object:
    stages = ["decode"]
    try:
        tensor, found = decoder.prepared(data, lambda: stages.append("prepare"))
    except layertap.ImageError as error:
        return error.reason, stages
    return found, bytes(tensor), stages


def of(brood: Brood) -> tuple[InProcess, ForkServer]:
    """A decoder whose children misbehave, and their server, which is to be closed."""
    server = ForkServer(Task(Seen(), Seen.profile, seeing.FORM, (), DEFAULT, 22), brood.command)
    return InProcess(InThread(Seen(), seeing.FORM), seeing.FORM, server), server


@pytest.fixture(scope="module")
def decoders():
    here = InThread(Seen(), seeing.FORM, OPTIONAL)
    server = ForkServer(Task(Seen(), Seen.profile, seeing.FORM, OPTIONAL, DEFAULT, 22))
    there = InProcess(here, seeing.FORM, server)
    there.ready()
    yield here, there
    there.end()
    server.close()


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of what `seen` asks Pillow for
@pytest.mark.parametrize("name", FILES)
def test_a_process_decodes_and_prepares_as_a_thread_does(decoders, name):
    here, there = decoders
    assert outcome(there, FILES[name]) == outcome(here, FILES[name])


def test_batches_are_the_same_from_processes(photos):
    data = [*sorted(photos.rglob("*.jpg")), *FILES.values(), photos / "none.jpg", picture(3), picture(mode="CMYK")]
    data += [lambda: FILES["P.png"], lambda: picture(5, "L"), lambda: 1 / 0]
    for size, workers in ((7, 1), (4, 3)):
        found, expected = [stream(data, size=size, workers=workers, isolation=i) for i in ("process", "thread")]
        assert torch.equal(pixels(found), pixels(expected))
        assert failures(found) == failures(expected)
        assert notes(found) == notes(expected)
        assert failures(found)[str(20 + len(FILES))] == ("read", "not_found")


def test_run_writes_the_same_bytes_from_processes(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "photos")
    for name, data in FILES.items():
        (tmp_path / "photos" / name).write_bytes(data)
    odd = {"formats": list(OPTIONAL), "workers": 3, "batch_size": 16}
    for how in ("thread", "process"):
        report = run(tmp_path / "photos", tmp_path / how, isolation=how, **odd)
        assert report.planned == report.kept + report.failed
        assert min(report.kept, report.failed) > 0
    assert contents(tmp_path / "process") == contents(tmp_path / "thread")


COSTS = {
    b"segfault": "decoder_crash",
    b"abort": "decoder_crash",
    b"leave": "decoder_crash",
    b"leave_python": "decoder_crash",
    b"babble": "decoder_crash",
    b"tell_untruth": "decoder_crash",
    b"hang": "timeout",
    b"fill_disk": "error",
}


@pytest.mark.parametrize("workers", [1, 3])
def test_what_a_decoder_does_to_itself_costs_one_row(brood, workers, capfd):
    good = [encoded(picture(shade), "PNG") for shade in range(len(COSTS) + 1)]
    expected = pixels(stream(good, isolation="thread"))
    bad = [word + b":" + good[0] for word in COSTS]
    mixed = [*itertools.chain.from_iterable(zip(good, bad, strict=False)), good[-1]]
    found = stream(mixed, workers=workers, timeout=1.0, command=brood.command)
    assert failures(found) == {str(2 * at + 1): ("decode", reason) for at, reason in enumerate(COSTS.values())}
    assert torch.equal(pixels(found)[::2], expected)
    assert not pixels(found)[1::2].any()
    assert capfd.readouterr() == ("", "")


@LINUX
def test_memory_that_an_image_eats_is_its_own(brood):
    good = encoded(picture(), "PNG")
    found = stream([good, b"eat:" + good, good], workers=1, command=brood.command)
    assert failures(found) == {"1": ("decode", "out_of_memory")}
    assert torch.equal(pixels(found)[0], pixels(found)[2])


def test_decoder_that_prints_is_heard_by_nobody(brood, capfd):
    good = encoded(picture(), "PNG")
    found = stream([good, b"talk:" + good], command=brood.command)
    assert failures(found) == {}
    assert torch.equal(pixels(found)[0], pixels(found)[1])
    assert capfd.readouterr() == ("", "")


def test_alarm_that_goes_off_before_the_limit_costs_nothing(brood):
    good = encoded(picture(), "PNG")
    found = stream([good, b"alarm_once:" + good], workers=1, command=brood.command)
    assert failures(found) == {}
    assert torch.equal(pixels(found)[0], pixels(found)[1])
    assert len(brood.born()) == 2


def prepared_by(
    preprocessor: layertap.Preprocessor, images: list[Image.Image], brood: Brood, **how: object
) -> list[Batch]:
    records = [Planned(ImageRecord(str(at), encoded(image, "PNG"))) for at, image in enumerate(images)]
    decoding = Decoding(**{"timeout": 20.0, "isolation": "process", "command": brood.command, **how})
    slot = Slot(*seeing.FORM)
    return list(batches(records, preprocessor, slot, batch_size=8, workers=1, decoding=decoding))


def test_preparing_is_timed_too_and_then_the_child_goes(brood):
    found = prepared_by(Late(), [Image.new("L", (3, 3)), picture(), Image.new("L", (3, 3))], brood, timeout=0.5)
    assert failures(found) == {"0": ("prepare", "timeout"), "2": ("prepare", "timeout")}
    assert len(brood.born()) >= 2
    assert brood.alive() == []


class Late(Seen):
    def prepare(self, image: Image.Image) -> torch.Tensor:
        if image.size == (3, 3):
            threading.Event().wait()
        return super().prepare(image)


class Deadly(Seen):
    def prepare(self, image: Image.Image) -> torch.Tensor:
        if image.size == (3, 3):
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().prepare(image)


def test_what_preparing_does_costs_one_row(brood):
    images = [picture(), Image.new("L", (3, 3)), picture(1), Image.new("L", (4, 4)), Image.new("L", (5, 5)), picture(2)]
    found = prepared_by(Deadly(), images, brood)
    assert failures(found) == {"1": ("prepare", "decoder_crash")}
    expected = {"1": ("prepare", "a_code_of_its_own"), "3": ("prepare", "error"), "4": ("prepare", "shape")}
    for isolation in ("process", "thread"):
        assert failures(prepared_by(Choosy(), images, brood, isolation=isolation)) == expected


@LINUX
def test_memory_that_preparing_eats_is_the_images_own(brood):
    found = prepared_by(Hungry(), [picture(), Image.new("L", (3, 3)), picture()], brood)
    assert failures(found) == {"1": ("prepare", "out_of_memory")}
    assert len(brood.born()) == 2


def test_the_server_has_one_thread_so_that_it_may_fork(decoders):
    _, there = decoders
    server = there._server._process.pid
    if sys.platform == "linux":
        assert len(os.listdir(f"/proc/{server}/task")) == 1


def test_a_preprocessor_that_cannot_be_sent_is_one_clean_error():
    class Local(Squash):
        pass

    how = Decoding(isolation="process")
    records = [Planned(ImageRecord("a", encoded(picture(), "PNG")))]
    with pytest.raises(layertap.ConfigError, match=r"^isolation: .* Local cannot be pickled .*; use `isola"):
        list(batches(records, Local.of(), SLOT, batch_size=1, workers=1, decoding=how))


def test_many_deaths_leave_no_descriptor_open(brood):
    good = encoded(picture(), "PNG")
    stream([good], command=brood.command)
    before = len(os.listdir("/dev/fd"))
    stream([b"leave:"] * 8 + [b"babble:" + good] * 4, command=brood.command)
    assert len(os.listdir("/dev/fd")) == before
    assert len(brood.born()) >= 13


def test_child_is_replaced_after_a_thousand_images(brood):
    good = encoded(Image.new("L", (1, 1)), "PNG")
    decoder, server = of(brood)
    for image in range(1_001):
        decoder.ready()
        decoder.prepared(good, lambda: None)
        assert len(brood.born()) == 1 + (image == 1_000)
    decoder.end()
    server.close()


def test_images_that_are_decoded_already_need_no_process(brood):
    found = stream([picture(), lambda: picture()], command=brood.command)
    assert failures(found) == {}
    assert brood.born() == []


def test_child_is_out_of_the_terminals_reach(brood):
    decoder, server = of(brood)
    decoder.ready()
    assert [os.getsid(pid) for pid in brood.alive()] == brood.alive()
    decoder.end()
    server.close()


@pytest.mark.parametrize("command", [("/no/such/program",), (sys.executable, "-c", ""), (sys.executable, "-c", "1/0")])
def test_process_that_cannot_start_is_one_clean_error(command):
    with pytest.raises(layertap.ConfigError, match=r"^isolation: cannot start .*; use `isolation: thread`") as caught:
        stream([encoded(picture(), "PNG")] * 20, workers=3, command=command)
    assert "\n" not in str(caught.value)


def test_fault_of_the_source_leaves_no_process(brood):
    def records():
        for number in range(20):
            yield Planned(ImageRecord(str(number), encoded(picture(), "PNG")))
        raise RuntimeError("the source broke")

    how = Decoding(isolation="process", command=brood.command)
    with pytest.raises(RuntimeError, match="the source broke"):
        list(batches(records(), Squash.of(), SLOT, batch_size=2, workers=2, decoding=how))
    assert brood.born()


def test_closing_early_waits_for_no_decoder(brood):
    good = encoded(picture(), "PNG")
    records = [Planned(ImageRecord(str(at), data)) for at, data in enumerate([good, *[b"hang:" + good] * 9])]
    how = Decoding(timeout=3600.0, isolation="process", command=brood.command)
    running = batches(records, Squash.of(), SLOT, batch_size=1, workers=3, decoding=how)
    next(running)
    start = time.monotonic()
    running.close()
    assert time.monotonic() - start < 3
    assert not [t for t in threading.enumerate() if t.name.startswith("layertap-decode")]


PARENT = """
import sys
from threading import Thread
from layertap.images.decoding.bounds import DEFAULT
from layertap.images.decoding.child import Task
from layertap.images.decoding.fork_server import ForkServer
from layertap.images.decoding.isolation import InProcess, InThread
from tests.images.seeing import FORM, Seen
server = ForkServer(Task(Seen(), Seen.profile, FORM, (), DEFAULT, 3), sys.argv[1:])
here = InThread(Seen(), FORM)
idle, busy = InProcess(here, FORM, server), InProcess(here, FORM, server)
idle.ready()
busy.ready()
Thread(target=busy.prepared, args=(b"hang:", print)).start()
print("ready", flush=True)
"""


def test_children_do_not_outlive_a_parent_that_is_killed(brood):
    with subprocess.Popen([sys.executable, "-c", PARENT, *brood.command], stdout=subprocess.PIPE) as parent:
        assert parent.stdout.readline() == b"ready\n"
        brood.wait(lambda: (brood.folder / "hung").exists())
        assert len(brood.alive()) == 2
        parent.send_signal(signal.SIGKILL)
    # The server meets the end of its socket, and ends them.
    brood.wait(lambda: not brood.alive())


def test_child_finds_its_packages_whatever_lies_in_the_working_directory(tmp_path, monkeypatch):
    for name in ("PIL", "json", "layertap"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit(1)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert failures(stream([encoded(picture(), "PNG")])) == {}


def test_every_deed_is_tried():
    assert DEEDS.keys() == COSTS.keys() | {b"eat", b"talk", b"alarm_once"}
