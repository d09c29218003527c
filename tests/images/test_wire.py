"""wire: an image crosses from one process to another unchanged, and nothing else is believed."""

from __future__ import annotations

import contextlib
import io
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps, ImagePalette

from layertap.errors import ImageError
from layertap.images.decoding.wire import receive, send_failure, send_image
from layertap.images.limits import MAX_IMAGE_PIXELS

MODES = [
    *("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"),
    *("I", "F", "I;16", "I;16L", "I;16B", "I;16N"),
]


def crossed(image: Image.Image, notes: tuple[str, ...] = ()) -> Image.Image:
    pipe = io.BytesIO()
    send_image(pipe, (image, notes))
    pipe.seek(0)
    found, found_notes = receive(pipe, bytearray(100))
    assert pipe.read() == b""
    assert found_notes == notes
    return found


def converted(image: Image.Image, mode: str) -> object:
    try:
        return image.convert(mode).tobytes()
    except (ValueError, OSError) as error:
        return str(error)


def seen(image: Image.Image) -> list[object]:
    """All that preparing an image may look at."""
    image.load()
    palette = image.palette and (image.palette.mode, bytes(image.palette.palette), image.im.getpalette("RGBA", "RGBA"))
    upright = ImageOps.exif_transpose(image)
    facts = [image.mode, image.size, image.format, image.tobytes(), palette, upright.size, upright.tobytes()]
    infos = [image.info.get(key) for key in ("exif", "icc_profile", "transparency", "background")]
    return [*facts, *infos, *(converted(image.copy(), mode) for mode in ("RGB", "L", "RGBA"))]


