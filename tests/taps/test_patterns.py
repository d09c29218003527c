"""Any regular expression of Python's is a tap's; one without an answer ends in an error, and not in a hang."""

from __future__ import annotations

import re
import sys

import pytest
from torch import nn

import layertap
from layertap import TapError
from layertap.taps import patterns


def tree(paths):
    """A model whose layers are exactly these paths and what lies above them."""
    root = nn.Module()
    for path in paths:
        at = root
        for part in path.split("."):
            if part not in at._modules:
                at.add_module(part, nn.Identity())
            at = at._modules[part]
    return root


PATHS = [
    *(f"layer{stage}.{block}.{part}" for stage in (1, 2, 3) for block in (0, 1) for part in ("conv1", "conv2", "bn1")),
    *("layer1.0.down.0.conv1", "blocks.0.attn", "blocks.0.mlp", "blocks.0.blocks.1.attn", "blocks.10.attn", "head"),
    "blocks.0.blocks.1.blocks.2.attn",
]
MODEL = tree(PATHS)
LAYERS = [path for path, _ in MODEL.named_modules() if path]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        (
            r"(blocks\.\d+\.)+attn",
            ["blocks.0.attn", "blocks.0.blocks.1.attn", "blocks.0.blocks.1.blocks.2.attn", "blocks.10.attn"],
        ),
        (
            r"layer[12](\.\d+)*\.conv\d",
            [f"layer{stage}.{block}.conv{number}" for stage in (1, 2) for block in (0, 1) for number in (1, 2)],
        ),
        (r"(?!layer|blocks).*", ["head"]),
        (r"(\w+)\.\d+\.\1\.\d+", ["blocks.0.blocks.1"]),
        (r"(?i:HEAD|.*\.MLP)", ["blocks.0.mlp", "head"]),
        (r"(?x) blocks (\.\d+)* # numbers", ["blocks", "blocks.0", "blocks.10"]),
    ],
)
def test_ordinary_expression_finds_its_layers(pattern, found):
    assert sorted(layertap.TappedModel(MODEL, f"re:{pattern}")) == sorted(found)


@pytest.mark.parametrize(
    "pattern",
    [
        r"layer[12]\..*",
        r".*\.conv\d",
        r"layer(1|3)\.(0|1)\.(conv|bn)\d",
        r"((layer|blocks|down|attn|\d+)\.?)+",
        r"(?:[a-z]+\d?\.)*?conv[12]",
        r"(?>layer\d)\.(?P<block>\d+)\.conv(?P=block)",
        r".*(?<!attn)(?<!mlp)",
        r"blocks(\.\d+(\.blocks)?)+",
        r"(a*)*(b*)*head",
        r"[^.]+(\.[^.]+){2}",
        r"head|(layer1.*)+",
        "",
    ],
)
def test_expression_means_what_it_means_in_python(pattern):
    layer = f"re:{pattern}" if pattern else r"re:\b"
    expected = [path for path in LAYERS if re.fullmatch(pattern or r"\b", path)]
    assert list(patterns.matching(layer, LAYERS)) == expected


@pytest.mark.parametrize("pattern", ["re:((.|.?.|.?.?.)+)+!", r"re:((\w|\d|[a-z.])+.?)+!", "re:(.?.?){60}!"])
def test_expression_without_an_answer_ends_in_an_error_with_a_way_out(monkeypatch, pattern):
    monkeypatch.setattr(patterns, "_SECONDS", 0.5)
    with pytest.raises(TapError) as caught:
        layertap.tap(MODEL, ["head", pattern])
    error = caught.value
    assert (error.where, error.code) == (("taps", 1), 2)
    assert str(error).startswith(
        f"taps[1]: {pattern!r} is too slow: matching it against {len(LAYERS)} layers took more"
    )
    assert str(error).endswith("than 0.5 s; write a glob, such as `**.relu`, or several taps")


def test_expression_that_would_fill_the_memory_ends_in_an_error():
    with pytest.raises(TapError, match=r"cannot be matched against \d+ layers \(MemoryError|is too slow"):
        layertap.tap(MODEL, ["re:(((((){1000}){1000}){1000}){1000}){1000}"])


def test_plain_expression_needs_no_other_process_and_others_say_what_is_missing(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    assert list(layertap.TappedModel(MODEL, r"re:blocks\.\d+\.attn")) == ["blocks.0.attn", "blocks.10.attn"]
    with pytest.raises(TapError, match=r"cannot be matched: no process can be started \(No such file or directory\)"):
        layertap.tap(MODEL, [r"re:(blocks\.\d+\.)+attn"])
