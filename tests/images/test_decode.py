"""Every bad input gets its own code, every odd one its pixels, and nothing else ever comes out of the decoder."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from layertap.errors import ImageError
from layertap.images.decoding.decode import decode
from layertap.images.decoding.formats import STANDARD
from layertap.images.failure_codes import REASONS
from layertap.images.limits import MAX_IMAGE_PIXELS

PHOTO = Image.merge("RGB", [Image.effect_noise((48, 32), sigma) for sigma in (20, 40, 60)])
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def encoded(format, image=PHOTO, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width=4, height=4, depth=8, colour=0, extra=b"", pixels=None):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = zlib.compress(bytes(height * (width + 1)) if pixels is None else pixels)
    return PNG_MAGIC + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def gif(width=4, height=4, *blocks):
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0) + b"".join(blocks)


def gif_frame(left, top, width, height, data=b"\x02\x02\x4c\x01\0"):
    return b"," + struct.pack("<HHHHB", left, top, width, height, 0) + data


def patched(data, at, new):
    return data[:at] + new + data[at + len(new) :]


def reason_of(data):
    with pytest.raises(ImageError) as caught:
        decode(data)
    assert caught.value.code == 4
    return caught.value.reason


GOOD = {
    "JPEG": encoded("JPEG"),
    "JPEG progressive": encoded("JPEG", progressive=True),
    "PNG": encoded("PNG"),
    "WEBP": encoded("WEBP"),
    "WEBP lossless": encoded("WEBP", lossless=True),
    "BMP": encoded("BMP"),
    "GIF": encoded("GIF", PHOTO.convert("P")),
}
JPEG = GOOD["JPEG"]
BMP = GOOD["BMP"]


# Good images come out as Pillow decodes them


@pytest.mark.parametrize("name", GOOD)
def test_decode_gives_what_pillow_gives(name):
    image = decode(GOOD[name])
    with Image.open(io.BytesIO(GOOD[name])) as expected:
        assert (image.mode, image.size, image.format) == (expected.mode, expected.size, expected.format)
        assert image.tobytes() == expected.tobytes()
    assert image.format in STANDARD


@pytest.mark.parametrize(
    ("data", "mode"),
    [
        (encoded("JPEG", PHOTO.convert("CMYK")), "CMYK"),
        (encoded("JPEG", PHOTO.convert("L")), "L"),
        (png(depth=16, pixels=bytes(4 * 9)), "I;16"),
        (png(depth=16, colour=2, pixels=bytes(4 * 25)), "RGB"),
        (png(depth=1, pixels=bytes(4 * 2)), "1"),
        (encoded("PNG", PHOTO.convert("P"), transparency=3), "P"),
        (encoded("PNG", PHOTO.convert("LA")), "LA"),
        (encoded("PNG", PHOTO.convert("RGBA")), "RGBA"),
        (encoded("BMP", PHOTO.convert("1")), "1"),
    ],
)
def test_decode_keeps_the_mode_of_the_file(data, mode):
    image = decode(data)
    assert image.mode == mode
    assert image.convert("RGB").size == image.size


def test_decode_keeps_palette_and_transparency():
    image = decode(encoded("PNG", PHOTO.convert("P"), transparency=3))
    assert image.info["transparency"] == 3
    assert image.palette is not None


@pytest.mark.parametrize("size", [(1, 1), (1, 60_000), (60_000, 1)])
def test_decode_takes_any_aspect(size):
    assert decode(encoded("PNG", Image.new("L", size))).size == size


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_decode_leaves_the_exif_orientation_alone(format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode(encoded(format, exif=exif))
    assert image.size == PHOTO.size
    assert image.getexif()[0x0112] == orientation


def test_decode_gives_the_first_frame():
    frames = [PHOTO, PHOTO.rotate(90), PHOTO.rotate(180)]
    apng = encoded("PNG", save_all=True, append_images=frames[1:])
    apng_with_default = encoded("PNG", save_all=True, default_image=True, append_images=frames[1:])
    assert b"acTL" in apng
    assert decode(apng).tobytes() == decode(apng_with_default).tobytes() == PHOTO.tobytes()
    for format in ("GIF", "WEBP", "MPO"):
        data = encoded(format, save_all=True, append_images=frames[1:])
        with Image.open(io.BytesIO(data)) as expected:
            assert expected.n_frames == 3
            assert decode(data).tobytes() == expected.tobytes()


def test_decode_reads_a_jpeg_with_an_archive_behind_it():
    assert decode(JPEG + b"PK\3\4 and so on").tobytes() == decode(JPEG).tobytes()


def test_decode_loads_an_image_that_the_source_opened(tmp_path):
    (tmp_path / "a.jpg").write_bytes(JPEG)
    (tmp_path / "cut.jpg").write_bytes(JPEG[: len(JPEG) // 2])
    with Image.open(tmp_path / "a.jpg") as image:
        assert decode(image).tobytes() == decode(JPEG).tobytes()
    with Image.open(tmp_path / "cut.jpg") as image:
        assert reason_of(image) == "truncated"
    assert reason_of(Image.new("1", (MAX_IMAGE_PIXELS + 1, 1))) == "too_large"


# Bad data


@pytest.mark.parametrize("name", GOOD)
def test_a_file_cut_anywhere_is_truncated_or_whole(name):
    data = GOOD[name]
    whole = decode(data).tobytes()
    for length in range(1, len(data)):
        try:
            image = decode(data[:length])
        except ImageError as error:
            # Bytes that look like the end of a GIF may come in the midst of its pixels.
            assert error.reason == "truncated" or (name == "GIF" and data[:length].endswith(b"\0;"))  # noqa: PT017
        else:
            assert image.tobytes() == whole
            assert length > len(data) - 24


@pytest.mark.parametrize(
    ("reason", "data"),
    [
        ("truncated", b"\xff"),
        ("truncated", b"\xff\xd8\xff"),
        ("truncated", b"\x89PN"),
        ("truncated", b"GIF8"),
        ("truncated", b"RIFF\0\0\0\0WE"),
        ("truncated", b"BM"),
        ("not_image", b"\0"),
        ("not_image", b"a text named photo.jpg"),
        ("not_image", b"<!DOCTYPE html><html><body>404 <svg/></body></html>"),
        ("not_image", b'{"error": "not found"}'),
        ("not_image", b"PK\3\4" + bytes(60)),
        ("not_image", b"\0\0\0\x20ftypisom" + bytes(60)),
        ("not_image", b"RIFF\x24\0\0\0WAVEfmt " + bytes(30)),
        ("lfs_pointer", b"version https://git-lfs.example/spec/v1\noid sha256:00\nsize 12345\n"),
        ("codec_missing", b"\0\0\0\x20ftypheic" + bytes(60)),
        ("codec_missing", b"\0\0\0\x0cJXL \r\n\x87\n"),
        ("format_not_allowed", b"8BPS\0\1" + bytes(60)),
        ("format_not_allowed", b"%PDF-1.7\n"),
        ("format_not_allowed", b"%!PS-Adobe-3.0 EPSF-3.0\n"),
        ("format_not_allowed", b"\xef\xbb\xbf<?xml version='1.0'?>\n<svg xmlns='x'/>"),
        ("format_not_allowed", b"\x2c\0\0\0\x12\xaf\1\0" + bytes(120)),
        ("format_not_allowed", b"P6\n1 1\n255\nabc"),
        ("corrupt", png(width=0)),
        ("corrupt", png(depth=3)),
        ("corrupt", patched(png(), 29, b"\0\0\0\0")),
        ("corrupt", patched(BMP, 18, struct.pack("<II", 0, 32))),
        ("unsupported_mode", patched(BMP, 30, struct.pack("<I", 4))),
        ("unsupported_mode", patched(JPEG, JPEG.index(b"\xff\xc0") + 4, b"\x0c")),
        ("corrupt", patched(JPEG, JPEG.index(b"\xff\xc4") + 4, b"\xff" * 24)),
        ("corrupt", gif(4, 4, b";")),
        ("corrupt", gif(4, 4, gif_frame(0, 0, 4, 4, b"\x02\0"), b";")),
        ("corrupt", gif(4, 4, gif_frame(0, 0, 0, 4), b";")),
        ("corrupt", patched(GOOD["WEBP"], 23, b"\0\0\0")),
        ("truncated", gif(4, 4)),
    ],
)
def test_bad_data_gets_its_reason(reason, data):
    assert reason_of(data) == reason


@pytest.mark.parametrize("format", ["TIFF", "ICO", "PPM", "JPEG2000", "TGA", "AVIF", "DDS", "EPS", "PDF", "PCX"])
def test_formats_that_pillow_knows_are_still_not_opened(format):
    reason = reason_of(encoded(format))
    assert reason == ("not_image" if format == "PCX" else "format_not_allowed")


def test_a_png_whose_pixels_fail_their_checksum_is_corrupt():
    data = encoded("PNG", compress_level=0)
    at = data.index(b"IDAT") + 200
    assert reason_of(patched(data, at, bytes([data[at] ^ 1]))) == "corrupt"
    assert reason_of(patched(data, data.index(b"IEND") - 8, b"\0\0\0\0")) == "corrupt"


def test_a_png_whose_stream_is_broken_is_corrupt():
    assert reason_of(png(pixels=b"")) in ("corrupt", "truncated")
    header = struct.pack(">IIBBBBB", 4, 4, 8, 0, 0, 0, 0)
    noise = chunk(b"IDAT", b"this is no deflate stream")
    assert reason_of(PNG_MAGIC + chunk(b"IHDR", header) + noise + chunk(b"IEND", b"")) == "corrupt"


def test_a_gif_frame_outside_its_screen_widens_it_or_fails():
    image = decode(gif(4, 4, gif_frame(2, 2, 4, 4, b"\x02\x05\x84\x8f\xa9\xcb\x05\0"), b";"))
    assert image.size == (6, 6)


# Bombs


@pytest.mark.parametrize(
    "data",
    [
        png(60_000, 60_000, pixels=b""),
        png(10_000, 10_000, pixels=b""),
        patched(BMP, 18, struct.pack("<II", 1_000_000, 1_000_000)),
        gif(65_535, 65_535, gif_frame(0, 0, 1, 1), b";"),
        gif(4, 4, b"!\xf9\x04\x08\0\0\0\0", gif_frame(0, 0, 10_000, 10_000), b";"),
        gif(4, 4, b"?!\xfe\x03abc\0", gif_frame(50_000, 0, 10_000, 2_000), b";"),
        patched(encoded("WEBP", save_all=True, append_images=[PHOTO.rotate(90)]), 24, b"\x0f\x27\0" * 2),
        patched(JPEG, JPEG.index(b"\xff\xc0") + 5, struct.pack(">HH", 10_000, 10_000)),
    ],
)
def test_an_image_over_the_pixel_cap_is_refused_from_its_header(data):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert reason_of(data) == "too_large"
    assert not caught


def test_the_pixel_cap_is_where_pillow_would_warn():
    assert MAX_IMAGE_PIXELS == Image.MAX_IMAGE_PIXELS
    width = 9_459
    assert reason_of(png(width, MAX_IMAGE_PIXELS // width + 1, pixels=b"")) == "too_large"
    assert reason_of(png(width, MAX_IMAGE_PIXELS // width, pixels=b"")) == "truncated"


def text_chunk(size):
    return chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(size)))


@pytest.mark.parametrize(
    "extra",
    [
        text_chunk(64 * 2**20),
        text_chunk(1_000_000) * 70,
        chunk(b"iTXt", b"key\0\1\0\0\0" + zlib.compress(bytes(2**21))),
        chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(2**21))),
    ],
)
def test_a_metadata_bomb_is_refused(extra):
    assert reason_of(png(extra=extra)) == "metadata_too_large"


def test_running_out_of_memory_is_a_reason_of_its_own(monkeypatch):
    def no_memory(self):
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load_prepare", no_memory)
    assert reason_of(JPEG) == "out_of_memory"


# Nothing but an image or an ImageError


def broken_exif():
    """An EXIF block whose one entry reaches past its end."""
    entry = struct.pack(">HHII", 0x0128, 3, 5_000, 26)
    return b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 1) + entry + bytes(4)


def jpeg_with(marker, data):
    """A JPEG with this segment in place of JFIF, without which Pillow looks for a resolution in EXIF."""
    after_jfif = 4 + struct.unpack_from(">H", JPEG, 4)[0]
    return JPEG[:2] + marker + struct.pack(">H", len(data) + 2) + data + JPEG[after_jfif:]


@pytest.mark.parametrize(
    "data",
    [
        jpeg_with(b"\xff\xe1", broken_exif()),
        jpeg_with(b"\xff\xe2", b"MPF\0garbage!"),
        png(extra=chunk(b"acTL", bytes(8))),
        png(extra=chunk(b"acTL", struct.pack(">II", 1, 0)) * 2),
    ],
    ids=["EXIF", "MPO", "APNG of no frames", "APNG twice"],
)
def test_what_pillow_warns_of_is_decoded_without_a_word(data):
    with pytest.warns(UserWarning, match="EXIF|Tag|MPO|APNG"), Image.open(io.BytesIO(data)) as expected:
        expected.load()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert decode(data).tobytes() == expected.tobytes()
    assert not caught


SEEDS = [
    *GOOD.values(),
    jpeg_with(b"\xff\xe1", broken_exif()),
    jpeg_with(b"\xff\xe2", b"MPF\0garbage!"),
    encoded("PNG", PHOTO.convert("P"), transparency=3),
    encoded("PNG", save_all=True, append_images=[PHOTO.rotate(90)]),
    encoded("BMP", PHOTO.convert("P")),
    encoded("GIF", save_all=True, append_images=[PHOTO.rotate(90)]),
]


@st.composite
def mutated(draw):
    """An image with a few bytes changed, put in or taken out, most of them in its header; PNG checksums made good."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, min(len(data), draw(st.sampled_from([40, 300, len(data)]))) - 1))
        new = draw(st.binary(min_size=0, max_size=4))
        data[at : at + draw(st.integers(0, 4))] = new
        if not data:
            return b"\0"
    return fresh_checksums(bytes(data)) if draw(st.booleans()) else bytes(data)


def fresh_checksums(data):
    if not data.startswith(PNG_MAGIC):
        return data
    parts, at = [PNG_MAGIC], 8
    while at + 12 <= len(data):
        end = at + 8 + struct.unpack_from(">I", data, at)[0]
        if end + 4 > len(data):
            break
        parts.append(chunk(data[at + 4 : at + 8], data[at + 8 : end]))
        at = end + 4
    return b"".join([*parts, data[at:]])


@given(mutated())
@settings(max_examples=1_500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_mutated_bytes_give_an_image_or_a_known_reason(data):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            image = decode(data)
        except ImageError as error:
            assert error.reason in REASONS  # noqa: PT017
        else:
            assert image.width * image.height <= MAX_IMAGE_PIXELS
            assert image.getpixel((0, 0)) is not None
    assert not caught


def test_every_reason_is_a_code_with_a_meaning():
    for code, meaning in REASONS.items():
        assert code == code.lower()
        assert code.isidentifier()
        assert meaning
