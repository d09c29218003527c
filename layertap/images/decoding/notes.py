"""What of an image does not reach its RGB pixels as the file has it: fixed words, found without reading pixels."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

from PIL import Image

NOTES: Mapping[str, str] = {
    "alpha": "it has transparency, which is dropped and not laid over a background",
    "cmyk": "its CMYK values become RGB by Pillow's plain formula, without a colour profile",
    "depth16": "16 bits a channel: of colour the upper 8 are kept, greyscale is cut off at 255",
    "depth32": "32-bit or signed whole numbers, cut off at 0 and 255",
    "exif_orientation": "its EXIF block asks for it to be turned or mirrored",
    "float": "floating-point values, cut off at 0 and 255",
    "frames": "it has several frames or pages, of which the first is taken",
    "icc_profile": "its colour profile is not applied",
    "scaled": "it was decoded at a half, a quarter or an eighth of its size, as the profile allows",
}

# Where `decode` leaves what only the encoded bytes tell. A PNG may hold a text under this very name: no tuple, then.
_KEY = "layertap"

_ALPHA_MODES = frozenset({"RGBA", "RGBa", "LA", "La", "PA"})
_MODES = {"CMYK": "cmyk", "F": "float", "I": "depth32"}

_ORIENTATION = 0x0112
_MP_IMAGES = 0xB001
_NUMBERS = {3: "H", 4: "L"}


def note(image: Image.Image, words: Iterable[str]) -> None:
    """Keep with the image what only its encoded bytes tell, for `notes` to find."""
    image.info.pop(_KEY, None)
    if kept := tuple(words):
        image.info[_KEY] = kept


def notes(image: Image.Image) -> tuple[str, ...]:
    """The words of `NOTES` that are true of a decoded image, sorted. Never raises, warns or prints."""
    info = image.info
    kept = info.get(_KEY)
    found = set(kept) if isinstance(kept, tuple) else set()
    if image.mode in _MODES:
        found.add(_MODES[image.mode])
    elif image.mode.startswith("I;16"):
        found.add("depth16")
    if image.mode in _ALPHA_MODES or "transparency" in info or getattr(image.palette, "mode", "").endswith("A"):
        found.add("alpha")
    if info.get("icc_profile"):
        found.add("icc_profile")
    if _several_frames(image):
        found.add("frames")
    exif = info.get("exif")
    if isinstance(exif, bytes) and _entry(exif, _ORIENTATION) in range(2, 9):
        found.add("exif_orientation")
    return tuple(sorted(found))


def _several_frames(image: Image.Image) -> bool:
    # Only what its reader has counted already: asking a GIF makes Pillow read on, and fail or warn at what it meets.
    count = vars(image).get("n_frames", 1)
    if isinstance(count, int) and count > 1:
        return True
    index = image.info.get("mp")  # a JPEG with further ones behind it
    return isinstance(index, bytes) and (_entry(index, _MP_IMAGES) or 0) > 1


def _entry(block: bytes, wanted: int) -> int | None:
    """The number under a tag of the first directory of an EXIF or MPF block; None where there is none, or no sense.

    Pillow's own reader warns of what it cannot make out.
    """
    tiff = memoryview(block)[6 * block.startswith(b"Exif\0\0") :]
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(bytes(tiff[:4]))
    if order is None:
        return None
    try:
        (at,) = struct.unpack_from(f"{order}L", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, at)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            tag, kind, length = struct.unpack_from(f"{order}HHL", tiff, entry)
            if tag == wanted and length == 1 and kind in _NUMBERS:
                return int(struct.unpack_from(f"{order}{_NUMBERS[kind]}", tiff, entry + 8)[0])
    except struct.error:
        pass  # it ends before it says so
    return None
