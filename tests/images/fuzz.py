"""Hostile and broken image files, made from small good ones: the same seed gives the same files."""

from __future__ import annotations

import io
import random
import re
import struct
import zlib
from collections.abc import Iterator
from functools import cache

from PIL import Image

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
ODD_NUMBERS = (0, 1, 2, 7, 8, 15, 16, 127, 128, 255, 256, 32_767, 32_768, 65_535, 2**31 - 1, 2**31, 2**32 - 1)
STANDARD = ("jpeg", "png", "gif", "webp", "bmp")


def chunk(kind: bytes, data: bytes) -> bytes:
    """A PNG chunk with its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def chunks(data: bytes) -> Iterator[tuple[int, int]]:
    """Where the whole chunks of a PNG begin and end."""
    at = 8
    while at + 12 <= len(data):
        end = at + 12 + struct.unpack_from(">I", data, at)[0]
        if end > len(data):
            return
        yield at, end
        at = end


def fresh_checksums(data: bytes) -> bytes:
    """The PNG with the checksums of its chunks made good."""
    if not data.startswith(PNG_MAGIC):
        return data
    parts, rest = [PNG_MAGIC], 8
    for at, end in chunks(data):
        parts.append(chunk(data[at + 4 : at + 8], data[at + 8 : end - 4]))
        rest = end
    return b"".join([*parts, data[rest:]])


@cache
def seeds() -> dict[str, bytes]:
    """Small good images of every kind that is opened, by a name that begins with the format."""
    rgb = Image.frombytes("RGB", (40, 28), random.Random(0).randbytes(40 * 28 * 3))
    other = rgb.rotate(90)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x0128] = 6, "a camera", 2
    grey16 = Image.frombytes("I;16", (40, 28), rgb.resize((80, 28)).convert("L").tobytes())
    facts = {"exif": exif, "icc_profile": bytes(range(256)) * 2}
    several = {"save_all": True, "append_images": [other, rgb]}
    found = {
        "jpeg": _file(rgb, "JPEG"),
        "jpeg progressive": _file(rgb, "JPEG", progressive=True),
        "jpeg grey": _file(rgb.convert("L"), "JPEG"),
        "jpeg cmyk": _file(rgb.convert("CMYK"), "JPEG"),
        "jpeg facts": _file(rgb, "JPEG", **facts),
        "jpeg mpo": _file(rgb, "MPO", **several),
        "jpeg restarts": _file(rgb, "JPEG", restart_marker_blocks=2),
        "png": _file(rgb, "PNG"),
        "png 1": _file(rgb.convert("1"), "PNG"),
        "png grey": _file(rgb.convert("L"), "PNG"),
        "png grey 16": _file(grey16, "PNG"),
        "png grey alpha": _file(rgb.convert("LA"), "PNG"),
        "png palette": _file(rgb.convert("P"), "PNG", transparency=bytes(range(200))),
        "png palette 4": _file(rgb.quantize(16), "PNG", bits=4),
        "png alpha": _file(rgb.convert("RGBA"), "PNG", **facts),
        "png 16": _png(40, 28, 16, 2, rgb.resize((80, 28)).tobytes(), 240),
        "png alpha 16": _png(40, 28, 16, 6, rgb.resize((320, 28)).convert("L").tobytes(), 320),
        "png interlaced": INTERLACED,
        "png animated": _file(rgb, "PNG", **several),
        "png animated apart": _file(rgb, "PNG", default_image=True, **several),
        "gif": _file(rgb.convert("P"), "GIF"),
        "gif interlaced": _file(rgb.convert("L"), "GIF", interlace=1),
        "gif animated": _file(rgb.convert("P"), "GIF", transparency=3, comment=b"words", **several),
        "webp": _file(rgb, "WEBP"),
        "webp lossless": _file(rgb.convert("RGBA"), "WEBP", lossless=True, **facts),
        "webp animated": _file(rgb, "WEBP", **several),
        "bmp": _file(rgb, "BMP"),
        "bmp 1": _file(rgb.convert("1"), "BMP"),
        "bmp 8": _file(rgb.convert("P"), "BMP"),
        "bmp 32": _file(rgb.convert("RGBA"), "BMP"),
        "bmp 16": _bmp(16, 0, bytes(80 * 28)),
        "bmp runs": _bmp(8, 1, b"\x28\x07\0\0" * 28 + b"\0\1"),
        "bmp runs 4": _bmp(4, 2, b"\x28\x25\0\0" * 28 + b"\0\1"),
        "avif": _file(rgb, "AVIF"),
        "avif animated": _file(rgb, "AVIF", **several),
        "jpeg2000": _file(rgb, "JPEG2000"),
        "jpeg2000 bare": _file(rgb.convert("L"), "JPEG2000", no_jp2=True),
        "jpeg2000 tiles": _file(rgb, "JPEG2000", tile_size=(16, 16), irreversible=True),
        "tiff": _file(rgb, "TIFF"),
        "tiff pages": _file(rgb, "TIFF", compression="tiff_lzw", **several),
        "tiff tiled": _file(rgb, "TIFF", compression="tiff_adobe_deflate", tiffinfo={322: 16, 323: 16}),
        "tiff predicted": _file(rgb, "TIFF", compression="tiff_lzw", tiffinfo={317: 2}),
        "tiff 16": _file(grey16, "TIFF", compression="packbits"),
        "tiff cmyk": _file(rgb.convert("CMYK"), "TIFF", **facts),
        "tiff palette": _file(rgb.convert("P"), "TIFF", compression="tiff_lzw"),
        "tiff jpeg": _file(rgb.convert("YCbCr"), "TIFF", compression="jpeg"),
        "tiff fax": _file(rgb.convert("1"), "TIFF", compression="group4"),
        "tiff fax 3": _file(rgb.convert("1"), "TIFF", compression="group3"),
    }
    return found


def hostile(count: int, seed: int = 0, formats: tuple[str, ...] = STANDARD) -> Iterator[tuple[str, bytes]]:
    """`count` files made from good ones of these formats, each under the name of what was done to it."""
    rng = random.Random(seed)
    good = {name: data for name, data in seeds().items() if name.split()[0] in formats}
    for _ in range(count):
        name = rng.choice(sorted(good))
        data, done = good[name], []
        for change in rng.choices(CHANGES, k=rng.choice([1, 1, 1, 2, 3])):
            data = change(data, rng, good) or b"\0"
            done.append(change.__name__.strip("_"))
        if rng.random() < 0.5:
            data = fresh_checksums(data)
        yield f"{name}: {', '.join(done)}", data


def _file(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    # Pillow leaves settings of its encoders behind with an image that it has saved.
    further = {"append_images": [other.copy() for other in options.pop("append_images", [])]}
    image.copy().save(file, format, **options, **(further if options.get("save_all") else {}))
    return file.getvalue()


def _png(width: int, height: int, depth: int, colour: int, pixels: bytes, stride: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    rows = b"".join(b"\0" + pixels[at : at + stride] for at in range(0, stride * height, stride))
    parts = [(b"IHDR", header), (b"tEXt", b"key\0words"), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return PNG_MAGIC + b"".join(chunk(kind, data) for kind, data in parts)


# Pillow writes no interlaced PNG. Of 8 x 8 pixels the seven passes have 1, 1, 2, 4, 8, 16 and 32, in rows of 1 to 8.
INTERLACED = PNG_MAGIC + b"".join(
    [
        chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 1)),
        chunk(
            b"IDAT",
            zlib.compress(
                b"".join(
                    (b"\0" + bytes(range(width))) * rows
                    for width, rows in [(1, 1), (1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (8, 4)]
                )
            ),
        ),
        chunk(b"IEND", b""),
    ]
)


def _bmp(bits: int, compression: int, pixels: bytes) -> bytes:
    palette = bytes(range(256)) * (4 << bits >> 8) if bits == 8 else bytes(4 << bits) if bits < 8 else b""
    start = 54 + len(palette)
    head = struct.pack("<2sIHHI", b"BM", start + len(pixels), 0, 0, start)
    return (
        head + struct.pack("<IiiHHIIiiII", 40, 40, 28, 1, bits, compression, len(pixels), 0, 0, 0, 0) + palette + pixels
    )


def _place(data: bytes, rng: random.Random) -> int:
    """Somewhere in the data, most often near its start, where the headers are."""
    return rng.randrange(min(len(data), rng.choice([32, 128, 512, len(data)])))


def _flip_bits(data, rng, good):
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        changed[_place(data, rng)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _set_bytes(data, rng, good):
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = _place(data, rng)
        new = bytes([rng.choice((0, 255, 128, rng.randrange(256)))]) * rng.randint(1, 8)
        changed[at : at + len(new)] = new
    return bytes(changed)


def _set_number(data, rng, good):
    at, size = _place(data, rng), rng.choice([2, 4])
    new = (rng.choice(ODD_NUMBERS) % 256**size).to_bytes(size, rng.choice(["big", "little"]))
    return data[:at] + new + data[at + size :]


def _cut(data, rng, good):
    return data[: rng.randrange(1, len(data) + 1)]


def _cut_out(data, rng, good):
    at = _place(data, rng)
    return data[:at] + data[at + rng.choice([1, 2, 4, 16, 100]) :]


def _repeat(data, rng, good):
    at = _place(data, rng)
    piece = data[at : at + rng.choice([1, 4, 12, 100, 400])]
    return data[:at] + piece * rng.choice([2, 3, 50]) + data[at + len(piece) :]


def _splice(data, rng, good):
    other = good[rng.choice(sorted(good))]
    return data[: rng.randrange(1, len(data) + 1)] + other[rng.randrange(len(other)) :]


def _set_size(data, rng, good):
    """Another width or height where the format keeps it, or anywhere for want of one."""
    form, at = "<I", rng.randrange(len(data))
    if data.startswith(PNG_MAGIC):
        form, at = ">I", rng.choice([16, 20])
    elif data.startswith(b"\xff\xd8") and (frame := re.search(rb"\xff[\xc0-\xc3]\0.\x08", data)):
        form, at = ">H", frame.start() + rng.choice([5, 7])
    elif data.startswith(b"GIF"):
        form, at = "<H", rng.choice([6, 8, max(data.find(b",\0\0\0\0"), 0) + rng.choice([1, 3, 5, 7])])
    elif data.startswith(b"BM"):
        form, at = "<I", rng.choice([18, 22])
    elif data.startswith(b"RIFF"):
        form, at = "<H", rng.choice([24, 26, 27, 29])
    elif data.startswith(b"II*\0") and (entry := re.search(rb"[\x00\x01]\x01[\x03\x04]\x00\x01\x00\x00\x00", data)):
        form, at = "<I", entry.start() + 8
    elif (start := data.find(b"\xffO\xffQ")) >= 0:
        form, at = ">I", start + rng.choice([8, 12, 16, 20, 24, 28])
    elif (start := data.find(b"ispe")) >= 0:
        form, at = ">I", start + rng.choice([8, 12])
    number = rng.choice([*ODD_NUMBERS, rng.randrange(2**16), 10_000, 20_000]) % 256 ** struct.calcsize(form)
    return data[:at] + struct.pack(form, number) + data[at + struct.calcsize(form) :]


def _set_length(data, rng, good):
    """Another length of a chunk, segment, box or entry."""
    if data.startswith(PNG_MAGIC):
        places, form = [at for at, _ in chunks(data)], ">I"
    elif data.startswith(b"\xff\xd8"):
        places, form = [m.end() for m in re.finditer(rb"\xff[\xc0-\xcf\xda-\xef]", data)], ">H"
    elif data.startswith(b"RIFF"):
        places, form = [m.end() for m in re.finditer(rb"RIFF|VP8[ LX]|ANIM|ANMF|ALPH|EXIF|ICCP", data)], "<I"
    elif data.startswith(b"II*\0"):
        places, form = [m.start() + 4 for m in re.finditer(rb"[\x00-\x60]\x01[\x01-\x05]\x00", data)], "<I"
    elif data.startswith(b"BM"):
        places, form = [2, 10, 14, 34, 46], "<I"
    else:
        places, form = [m.start() - 4 for m in re.finditer(rb"ftyp|meta|iloc|ipco|mdat|moov|jp2[hc]|ihdr", data)], ">I"
    at = max(rng.choice(places or [_place(data, rng)]), 0)
    size = struct.calcsize(form)
    old = int.from_bytes(data[at : at + size], "big" if form[0] == ">" else "little")
    number = rng.choice([*ODD_NUMBERS, old + 1, old - 1, old * 2]) % 256**size
    return data[:at] + struct.pack(form, number) + data[at + size :]


def _other_pixels(data, rng, good):
    """A PNG whose compressed stream is whole and holds something else."""
    for at, end in chunks(data):
        if data[at + 4 : at + 8] == b"IDAT":
            try:
                pixels = zlib.decompressobj().decompress(data[at + 8 : end - 4], 10**6)
            except zlib.error:
                return data
            pixels = rng.choice([_flip_bits, _set_bytes, _cut, _repeat])(pixels or b"\0", rng, good)
            return data[:at] + chunk(b"IDAT", zlib.compress(pixels)) + data[end:]
    return data


CHANGES = (
    *(_flip_bits, _flip_bits, _set_bytes, _set_bytes, _set_number, _set_number),
    *(_cut, _cut_out, _repeat, _splice, _set_size, _set_size, _set_length, _set_length, _other_pixels),
)
