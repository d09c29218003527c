"""What the RGB pixels of an image do not keep from its file: fixed words, found without reading pixels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from PIL import Image

from layertap.images.exif import entry, exif_orientation

NOTES: Mapping[str, str] = {
    "alpha": "it has transparency, which is dropped and not composited over a background",
    "cmyk": "its CMYK values become RGB by Pillow's plain formula, without a colour profile",
    "depth16": "16 bits per channel: colour keeps the upper 8, greyscale is clipped at 255",
    "depth32": "32-bit or signed integers, clipped at 0 and 255",
    "exif_orientation": "its EXIF block asks for it to be turned or mirrored",
    "float": "floating-point values, clipped at 0 and 255",
    "frames": "it has several frames or pages; the first is used",
    "icc_profile": "its colour profile is not applied",
    "scaled": "it was decoded at a half, a quarter or an eighth of its size, as the profile allows",
}

# `decode` stores here what only the encoded bytes show. A PNG may have a text with this name, which is not a tuple.
_KEY = "layertap"

_ALPHA_MODES = frozenset({"RGBA", "RGBa", "LA", "La", "PA"})
_MODES = {"CMYK": "cmyk", "F": "float", "I": "depth32"}

_MP_IMAGES = 0xB001


def note(image: Image.Image, words: Iterable[str]) -> None:
    """Store with the image what only its encoded bytes show, for `notes` to find."""
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
    if exif_orientation(image) != 1:
        found.add("exif_orientation")
    return tuple(sorted(found))


def _several_frames(image: Image.Image) -> bool:
    # Only what its reader has counted already: asking a GIF makes Pillow read further, and fail or warn.
    count = vars(image).get("n_frames", 1)
    if isinstance(count, int) and count > 1:
        return True
    index = image.info.get("mp")  # a JPEG that is followed by others
    return isinstance(index, bytes) and (entry(index, _MP_IMAGES) or 0) > 1
