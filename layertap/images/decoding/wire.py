"""A prepared image on its way from the process that made it: its facts in JSON, then the bytes of the tensor.

An image may have taken over the process that decoded it, so nothing that arrives is trusted: every fact is one of a few
known kinds, and every length is the one that is expected. Nothing is unpickled.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Mapping
from io import BufferedReader
from math import prod
from typing import Any, BinaryIO, TypeAlias

import torch
from torch import Tensor

from layertap.errors import ImageError
from layertap.images.causes import Explained, as_data, from_data
from layertap.images.decoding.bounds import MEMORY
from layertap.images.decoding.notes import NOTES
from layertap.images.failure_codes import REASONS, refusal
from layertap.records import Cause

Form: TypeAlias = tuple[tuple[int, ...] | None, torch.dtype]
"""The shape and dtype of every prepared image; the shape is None where images have different ones."""

Prepared: TypeAlias = tuple[Tensor, tuple[str, ...]]
"""A prepared image, and the words of `layertap.images.decoding.notes.NOTES` that are true of it."""

_HEADER = struct.Struct(">I")
_LONGEST_HEADER = 2**12

# What a prepared image of any shape may be, in bytes: this process allocates what the other one names.
_MOST_AXES, _LARGEST = 8, MEMORY

# What a preprocessor may fail an image with besides the codes that are known here.
_CODE = re.compile(r"[a-z][a-z0-9_]{0,63}")


def send_decoded(pipe: BinaryIO) -> None:
    """Write that the image is decoded, and is being prepared from now on."""
    _send_header(pipe, {"decoded": True})
    pipe.flush()


def send_prepared(pipe: BinaryIO, prepared: Prepared) -> None:
    """Write a prepared image that `receive` gives back bit for bit."""
    tensor, notes = prepared
    _send_header(pipe, {"notes": notes, "shape": list(tensor.shape)})
    pipe.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    pipe.flush()


def send_failure(pipe: BinaryIO, reason: str, cause: Cause | None = None) -> None:
    """Write that there is no image, and why."""
    _send_header(pipe, {"failure": reason} | ({"cause": as_data(cause)} if cause else {}))
    pipe.flush()


def receive(pipe: BufferedReader, form: Form, decoded: Callable[[], None]) -> Prepared:
    """The next image; `decoded` is called once it is only being prepared.

    Raises `ImageError` where that is the answer, and `ValueError` for an answer that `send_...` would not have written.
    """
    header = _header(pipe)
    was_decoded = header == {"decoded": True}
    if was_decoded:
        decoded()
        header = _header(pipe)
    if "failure" in header:
        raise _failure(header["failure"], header.get("cause"), was_decoded)
    notes = header.get("notes")
    _check(was_decoded and isinstance(notes, list) and all(isinstance(word, str) for word in notes))
    assert isinstance(notes, list)
    _check(NOTES.keys() >= set(notes))
    expected, dtype = form
    shape = _shape(header.get("shape"), dtype) if expected is None else expected
    data = bytearray(prod(shape) * dtype.itemsize)
    _check(pipe.readinto(data) == len(data))
    return (torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)).view(shape), tuple(notes)


def _shape(found: object, dtype: torch.dtype) -> tuple[int, ...]:
    _check(isinstance(found, list) and len(found) <= _MOST_AXES and all(type(length) is int for length in found))
    assert isinstance(found, list)
    _check(all(0 <= length <= _LARGEST for length in found) and prod(found) * dtype.itemsize <= _LARGEST)
    return tuple(found)


def _failure(reason: object, cause: object, was_decoded: bool) -> ImageError:
    known = isinstance(reason, str) and reason in REASONS
    _check(isinstance(reason, str) and (known or (was_decoded and _CODE.fullmatch(reason) is not None)))
    assert isinstance(reason, str)
    if cause is not None:
        return Explained(reason, from_data(cause))
    return refusal(reason) if known else ImageError(reason)


def _header(pipe: BinaryIO) -> Mapping[str, Any]:
    (length,) = _HEADER.unpack(_exactly(pipe, _HEADER.size))
    _check(length <= _LONGEST_HEADER)
    try:
        header = json.loads(_exactly(pipe, length))
    except RecursionError as error:
        raise ValueError("not an answer of the child") from error
    _check(isinstance(header, dict))
    assert isinstance(header, dict)
    return header


def _send_header(pipe: BinaryIO, header: Mapping[str, Any]) -> None:
    # A plugin's own code may contain letters that UTF-8 cannot hold; the receiver refuses it.
    text = json.dumps(header, ensure_ascii=False).encode(errors="backslashreplace")
    pipe.write(_HEADER.pack(len(text)) + text)


def _exactly(pipe: BinaryIO, length: int) -> bytes:
    data = pipe.read(length)
    _check(len(data) == length)
    return data


def _check(good: bool) -> None:
    if not good:
        raise ValueError("not an answer of the child")
