"""wire: a prepared image crosses from one process to another unchanged, and nothing else is trusted."""

from __future__ import annotations

import io
import json
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layertap.errors import ImageError
from layertap.images.decoding.wire import receive, send_decoded, send_failure, send_prepared
from layertap.images.failure_codes import REASONS

FORM = ((2, 2), torch.uint8)
GOOD = torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8)


def written(tensor: torch.Tensor = GOOD, notes: tuple[str, ...] = ("alpha",)) -> bytes:
    pipe = io.BytesIO()
    send_decoded(pipe)
    send_prepared(pipe, (tensor, notes))
    return pipe.getvalue()


def read(data: bytes, form: object = FORM) -> tuple[torch.Tensor, tuple[str, ...], int]:
    pipe = io.BytesIO(data)
    stages = []
    tensor, notes = receive(pipe, form, lambda: stages.append("prepare"))
    assert pipe.read() == b""
    return tensor, notes, len(stages)


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int16, torch.int64, torch.bool, torch.float16, torch.bfloat16, torch.float32]
)
@pytest.mark.parametrize("shape", [(3, 5, 7), (4,), (), (0, 3), (1, 1, 1)])
def test_every_dtype_and_shape_crosses_bit_for_bit(dtype, shape):
    bits = torch.randint(0, 2, shape).to(dtype) if dtype == torch.bool else torch.randn(shape).mul(100).to(dtype)
    for tensor in (bits, bits.flip(0) if shape else bits, bits.mT if len(shape) > 1 else bits):
        found, notes, stages = read(written(tensor, ("cmyk", "frames")), (tuple(tensor.shape), dtype))
        assert (found.dtype, found.shape, found.is_contiguous()) == (dtype, tensor.shape, True)
        assert torch.equal(found, tensor)
        assert (notes, stages) == (("cmyk", "frames"), 1)


def test_values_that_are_no_numbers_cross_too():
    odd = torch.tensor([float("nan"), float("inf"), -0.0])
    found, _, _ = read(written(odd), ((3,), torch.float32))
    assert found.numpy().tobytes() == odd.numpy().tobytes()


@pytest.mark.parametrize("reason", REASONS)
def test_failure_is_received_as_the_error_that_it_was(reason):
    pipe = io.BytesIO()
    send_failure(pipe, reason)
    with pytest.raises(ImageError) as caught:
        read(pipe.getvalue())
    assert (caught.value.reason, str(caught.value)) == (reason, f"{reason}: {REASONS[reason]}")


def test_a_preprocessor_may_have_reasons_of_its_own_and_a_decoder_may_not():
    pipe = io.BytesIO()
    send_failure(pipe, "too_blue")
    with pytest.raises(ValueError, match="not an answer"):
        read(pipe.getvalue())
    decoded = io.BytesIO()
    send_decoded(decoded)
    with pytest.raises(ImageError) as caught:
        read(decoded.getvalue() + pipe.getvalue())
    assert caught.value.reason == "too_blue"


def header(value: object) -> bytes:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return struct.pack(">I", len(text)) + text


DECODED = header({"decoded": True})


def test_the_answer_that_the_next_test_spoils_is_good():
    assert torch.equal(read(DECODED + header({"notes": ["alpha"]}) + b"\1\2\3\4")[0], GOOD)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\0",
        struct.pack(">I", 2**31),
        header({"notes": []}) + b"\1\2\3\4",
        DECODED,
        DECODED + DECODED + b"\1\2\3\4",
        DECODED + header({"notes": []}) + b"\1\2\3",
        *(
            DECODED + header(value) + b"\1\2\3\4"
            for value in ({}, [], 1, None, {"notes": None}, {"notes": "alpha"}, {"notes": ["other"]}, {"notes": [[]]})
        ),
        *(DECODED + header({"failure": value}) for value in (None, 1, [], {}, "", "Two Words", "x\n", "x" * 99, "é")),
        *(header(value) for value in (b"{", b"\xff", b"[" * 4_000, b"x" * 5_000, b'"decoded"')),
    ],
)
def test_an_answer_that_nobody_would_write_is_a_value_error(data):
    with pytest.raises(ValueError):  # noqa: PT011
        read(data)


@given(st.binary())
def test_noise_is_a_value_error(data):
    with pytest.raises(ValueError):  # noqa: PT011
        read(data)


@given(st.binary(min_size=1, max_size=8), st.integers(0, 60))
def test_an_answer_with_any_bytes_spoilt_is_an_image_or_an_error(data, at):
    good = written()
    try:
        tensor, _, _ = read(good[:at] + data + good[at + len(data) :])
    except (ImageError, ValueError, AssertionError):
        return
    assert (tuple(tensor.shape), tensor.dtype) == FORM


@pytest.mark.parametrize("shape", [None, "4", [-4], [2.0, 2], [True, 4], [2**40], [2**20] * 3, [1] * 9, [5]])
def test_shape_of_an_image_of_any_size_is_not_trusted(shape):
    def made(named):
        return io.BufferedReader(io.BytesIO(DECODED + header({"notes": [], "shape": named}) + b"\1\2\3\4"))

    anything = (None, torch.uint8)
    assert receive(made([2, 2]), anything, lambda: None)[0].tolist() == [[1, 2], [3, 4]]
    with pytest.raises(ValueError, match="not an answer"):
        receive(made(shape), anything, lambda: None)
