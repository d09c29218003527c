"""What does not reach the RGB pixels is told in fixed words, at no cost, and by nothing that could fail."""

from __future__ import annotations

import io
import struct
import timeit
import warnings

import pytest
from PIL import Image, ImageOps

from layertap.errors import ImageError
from layertap.images.decoding.decode import decode, notes
from layertap.images.decoding.formats import OPTIONAL
from layertap.images.decoding.notes import NOTES
from tests.images import fuzz

PHOTO = Image.merge("RGB", [Image.linear_gradient("L").resize((48, 32)).rotate(angle) for angle in (0, 90, 180)])


def encoded(format, image=PHOTO, **options):
    file = io.BytesIO()
    image.copy().save(file, format, **options)
    return file.getvalue()


def turned(orientation, order="MM"):
    """An EXIF block of one entry."""
    form = ">" if order == "MM" else "<"
    entry = struct.pack(form + "HL", 42, 8) + struct.pack(form + "HHHLHH", 1, 0x0112, 3, 1, orientation, 0) + bytes(4)
    return b"Exif\0\0" + order.encode() + entry


def frames(format):
    return encoded(format, PHOTO.convert("P"), save_all=True, append_images=[PHOTO.rotate(90), PHOTO.rotate(180)])


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encoded("JPEG"), ()),
        (encoded("PNG"), ()),
        (encoded("PNG", PHOTO.convert("L")), ()),
        (encoded("PNG", PHOTO.convert("1")), ()),
        (encoded("PNG", PHOTO.convert("P")), ()),
        (encoded("GIF", PHOTO.convert("P")), ()),
        (encoded("WEBP"), ()),
        (encoded("BMP"), ()),
        (encoded("JPEG", PHOTO.convert("CMYK")), ("cmyk",)),
        (fuzz.seeds()["png grey 16"], ("depth16",)),
        (fuzz.seeds()["png 16"], ("depth16",)),
        (fuzz.seeds()["png alpha 16"], ("alpha", "depth16")),
        (encoded("PNG", PHOTO.convert("RGBA")), ("alpha",)),
        (encoded("PNG", PHOTO.convert("LA")), ("alpha",)),
        (encoded("PNG", PHOTO.convert("P"), transparency=3), ("alpha",)),
        (encoded("PNG", PHOTO.convert("P"), transparency=bytes(range(99))), ("alpha",)),
        (encoded("PNG", PHOTO.convert("L"), transparency=3), ("alpha",)),
        (frames("PNG"), ("frames",)),
        (frames("GIF"), ("frames",)),
        (frames("WEBP"), ("frames",)),
        (encoded("MPO", save_all=True, append_images=[PHOTO.copy()]), ("frames",)),
        (encoded("JPEG", icc_profile=b"anything at all"), ("icc_profile",)),
        (encoded("PNG", icc_profile=b"anything at all"), ("icc_profile",)),
        (encoded("JPEG", exif=turned(6), icc_profile=b"x"), ("exif_orientation", "icc_profile")),
    ],
)
def test_what_is_left_out_is_noted(data, expected):
    found = notes(decode(data))
    assert found == expected
    assert set(found) <= NOTES.keys()


@pytest.mark.parametrize("order", ["MM", "II"])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(10))
def test_an_orientation_is_noted_where_pillow_would_turn(format, orientation, order):
    image = decode(encoded(format, exif=turned(orientation, order)))
    turns = ImageOps.exif_transpose(image).tobytes() != image.tobytes()
    assert ("exif_orientation" in notes(image)) == turns == (orientation in range(2, 9))


def test_images_that_a_source_gave_are_noted_as_far_as_pillow_knows_them():
    assert notes(PHOTO) == ()
    assert notes(PHOTO.convert("F")) == ("float",)
    assert notes(PHOTO.convert("I")) == ("depth32",)
    assert notes(Image.new("I;16B", (1, 1))) == ("depth16",)
    assert notes(Image.new("RGBa", (1, 1))) == ("alpha",)
    with Image.open(io.BytesIO(frames("GIF"))) as image:
        assert notes(decode(image)) == ()  # to count its frames would be to read on
        assert image.n_frames == 3


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"Exif\0\0",
        b"Exif\0\0MM\0*",
        b"Exif\0\0MM\0*\xff\xff\xff\xff",
        turned(6)[:-8],
        turned(6).replace(b"\x01\x12\0\x03", b"\x01\x12\0\x02"),
        turned(6).replace(b"\0\0\0\x01\0\x06", b"\0\0\xff\xff\0\x06"),
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(100),
        "a text where bytes belong",
        None,
        6,
    ],
)
def test_exif_that_makes_no_sense_says_nothing(exif):
    image = PHOTO.copy()
    image.info["exif"] = exif
    assert notes(image) == ()


def test_a_text_by_the_name_of_our_own_facts_is_no_fact():
    text = fuzz.chunk(b"tEXt", b"layertap\0frames")
    data = encoded("PNG")
    assert notes(decode(data[:33] + text + data[33:])) == ()


def test_nothing_fails_warns_or_prints_whatever_the_file_holds(capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _, data in fuzz.hostile(500, seed=11, formats=(*fuzz.STANDARD, *map(str.lower, OPTIONAL))):
            try:
                image = decode(data, OPTIONAL)
            except ImageError:
                continue
            assert set(notes(image)) <= NOTES.keys()
            image.convert("RGB")
    assert capfd.readouterr() == ("", "")


def test_a_plain_image_costs_nothing():
    image = decode(encoded("JPEG"))
    assert min(timeit.repeat(lambda: notes(image), number=1_000, repeat=5)) / 1_000 < 20e-6


def test_every_word_has_a_meaning():
    for word, meaning in NOTES.items():
        assert word.isidentifier()
        assert word == word.lower()
        assert meaning
