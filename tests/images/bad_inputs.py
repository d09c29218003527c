"""Everything that an image file can do wrong, and what each comes to.

The numbers are those of the list of bad inputs that this project holds itself to. A word in brackets says why an
outcome is another one than stands there. Rows 46 and 47, the fuzzers' corpora, are `test_fuzz`; from row 66 on it is
not about files.
"""

from __future__ import annotations

import io
import os
import random
import socket
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.images import fuzz
from tests.images.fuzz import PNG_MAGIC, chunk

KEPT = "kept"
SEEDS = fuzz.seeds()
JPEG, PNG, GIF, WEBP, BMP = (SEEDS[name] for name in ("jpeg", "png", "gif", "webp", "bmp"))
PHOTO = Image.frombytes("RGB", (40, 28), random.Random(1).randbytes(40 * 28 * 3))


@dataclass(frozen=True)
class Case:
    """A bad input: its row in the list, what to call it, its bytes or what makes it at a path, and what it comes to."""

    row: int
    name: str
    content: bytes | Callable[[Path], None]
    outcome: str = KEPT
    asked_for: str = ""  # the outcome where the optional formats are opened, if another one
    because: str = ""  # why the outcome is not the list's
    file: str = ""  # the file's name, where that is what it is about
    known_as: str = ""  # its id, where that is not the name

    @property
    def path(self) -> str:
        return self.file or f"{self.row:02d} {self.name}.jpg"

    @property
    def id(self) -> str:
        return self.known_as or self.path

    def __str__(self) -> str:
        return f"{self.row}: {self.name}" + (f" ({self.because})" if self.because else "")

    def make(self, folder: Path) -> None:
        path = folder / self.path
        path.parent.mkdir(exist_ok=True)
        if callable(self.content):
            self.content(path)
        else:
            path.write_bytes(self.content)


def encoded(format: str, image: Image.Image = PHOTO, **options: Any) -> bytes:
    file = io.BytesIO()
    further = {"append_images": [PHOTO.rotate(90), PHOTO.rotate(180)]} if options.get("save_all") else {}
    image.copy().save(file, format, **options, **further)
    return file.getvalue()


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def png(width: int = 4, height: int = 4, colour: int = 0, extra: bytes = b"", pixels: bytes | None = None) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    data = zlib.compress(bytes(height * (width + 1)) if pixels is None else pixels)
    return PNG_MAGIC + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def gif(width: int, height: int, *blocks: bytes) -> bytes:
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0) + b"".join(blocks)


def gif_frame(left: int, top: int, width: int, height: int, data: bytes = b"\x02\x02\x4c\x01\0") -> bytes:
    return b"," + struct.pack("<HHHHB", left, top, width, height, 0) + data


def tiff(entries, pixels=bytes(16), order="<"):
    """A TIFF of one strip, its numbers given by tag; a list becomes a list of them behind the directory."""
    values = {256: 4, 257: 4, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 4, 279: len(pixels)} | entries
    values = {tag: value for tag, value in values.items() if value is not None}
    directory = 8 + len(pixels)
    behind = directory + 2 + 12 * len(values) + 4
    parts, lists = [], b""
    for tag, value in sorted(values.items()):
        if isinstance(value, list):
            parts.append(struct.pack(f"{order}HHLL", tag, 4, len(value), behind + len(lists)))
            lists += struct.pack(f"{order}{len(value)}L", *value)
        else:
            parts.append(struct.pack(f"{order}HHLL", tag, 4, 1, value))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}L", directory)
    return head + pixels + struct.pack(f"{order}H", len(parts)) + b"".join(parts) + bytes(4) + lists


def link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.write(JPEG)
        file.truncate(20 * 2**30)


def closed(path: Path) -> None:
    path.write_bytes(JPEG)
    path.chmod(0)


def a_socket(path: Path) -> None:
    here = os.open(path.parent, os.O_RDONLY)  # its path has to be short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"/proc/self/fd/{here}/{path.name}")
    finally:
        os.close(here)


def good(number: int) -> bytes:
    image = Image.frombytes("RGB", (50, 40), random.Random(number).randbytes(6_000))
    return encoded("JPEG" if number % 2 else "PNG", image)


