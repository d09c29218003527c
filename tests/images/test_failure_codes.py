"""The codes of failed images: each in words, and which of them another attempt may mend."""

from __future__ import annotations

import pytest

from layertap.images.failure_codes import REASONS, may_pass, refusal


def test_every_code_is_one_word_and_said_in_one_line():
    for code, words in REASONS.items():
        assert code.replace("_", "").isalnum()
        assert words == " ".join(words.split())
        assert (refusal(code).reason, str(refusal(code))) == (code, f"{code}: {words}")


@pytest.mark.parametrize("code", ["network", "timeout", "not_found", "permission", "changed", "io_error"])
def test_what_a_server_does_today_may_pass(code):
    assert may_pass("read", code)
    assert code in REASONS


@pytest.mark.parametrize("code", ["unsafe_member", "file_too_large", "empty", "outside_root"])
def test_what_lies_in_the_file_does_not_pass(code):
    assert not may_pass("read", code)
    assert code in REASONS


def test_a_sources_own_code_may_pass_and_a_broken_image_does_not():
    assert may_pass("read", "a_code_of_its_own")
    assert not may_pass("decode", "truncated")
