"""JPEGs decoded no larger than is enough: by which factor, with what note, and that nothing else changes."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from layertap.errors import ImageError
from layertap.images.decoding.decode import decode, decoders, notes
from layertap.images.decoding.formats import OPTIONAL
from layertap.images.failure_codes import REASONS
from tests.images import fuzz

# Smooth enough that reducing it by any good filter gives much the same.
RAMP = Image.merge("RGB", [Image.radial_gradient("L").resize((640, 480)).rotate(angle) for angle in (0, 90, 180)])


def encoded(format="JPEG", image=RAMP, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def square(side):
    return lambda size: (side, side)


@pytest.mark.parametrize(
    ("side", "size"),
    [
        (481, (640, 480)),
        (480, (640, 480)),
        (241, (640, 480)),
        (240, (320, 240)),
        (121, (320, 240)),
        (120, (160, 120)),
        (60, (80, 60)),
        (1, (80, 60)),
    ],
)
def test_a_jpeg_comes_at_the_least_size_that_is_enough(side, size):
    image = decode(encoded(), enough=square(side))
    assert (image.size, image.mode) == (size, "RGB")
    assert notes(image) == (() if size == RAMP.size else ("scaled",))
    expected = np.asarray(RAMP.resize(size, Image.Resampling.BOX)).astype(int)
    assert np.abs(np.asarray(image) - expected).mean() < 2


@pytest.mark.parametrize(("width", "height"), [(641, 479), (643, 485), (97, 801), (1, 1), (1, 900)])
def test_sizes_that_do_not_divide_are_rounded_up_and_never_too_small(width, height):
    data = encoded(image=RAMP.resize((width, height)))
    for side in (1, 7, 40, 100):
        image = decode(data, enough=square(side))
        factor = next(factor for factor in (8, 4, 2, 1) if min(width, height) // side >= factor or factor == 1)
        assert image.size == (-(-width // factor), -(-height // factor))
        assert min(image.size) >= min(side, width, height)


def test_both_sides_have_to_be_enough():
    assert decode(encoded(), enough=lambda size: (80, 240)).size == (320, 240)
    assert decode(encoded(), enough=lambda size: (size[0] // 4, 1)).size == (160, 120)


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}])
def test_jpegs_of_every_kind_are_scaled(options):
    assert decode(encoded(**options), enough=square(100)).size == (160, 120)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_jpegs_of_every_mode_are_scaled(mode):
    image = decode(encoded(image=RAMP.convert(mode)), enough=square(100))
    assert (image.size, image.mode) == ((160, 120), mode)


def test_it_is_the_same_every_time():
    data = encoded(quality=95)
    assert len({decode(data, enough=square(100)).tobytes() for _ in range(5)}) == 1


def test_the_facts_of_the_file_stay_with_it():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(exif=exif, icc_profile=b"a profile")
    assert decode(data, enough=square(60)).info["exif"] == decode(data).info["exif"]
    assert notes(decode(data, enough=square(60))) == ("exif_orientation", "icc_profile", "scaled")


def test_where_all_of_it_is_needed_it_comes_whole():
    image = decode(encoded(), enough=lambda size: None)
    assert image.tobytes() == decode(encoded()).tobytes()
    assert notes(image) == ()


@pytest.mark.parametrize("format", ["PNG", "WEBP", "BMP", "GIF"])
def test_other_formats_come_whole(format):
    data = encoded(format, RAMP.convert("P") if format == "GIF" else RAMP)
    assert decode(data, enough=square(1)).tobytes() == decode(data).tobytes()
    assert notes(decode(data, enough=square(1))) == notes(decode(data))


def test_an_image_that_a_source_gave_comes_whole():
    assert decode(RAMP, enough=square(1)) is RAMP


def test_a_bomb_is_refused_however_little_of_it_is_enough():
    data = bytearray(encoded())
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = b"\x4e\x20\x4e\x20"
    with pytest.raises(ImageError) as error:
        decode(bytes(data), enough=square(1))
    assert error.value.reason == "too_large"


def test_a_cut_jpeg_is_truncated_at_every_scale():
    data = encoded()
    for side in (480, 240, 120, 60):
        with pytest.raises(ImageError) as error:
            decode(data[: len(data) // 2], enough=square(side))
        assert error.value.reason == "truncated"


@pytest.mark.parametrize("answer", [7, "many", (0, 0)])
def test_a_preprocessor_that_cannot_say_is_the_reason(answer):
    with pytest.raises(ImageError) as error:
        decode(encoded(), enough=lambda size: answer)
    assert error.value.reason == "error"


def test_hostile_jpegs_give_an_image_or_a_known_reason(capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for what, data in fuzz.hostile(1_500, seed=12, formats=("jpeg",)):
            try:
                image = decode(data, enough=square(5))
            except ImageError as error:
                assert error.reason in REASONS, what  # noqa: PT017
            else:
                image.convert("RGB")
    assert capfd.readouterr() == ("", "")


def test_the_libraries_that_decode_are_named_with_their_versions():
    assert set(decoders()) == {"JPEG", "WEBP"}
    assert set(decoders(OPTIONAL)) == {"JPEG", "WEBP", *OPTIONAL}
    for library in decoders(OPTIONAL).values():
        name, version = library.split()
        assert name.startswith(("lib", "openjpeg"))
        assert version[0].isdigit()
