"""What an exception says, as short and printable text: it may quote an image, and comes from third-party code."""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from layertap.errors import ImageError
from layertap.images.failure_codes import REASONS
from layertap.records import Cause, dtype_name

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_LONGEST = {"type": 80, "message": 200, "place": 200}

# Codes that do not say what was raised.
_VAGUE = frozenset({"error", "io_error", "out_of_memory"})

_HERE = str(Path(__file__).absolute().parents[1]) + os.sep


class Explained(ImageError):
    """A failure whose cause is known already, such as one in another process."""

    def __init__(self, reason: str, cause: Cause) -> None:
        super().__init__(reason, f"{reason}: {cause}")
        self.cause = cause


def check_form(prepared: Tensor, form: tuple[tuple[int, ...] | None, torch.dtype]) -> None:
    """Raise `ImageError`, `shape`, for a prepared image of another shape or dtype; a shape of None allows any."""
    shape, dtype = form
    if prepared.dtype == dtype and shape in (None, tuple(prepared.shape)):
        return
    found, expected = f"{tuple(prepared.shape)} {dtype_name(prepared)}", str(dtype).removeprefix("torch.")
    expected = expected if shape is None else f"{shape} {expected}"
    what = f"prepared to {found}, not to {expected} as the other images; resize the images to one size"
    raise Explained("shape", cause("shape", what, ""))


def reason_of(error: Exception) -> str:
    """The fixed code for an exception."""
    if isinstance(error, ImageError):
        return error.reason
    # Third-party code may raise anything for an odd image, and one image must not end the run. torch has no class of
    # its own for too little memory.
    return "out_of_memory" if isinstance(error, MemoryError) or "allocate memory" in _text(error) else "error"


def cause_of(error: Exception) -> Cause | None:
    """What an exception says; None where its code says everything."""
    if isinstance(error, Explained):
        return error.cause
    if isinstance(error, ImageError):
        if error.reason in _VAGUE and isinstance(error.__cause__, Exception):
            return cause_of(error.__cause__)
        said = _text(error)
        if (error.reason in REASONS and error.reason not in _VAGUE) or said == error.reason:
            return None
        return cause(type(error).__name__, said.removeprefix(f"{error.reason}: "), _place(error))
    return cause(type(error).__name__, _text(error), _place(error))


def cause(type_name: str, message: str, place: str) -> Cause:
    """A cause of any texts."""
    return Cause(_line("type", type_name), _line("message", message), _line("place", place))


def as_data(found: Cause) -> dict[str, str]:
    """A cause as plain data."""
    return {"type": found.type, "message": found.message, "place": found.place}


def from_data(data: object) -> Cause:
    """The cause in data that are not trusted. Raises `ValueError`."""
    if not isinstance(data, dict) or data.keys() != _LONGEST.keys():
        raise ValueError("not a cause")
    if not all(isinstance(text, str) for text in data.values()):
        raise ValueError("not a cause")
    return cause(data["type"], data["message"], data["place"])


def _text(error: Exception) -> str:
    try:
        return str(error)
    except Exception:
        return ""  # its own method raises


def _line(part: str, text: str) -> str:
    """The first line, or the end of a place, with what is not printable escaped."""
    longest = _LONGEST[part]
    if part == "place":
        text = text if len(text) <= longest else f"...{text[3 - longest :]}"
    else:
        lines = text[: 10 * longest].strip().splitlines()
        text = lines[0] if lines else ""
    text = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def _place(error: Exception) -> str:
    """The last line of third-party code: that of the plugin, not of a library that it calls."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_inside(frame.filename, _HERE)]
    if not frames:
        return ""
    own = [frame for frame in frames if not _is_library(frame.filename)]
    # An installed plugin is a library too: it is what layertap calls.
    entry = os.path.dirname(frames[0].filename)
    last = (own or [frame for frame in frames if _is_inside(frame.filename, os.path.join(entry, ""))] or frames)[-1]
    return f"{last.filename}:{last.lineno}"


def _is_inside(filename: str, folder: str) -> bool:
    return filename.startswith(folder)


def _is_library(filename: str) -> bool:
    parts = Path(filename).parts
    return "site-packages" in parts or "dist-packages" in parts or _is_inside(filename, _STDLIB)


_STDLIB = os.path.dirname(os.__file__) + os.sep
