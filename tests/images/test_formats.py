"""TIFF, JPEG 2000 and AVIF: opened where they are asked for, as Pillow opens them, with the same care as the others."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
from PIL import AvifImagePlugin, Image

from layertap.errors import ImageError
from layertap.images.decoding.decode import decode, notes
from layertap.images.decoding.formats import OPTIONAL, STANDARD, format_of
from tests.images import fuzz
from tests.images.bad_inputs import tiff

RGB = Image.frombytes("RGB", (40, 28), np.random.default_rng(0).integers(0, 256, 40 * 28 * 3, np.uint8).tobytes())
GREY16 = Image.fromarray(np.arange(40 * 28, dtype=np.uint16).reshape(28, 40) * 58)
OPTIONAL_SEEDS = {name: data for name, data in fuzz.seeds().items() if name.split()[0] not in fuzz.STANDARD}


def encoded(format, image=RGB, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def opened(data):
    return decode(data, OPTIONAL)


def reason_of(data, formats=OPTIONAL):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(ImageError) as refused:
            decode(data, formats)
    assert not caught
    return refused.value.reason


@pytest.mark.parametrize("name", OPTIONAL_SEEDS)
def test_an_optional_format_is_opened_where_it_is_asked_for_and_as_pillow_opens_it(name):
    data = OPTIONAL_SEEDS[name]
    image = opened(data)
    with Image.open(io.BytesIO(data)) as expected:
        assert (image.mode, image.size, image.format) == (expected.mode, expected.size, expected.format)
        assert image.tobytes() == expected.tobytes()
        assert image.convert("RGB").tobytes() == expected.convert("RGB").tobytes()
    assert format_of(data) == image.format
    others = [format for format in OPTIONAL if format != image.format]
    assert reason_of(data, others) == reason_of(data, ()) == "format_not_allowed"


@pytest.mark.parametrize("name", fuzz.seeds())
def test_every_format_is_known_by_its_first_bytes(name):
    assert format_of(fuzz.seeds()[name]) == name.split()[0].upper()
    assert format_of(fuzz.seeds()[name]) in (*STANDARD, *OPTIONAL)


def test_avif_without_its_codec_says_so(monkeypatch):
    monkeypatch.setattr(AvifImagePlugin, "SUPPORTED", False)
    assert reason_of(encoded("AVIF")) == "codec_missing"


@pytest.mark.parametrize("name", OPTIONAL_SEEDS)
def test_one_cut_anywhere_is_refused_or_whole(name):
    data = OPTIONAL_SEEDS[name]
    whole = opened(data).tobytes()
    for length in [*range(1, min(400, len(data))), *range(400, len(data), 37), *range(len(data) - 40, len(data))]:
        try:
            image = opened(data[:length])
        except ImageError as error:
            # A bare start of zeros is no image yet, and an AVIF may be cut where a box ends.
            assert error.reason == "truncated" or length < 12 or name.startswith("avif")  # noqa: PT017
        else:
            assert image.tobytes() == whole


# TIFF


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    ("entries", "pixels", "mode", "note"),
    [
        ({}, bytes(range(16)), "L", ()),
        ({258: 1, 262: 0}, b"\xa0\x50\xa0\x50", "1", ()),
        ({258: 16}, bytes(range(32)), "I;16", ("depth16",)),
        ({258: [8, 8, 8], 262: 2, 277: 3}, bytes(range(48)), "RGB", ()),
        ({258: [16, 16, 16], 262: 2, 277: 3}, bytes(range(96)), "RGB", ("depth16",)),
        ({258: [8] * 4, 262: 5, 277: 4}, bytes(range(64)), "CMYK", ("cmyk",)),
        ({258: [8] * 4, 262: 2, 277: 4, 338: 2}, bytes(range(64)), "RGBA", ("alpha",)),
        ({273: [8, 16], 278: 2, 279: [8, 8]}, bytes(range(16)), "L", ()),
        ({273: None, 279: None, 278: None, 322: 4, 323: 4, 324: 8, 325: 16}, bytes(range(16)), "L", ()),
    ],
    ids=["grey", "bits", "grey 16", "colour", "colour 16", "cmyk", "alpha", "strips", "tile"],
)
def test_kinds_of_tiff_that_are_opened(entries, pixels, mode, note, order):
    data = tiff(entries, pixels, order)
    image = opened(data)
    assert image.mode == (mode if mode != "I;16" or order == "<" else "I;16B")
    assert notes(image) == note
    with Image.open(io.BytesIO(data)) as expected:
        assert image.convert("RGB").tobytes() == expected.convert("RGB").tobytes()


@pytest.mark.parametrize(
    ("reason", "data"),
    [
        ("unsupported_mode", tiff({258: 32, 339: 3}, np.array([np.nan, np.inf, 0, 1] * 4, "<f4").tobytes())),
        ("unsupported_mode", tiff({258: 32}, bytes(64))),
        ("unsupported_mode", tiff({258: 12, 262: 0}, bytes(24))),
        ("unsupported_mode", tiff({258: [8] * 9, 262: 2, 277: 9}, bytes(144))),
        ("unsupported_mode", tiff({277: 70_000}, bytes(144))),
        ("unsupported_mode", tiff({259: 6})),
        ("unsupported_mode", tiff({259: 50_001})),
        ("too_large", tiff({256: 60_000, 257: 60_000})),
        ("too_large", tiff({273: None, 279: None, 322: 40_000, 323: 40_000, 324: 8, 325: 16})),
        ("truncated", tiff({273: 5_000, 259: 5})),
        ("truncated", tiff({273: 5_000})),
        ("truncated", tiff({278: 1})),
        ("truncated", tiff({279: 5_000, 259: 5})),
        ("truncated", tiff({}, bytes(12))[:8] + struct.pack("<L", 9_999)),
        ("truncated", b"II*\0" + struct.pack("<L", 2**31)),
        ("corrupt", tiff({256: 0})),
        ("corrupt", tiff({257: None})),
        ("corrupt", tiff({278: 0})),
        ("corrupt", tiff({273: [8] * 50, 278: 4})),
        ("corrupt", tiff({259: 5})),
        ("corrupt", tiff({259: 8})),
        ("corrupt", tiff({262: 3})),
        ("format_not_allowed", tiff({254: 1})),
        ("format_not_allowed", tiff({50706: 1})),
        ("format_not_allowed", b"II*\0\x10\0\0\0CR\2\0" + bytes(40)),
        ("format_not_allowed", b"II+\0\x08\0\0\0" + bytes(40)),
    ],
)
def test_tiffs_that_are_refused(reason, data):
    assert reason_of(data) == reason


def planar(channels, photometric, bits=8, compression=1):
    """A TIFF of one plane per channel, each in a strip of its own."""
    plane = bytes(16 * bits // 8)
    plane = zlib.compress(plane) if compression == 8 else plane
    strips = {273: [8 + number * len(plane) for number in range(channels)], 279: [len(plane)] * channels}
    entries = {258: [bits] * channels, 259: compression, 262: photometric, 277: channels, 284: 2}
    return tiff({**entries, 338: [0] * (channels - (3 if photometric == 2 else 1)), **strips}, plane * channels)


@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("channels", "photometric"), [(5, 1), (5, 2), (2, 1), (4, 1), (6, 2), (6, 1)])
def test_planes_that_are_no_colours_are_a_variant_that_is_not_read(channels, photometric, bits, compression):
    assert reason_of(planar(channels, photometric, bits, compression)) == "unsupported_mode"


@pytest.mark.parametrize("compression", [1, 8])
def test_planes_of_red_green_and_blue_are_read(compression):
    entries = {258: [8] * 3, 259: compression, 262: 2, 277: 3, 284: 2}
    planes = [bytes([level] * 16) for level in (10, 20, 30)]
    planes = [zlib.compress(plane) if compression == 8 else plane for plane in planes]
    offsets = [8 + sum(map(len, planes[:number])) for number in range(3)]
    data = tiff({**entries, 273: offsets, 279: list(map(len, planes))}, b"".join(planes))
    assert opened(data).getpixel((0, 0)) == (10, 20, 30)


def test_the_same_bytes_under_many_tags_are_not_read_over_and_over():
    big = struct.pack("<HHLL", 34675, 7, 5_000, 8)
    data = tiff({}, bytes(6_000))
    at = 8 + 6_000
    many = struct.pack("<H", 3) + big + struct.pack("<HHLL", 700, 7, 5_000, 8) + struct.pack("<HHLL", 347, 7, 5_000, 8)
    count = struct.unpack_from("<H", data, at)[0]
    joined = data[:at] + struct.pack("<H", count + 3) + data[at + 2 : at + 2 + 12 * count] + many[2:] + bytes(4)
    assert reason_of(joined) == "corrupt"


def test_directories_that_lead_in_a_circle_are_one_page_with_more_behind_it():
    data = tiff({})
    looped = data[:-4] + data[4:8]
    assert notes(opened(looped)) == ("frames",)
    assert opened(looped).tobytes() == opened(data).tobytes()


def test_a_tiff_comes_upright_as_from_pillow():
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded("TIFF", exif=exif, compression="tiff_lzw")
        with Image.open(io.BytesIO(data)) as expected:
            assert opened(data).tobytes() == expected.tobytes()
        assert notes(opened(data)) == ()


def test_what_libtiff_would_print_is_not_printed():
    code = (
        "import sys\n"
        "from layertap.images.decoding.decode import decode\n"
        "from layertap.errors import ImageError\n"
        "from tests.images.fuzz import hostile\n"
        "for _, data in hostile(400, 3, ('tiff',)):\n"
        "    try: decode(data, ['TIFF'])\n"
        "    except ImageError: pass\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


# JPEG 2000 and AVIF


def siz(data, **changes):
    """A JPEG 2000 image with other numbers in the segment that gives its measures."""
    places = {"width": 8, "height": 12, "tile_width": 24, "tile_height": 28}
    start = data.index(b"\xffO\xffQ")
    changed = bytearray(data)
    for name, number in changes.items():
        if name == "channels":
            struct.pack_into(">H", changed, start + 40, number)
        else:
            struct.pack_into(">L", changed, start + places[name], number)
    return bytes(changed)


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("too_large", {"width": 60_000, "height": 60_000, "tile_width": 60_000, "tile_height": 60_000}),
        ("too_large", {"width": 9_000, "height": 9_000, "tile_width": 1, "tile_height": 1}),
        ("corrupt", {"width": 0}),
        ("corrupt", {"tile_width": 0}),
        ("unsupported_mode", {"channels": 16_384}),
        ("unsupported_mode", {"channels": 0}),
    ],
)
@pytest.mark.parametrize("bare", [True, False])
def test_jpeg_2000_of_mad_measures_is_refused_from_its_header(reason, changes, bare):
    assert reason_of(siz(encoded("JPEG2000", no_jp2=bare), **changes)) == reason


def test_jpeg_2000_without_what_is_in_its_last_tile_is_truncated():
    data = encoded("JPEG2000", no_jp2=True, tile_size=(16, 16))
    cut = data[: data.rindex(b"\xff\x90\0\x0a") + 2]
    with Image.open(io.BytesIO(cut)) as filled:
        filled.load()  # Pillow makes up what is not there
    assert reason_of(cut) == "truncated"


def test_deep_jpeg_2000_is_noted():
    image = opened(encoded("JPEG2000", GREY16))
    assert image.mode == "I;16"
    assert notes(image) == ("depth16",)


def test_avif_says_how_it_is_to_be_turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = opened(encoded("AVIF", exif=exif))
    assert image.size == RGB.size
    assert image.getexif()[0x0112] == 6
    assert notes(image) == ("exif_orientation",)
    assert notes(opened(encoded("AVIF", save_all=True, append_images=[RGB.rotate(90)]))) == ("frames",)


def test_avif_over_the_pixel_cap_is_refused_from_its_header():
    data = encoded("AVIF")
    at = data.index(b"ispe") + 8
    assert reason_of(data[:at] + struct.pack(">LL", 12_000, 12_000) + data[at + 8 :]) == "too_large"


def test_broken_exif_of_an_avif_is_not_looked_at():
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    data = encoded("AVIF", exif=exif)
    at = data.index(b"MM\0*") + 8
    broken = data[:at] + b"\xff\xff" + data[at + 2 :]
    with pytest.warns(UserWarning, match="EXIF"), Image.open(io.BytesIO(broken)) as expected:
        expected.load()
    assert opened(broken).tobytes() == expected.tobytes()