def noise(mode: str, width: int = 13, height: int = 7) -> Image.Image:
    length = len(Image.new(mode, (width, height)).tobytes())
    data = bytes(at * at * 37 % 251 for at in range(length))
    if mode == "F":
        data = struct.pack(f"{length // 4}f", *(at * 1.7 - 20 for at in range(length // 4)))
    image = Image.frombytes(mode, (width, height), data)
    if mode in ("P", "PA"):
        image.putpalette(bytes(at * 7 % 256 for at in range(3 * 200)))
    image.load()
    return image


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("strip", [2**24, 100], ids=["whole", "strips"])
def test_every_mode_crosses_bit_for_bit(mode, strip, monkeypatch):
    monkeypatch.setattr("layertap.images.decoding.wire._STRIP", strip)
    image = noise(mode)
    assert seen(crossed(image)) == seen(image)


@pytest.mark.parametrize(
    ("mode", "info"),
    [
        ("L", {"transparency": 37}),
        ("1", {"transparency": 1}),
        ("RGB", {"transparency": (1, 2, 3)}),
        ("RGB", {"transparency": (0, 37, 148)}),
        ("P", {"transparency": 3, "background": 250}),
        ("P", {"transparency": 255}),
        ("RGBA", {"icc_profile": b"\0profile" * 1000}),
        ("RGB", {"XML:com.adobe.xmp": '<x tiff:Orientation="6" ü/>'}),
        ("RGB", {"xmp": b'<x tiff:Orientation="8"/>'}),
        ("RGB", {"anything": object(), "dpi": (72, 72), "exif": None}),
    ],
)
def test_what_conversions_and_exif_need_crosses_too(mode, info):
    image = noise(mode)
    image.info.update(info)
    assert seen(crossed(image)) == seen(image)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_crosses(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for info in ({"exif": exif.tobytes()}, {"Raw profile type exif": f"\nexif\n8\n{exif.tobytes().hex()}\n"}):
        image = noise("RGB")
        image.info.update(info)
        found = crossed(image)
        assert found.getexif()[0x0112] == orientation
        assert seen(found) == seen(image)


@pytest.mark.parametrize(
    ("mode", "colours"), [("RGB", 0), ("RGB", 2), ("RGB", 256), ("RGBA", 0), ("RGBA", 5), ("RGBA", 256), ("CMYK", 9)]
)
def test_palettes_of_every_length_cross(mode, colours):
    image = noise("P")
    image.putpalette(bytes(at * 11 % 256 for at in range(colours * len(mode))), mode)
    image.load()
    assert seen(crossed(image)) == seen(image)


def test_palette_indices_without_a_palette_cross():
    image = Image.frombytes("P", (4, 4), bytes(range(16)))
    image.palette = None  # as Pillow leaves a PNG that has none
    found = crossed(image)
    assert (found.palette, found.tobytes(), found.im.getpalette()) == (None, image.tobytes(), image.im.getpalette())
    empty = Image.new("P", (3, 3), 1)
    assert isinstance(crossed(empty).palette, ImagePalette.ImagePalette)


def test_notes_and_an_image_without_pixels_cross():
    assert crossed(Image.new("RGB", (0, 5)), ("alpha", "cmyk")).size == (0, 5)


def test_failure_is_received_as_the_error_that_it_was():
    pipe = io.BytesIO()
    send_failure(pipe, "truncated")
    pipe.seek(0)
    with pytest.raises(ImageError, match="the data ends before the image does") as caught:
        receive(pipe, bytearray(100))
    assert caught.value.reason == "truncated"


GOOD = {"mode": "L", "size": [2, 2], "format": "PNG", "notes": [], "numbers": {}, "blobs": {}, "texts": {}}
GOOD |= {"palette": None}


def answer(header: object, rest: bytes = b"\1\2\3\4") -> io.BytesIO:
    text = json.dumps(header).encode()
    return io.BytesIO(struct.pack(">I", len(text)) + text + rest)


def test_the_answer_that_the_next_test_spoils_is_good():
    image, notes = receive(answer(GOOD), bytearray())
    assert (image.tobytes(), image.format, notes) == (b"\1\2\3\4", "PNG", ())


@pytest.mark.parametrize(
    "header",
    [
        *({"failure": "a reason of its own"}, {"failure": ["truncated"]}, [], None, 1, "failure", {}),
        *(GOOD | {"mode": mode} for mode in ("BGR;15", "", None, ["L"], {})),
        *(
            GOOD | {"size": size}
            for size in ([2**20, 2**20], [MAX_IMAGE_PIXELS + 1, 1], [-2, -2], [2.0, 2.0], [2], 4, "22")
        ),
        *(GOOD | {"size": size} for size in ([True, 4], [2, 3], [2, 10**30])),
        *(GOOD | {"format": form} for form in ("EPS", 1, ["PNG"])),
        *(GOOD | {"notes": notes} for notes in (["anything"], [["cmyk"]], 1)),
        *(GOOD | {"numbers": numbers} for numbers in ({"transparency": "1"}, {"gamma": 1}, {"background": -1}, [1])),
        *(GOOD | {"numbers": {"transparency": [[1]]}}, GOOD | {"numbers": {"transparency": [1] * 5}}),
        *(GOOD | {"blobs": blobs} for blobs in ({"anything": 1}, {"exif": 2**62}, {"exif": -1}, {"exif": "4"})),
        *(GOOD | {"texts": texts} for texts in ({"exif": 4}, {"XML:com.adobe.xmp": 2**40}, 1)),
        *(GOOD | {"palette": palette} for palette in (["RGB", 3], "RGB", [], 1)),
        *(GOOD | {"mode": "P", "palette": palette} for palette in (["CMYK", 4], ["RGB", 769], ["RGB", -3])),
        *({key: value for key, value in GOOD.items() if key != missing} for missing in GOOD),
    ],
    ids=repr,
)
def test_answer_that_is_none_of_ours_is_a_value_error(header):
    with pytest.raises(ValueError, match=r"."):
        receive(answer(header), bytearray())


@pytest.mark.parametrize(
    "data",
    [b"", b"\0\0\0", b"\xff" * 100, b"\0\0\0\x04\x80\x04N.", b"\0\0\0\x02[]", b"\0\0\xff\xff" + b"[" * 0xFFFF],
    ids=["nothing", "too little", "too much", "pickle", "list", "deep"],
)
def test_noise_is_a_value_error(data):
    with pytest.raises(ValueError, match=r"."):
        receive(io.BytesIO(data), bytearray())


@given(data=st.binary(max_size=300), at=st.integers(0, 300))
def test_an_answer_with_any_bytes_spoilt_is_an_image_or_a_value_error(data, at):
    whole = answer(GOOD | {"texts": {"XML:com.adobe.xmp": 4}}, b"text\1\2\3\4").getvalue()
    with contextlib.suppress(ValueError, ImageError):
        receive(io.BytesIO(whole[:at] + data + whole[at + len(data) :]), bytearray())