def exif(**changes: bytes) -> bytes:
    """A JPEG whose EXIF block is this directory, in place of the segment that Pillow looks at before it."""
    block = b"Exif\0\0MM\0*\0\0\0\x08" + changes["directory"]
    after = 4 + struct.unpack_from(">H", JPEG, 4)[0]
    return JPEG[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + JPEG[after:]


def turned(orientation: int) -> bytes:
    block = Image.Exif()
    block[0x0112] = orientation
    return encoded("PNG", exif=block)


def scan_starts(data: bytes) -> list[int]:
    """Where the scans of a JPEG begin."""
    starts, at = [], 2
    while data[at + 1] != 0xD9:
        if data[at] != 0xFF or data[at + 1] == 0 or 0xD0 <= data[at + 1] <= 0xD7:
            at += 1 + (data[at] == 0xFF)
            continue
        if data[at + 1] == 0xDA:
            starts.append(at)
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return starts


PROGRESSIVE = SEEDS["jpeg progressive"]
SCANS = scan_starts(PROGRESSIVE)
FLOATS = np.array([np.nan, np.inf, -np.inf, 0.5] * 4, "<f4").tobytes()
PDF = b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n"
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"
NOT_OPENED = "format_not_allowed"


CASES = [
    Case(1, "of no bytes", b"", "empty"),
    Case(2, "one byte", b"\xff", "truncated"),
    *(
        Case(2, f"magic of {magic[:4]!r}".replace("/", ""), magic, "truncated")
        for magic in (b"\xff\xd8\xff", PNG_MAGIC, b"GIF89a", b"RIFF\xff\0\0\0WEBP", b"BM")
    ),
    Case(3, "jpeg cut in half", JPEG[: len(JPEG) // 2], "truncated"),
    Case(4, "progressive without its last scans", PROGRESSIVE[: SCANS[3]], "truncated"),
    Case(4, "progressive ended after three scans", PROGRESSIVE[: SCANS[3]] + b"\xff\xd9"),
    Case(5, "png cut in half", PNG[: len(PNG) // 2], "truncated"),
    Case(5, "png without its end", PNG[:-12]),
    Case(6, "png with a bad checksum", patched(PNG, PNG.index(b"IDAT") + 20, b"????"), "corrupt"),
    Case(6, "png of another stream", png(pixels=b"").replace(zlib.compress(b""), b"deflated"), "corrupt"),
    Case(7, "xs1", patched(PNG, 0, b"\x09"), "not_image", because="its magic is gone"),
    Case(7, "xs2", patched(PNG, 1, b"pNG"), "not_image", because="its magic is gone"),
    Case(7, "xs4", patched(PNG, 4, b"\n"), "not_image", because="its magic is gone"),
    Case(7, "xs7", patched(PNG, 7, b"\r"), "not_image", because="its magic is gone"),
    Case(7, "xcr", PNG.replace(b"\n", b"\r\n"), "not_image", because="its magic is gone"),
    Case(7, "xlf", PNG.replace(b"\r\n", b"\n"), "not_image", because="its magic is gone"),
    *(
        Case(7, f"x{name}", fuzz.fresh_checksums(patched(PNG, at, bytes([number]))), "corrupt")
        for name, at, number in [("c1", 25, 1), ("c9", 25, 9), ("d0", 24, 0), ("d3", 24, 3), ("d9", 24, 99)]
    ),
    Case(7, "xcs", patched(PNG, len(PNG) - 16, bytes(4)), "corrupt"),
    Case(7, "xhd", patched(PNG, 29, bytes(4)), "corrupt"),
    Case(7, "xdt", PNG[:33] + PNG[-12:], "corrupt"),
    Case(8, "gif of no frames", gif(4, 4, b";"), "corrupt"),
    Case(8, "gif of no pixels", gif(4, 4, gif_frame(0, 0, 4, 4, b"\x02\0"), b";"), "corrupt"),
    Case(8, "gif of bad lzw", gif(4, 4, gif_frame(0, 0, 4, 4, b"\x02\x02\xff\xff\0"), b";"), "corrupt"),
    Case(9, "gif frame of no width", gif(4, 4, gif_frame(0, 0, 0, 4), b";"), "corrupt"),
    Case(9, "gif frame out of bounds", gif(4, 4, gif_frame(2, 2, 4, 4, b"\x02\x05\x84\x8f\xa9\xcb\x05\0"), b";")),
    Case(10, "tiff of bad lzw", tiff({259: 5}), NOT_OPENED, "corrupt"),
    Case(10, "tiff that leads nowhere", b"II*\0\xff\xff\xff\x7f", NOT_OPENED, "truncated"),
    Case(11, "tiff of 3.6 gigapixels", tiff({256: 60_000, 257: 60_000}), NOT_OPENED, "too_large"),
    Case(
        11,
        "tiff of one huge tile",
        tiff({273: None, 279: None, 322: 60_000, 323: 60_000, 324: 8, 325: 16}),
        NOT_OPENED,
        "too_large",
    ),
    Case(12, "gif with a megabyte of nothing", gif(4, 4, bytes(2**20), b";"), "corrupt"),
    Case(12, "xpm", b"/* XPM */" + bytes(2**16), NOT_OPENED),
    Case(13, "psd", b"8BPS\0\1" + bytes(64), NOT_OPENED),
    Case(14, "fli", b"\x2c\0\0\0\x12\xaf\1\0" + bytes(120), NOT_OPENED),
    Case(15, "bmp of a huge size", patched(BMP, 18, struct.pack("<II", 3_000_000, 2_000_000)), "too_large"),
    Case(15, "bmp of no width", patched(BMP, 18, bytes(4)), "corrupt"),
    Case(15, "bmp of 0 bits", patched(BMP, 28, bytes(2)), "unsupported_mode"),
    Case(15, "bmp of an odd header", patched(BMP, 14, b"\x29"), "unsupported_mode"),
    Case(15, "bmp of a jpeg", patched(BMP, 30, b"\4"), "unsupported_mode"),
    Case(15, "bmp of too large a palette", patched(SEEDS["bmp 8"], 46, b"\xff\xff\xff\x0f"), "unsupported_mode"),
    Case(15, "bmp upside down", patched(BMP, 22, struct.pack("<i", -28))),
    Case(16, "gif bomb", gif(65_535, 65_535, gif_frame(0, 0, 1, 1), b";"), "too_large"),
    Case(16, "gif bomb by its frame", gif(4, 4, gif_frame(0, 0, 60_000, 60_000), b";"), "too_large"),
    Case(16, "ico bomb", b"\0\0\1\0\1\0" + bytes(40), NOT_OPENED),
    Case(17, "png of 60,000 x 60,000", png(60_000, 60_000, pixels=b""), "too_large"),
    Case(18, "strip of 1 x 60,000", encoded("PNG", Image.new("L", (1, 60_000))), "aspect"),
    Case(
        19,
        "png of packed text",
        png(extra=chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**24)))),
        "metadata_too_large",
    ),
    Case(21, "sparse file of 20 GB", sparse, "file_too_large"),
    Case(22, "cmyk jpeg", SEEDS["jpeg cmyk"]),
    Case(22, "ycck jpeg", SEEDS["jpeg cmyk"].replace(b"Adobe\0d\0\0\0\0\0", b"Adobe\0d\0\0\0\0\2")),
    Case(23, "grey png of 16 bits", SEEDS["png grey 16"], because="clipped as by Pillow, unless depth: rescale"),
    Case(23, "grey tiff of 16 bits", SEEDS["tiff 16"], NOT_OPENED, KEPT),
    Case(23, "grey pgm of 16 bits", b"P5\n2 2\n65535\n" + bytes(8), NOT_OPENED, because="pgm is not opened"),
    Case(24, "colour png of 16 bits", SEEDS["png 16"]),
    Case(24, "alpha png of 16 bits", SEEDS["png alpha 16"]),
    Case(25, "tiff of 12 bits", tiff({258: 12}, bytes(24)), NOT_OPENED, KEPT),
    Case(26, "palette", SEEDS["png palette 4"]),
    Case(26, "palette with transparency", SEEDS["png palette"]),
    Case(26, "palette with one transparent colour", encoded("PNG", PHOTO.convert("P"), transparency=3)),
    Case(26, "palette without that colour", png(colour=3, extra=chunk(b"PLTE", bytes(6)), pixels=b"\0\xff\1\2\3" * 4)),
    Case(27, "rgba", SEEDS["png alpha"]),
    Case(27, "grey with alpha", SEEDS["png grey alpha"]),
    Case(28, "one bit", SEEDS["png 1"]),
    Case(28, "grey", SEEDS["jpeg grey"]),
    Case(29, "floating-point tiff", tiff({258: 32, 339: 3}, FLOATS), NOT_OPENED, "unsupported_mode"),
    Case(30, "tiff of 32-bit numbers", tiff({258: 32}, bytes(64)), NOT_OPENED, "unsupported_mode"),
    Case(31, "lab tiff", encoded("TIFF", PHOTO.convert("LAB")), NOT_OPENED, KEPT),
    Case(31, "broken profile", encoded("JPEG", icc_profile=b"no profile at all")),
    Case(31, "large profile", encoded("JPEG", icc_profile=bytes(2**20))),
    Case(31, "png with a broken profile", png(extra=chunk(b"iCCP", b"name\0\0broken"))),
    Case(
        31,
        "png with a huge profile",
        png(extra=chunk(b"iCCP", b"n\0\0" + zlib.compress(bytes(2**22)))),
        "metadata_too_large",
    ),
    *(Case(32, f"orientation {number}", turned(number)) for number in range(1, 9)),
    Case(33, "exif of odd types", exif(directory=b"\0\1\x01\x12\0\x63\0\0\0\1\0\6\0\0" + bytes(4))),
    Case(33, "exif that leads to itself", exif(directory=b"\0\1\x87\x69\0\4\0\0\0\1\0\0\0\x08\0\0\0\x08")),
    Case(33, "exif past its end", exif(directory=b"\0\1\x01\x28\0\3\0\0\x13\x88\0\0\0\x1a" + bytes(4))),
    Case(34, "animated gif", SEEDS["gif animated"]),
    Case(34, "animated webp", SEEDS["webp animated"]),
    Case(34, "animated png", SEEDS["png animated"]),
    Case(34, "mpo", SEEDS["jpeg mpo"]),
    Case(34, "tiff of pages", SEEDS["tiff pages"], NOT_OPENED, KEPT),
    Case(35, "apng of no frames", png(extra=chunk(b"acTL", bytes(8)))),
    Case(35, "apng of too many frames", png(extra=chunk(b"acTL", b"\xff" * 8))),
    Case(36, "png by the name of a jpeg", PNG),
    Case(38, "html", b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "not_image"),
    Case(38, "json", b'{"error": "not found"}', "not_image"),
    Case(39, "lfs pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "lfs_pointer"),
    Case(40, "pdf", PDF, NOT_OPENED),
    Case(40, "eps", EPS, NOT_OPENED),
    Case(
        40,
        "eps with a preview",
        b"\xc5\xd0\xd3\xc6" + struct.pack("<6IH", 32, len(EPS), 0, 0, 0, 0, 0) + EPS,
        NOT_OPENED,
    ),
    Case(40, "svg", b"<?xml version='1.0'?>\n<svg xmlns='x'/>", NOT_OPENED),
    Case(41, "heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(60), "codec_missing"),
    Case(41, "jpeg xl", b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(60), "codec_missing"),
    Case(41, "avif", SEEDS["avif"], NOT_OPENED, KEPT),
    Case(41, "jpeg 2000", SEEDS["jpeg2000"], NOT_OPENED, KEPT),
    Case(41, "avif cut in half", SEEDS["avif"][: len(SEEDS["avif"]) // 2], NOT_OPENED, "truncated"),
    Case(41, "jpeg 2000 cut in half", SEEDS["jpeg2000"][: len(SEEDS["jpeg2000"]) // 2], NOT_OPENED, "truncated"),
    Case(42, "jpeg and archive in one", JPEG + b"PK\3\4" + bytes(100)),
    Case(43, "mp4", b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(60), "not_image"),
    Case(43, "zip", b"PK\3\4" + bytes(60), "not_image"),
    Case(43, "camera's raw file", b"II*\0\x10\0\0\0CR\2\0" + bytes(60), NOT_OPENED, because="it is a tiff of sorts"),
    Case(44, "1 x 1", encoded("PNG", Image.new("RGB", (1, 1)))),
    Case(45, "png of no width", png(width=0), "corrupt"),
    Case(45, "webp of no width", patched(WEBP, 26, bytes(2)), "corrupt"),
    Case(48, "name that is not utf-8", JPEG, file=os.fsdecode(b"48 \xff.jpg"), known_as="48 %FF.jpg"),
    *(
        Case(49, f"name with {what}", JPEG, file=f"49 a{character}b.jpg")
        for what, character in [
            ("newline", "\n"),
            ("tab", "\t"),
            ("quote", '"'),
            ("escape", "\x1b[31m"),
            ("comma", ","),
        ]
    ),
    Case(49, "name with a leading dash", JPEG, file="-rf.jpg"),
    Case(49, "name like a formula", JPEG, file="=1+1.jpg"),
    Case(49, "bad file of an odd name", b"text", "not_image", file='49 "\x1b[2J\r\n\u2028\u202e,.jpg'),
    Case(50, "name of 255 bytes", JPEG, file="50" + "x" * 249 + ".jpg"),
    Case(51, "name in composed form", JPEG, file="51 \u00e9.jpg"),
    Case(51, "name in decomposed form", JPEG, file="51 e\u0301.jpg"),
    Case(51, "name in upper case", JPEG, file="51 E.jpg"),
    Case(51, "name in lower case", JPEG, file="51 e.jpg"),
    Case(52, "one name in two folders", JPEG, file="52 cats/a.jpg"),
    Case(52, "one name in two folders, again", PNG, file="52 dogs/a.jpg"),
    Case(55, "twins", JPEG),
    Case(55, "twins, again", JPEG),
    Case(56, "dangling link", link("nowhere"), "not_found"),
    Case(56, "link to itself", link("56 link to itself.jpg"), "not_found"),
    Case(57, "link to the passwords", link("/etc/passwd"), "outside_root"),
    Case(57, "link to an endless file", link("/dev/zero"), "outside_root"),
    Case(57, "link within the folder", link("55 twins.jpg")),
    Case(58, "pipe", os.mkfifo, "not_regular"),
    Case(58, "socket", a_socket, "not_regular"),
    Case(59, "closed file", closed, "permission" if os.geteuid() else KEPT, because="" if os.geteuid() else "for root"),
]
ROWS = sorted({case.row for case in CASES})
