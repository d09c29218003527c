"""Plain English: none of the phrases of phrases.txt is in the texts that have been gone through. `make lint` runs it.

Spelling is codespell's; its settings are in pyproject.toml.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PHRASES = Path(__file__).with_name("phrases.txt")

# A folder joins when it passes.
CHECKED = [
    "README.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "Makefile",
    "pyproject.toml",
    "docs",
    ".github",
    "configs/*.yaml",
]
CHECKED += ["plugins/README.md", "plugins/layertap_plugins", "layertap"]
CHECKED += ["tests/benchmark", "tests/comparison", "tests/soak", "tests/outsider", "tests/bench"]

SUFFIXES = {".md", ".py", ".yaml", ".yml", ".toml", ".tmpl", ""}


def phrases() -> list[tuple[re.Pattern[str], str]]:
    lines = [line for line in PHRASES.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    pairs = [line.split(" -> ", 1) for line in lines]
    return [(re.compile(pattern, re.IGNORECASE), instead) for pattern, instead in pairs]


def faults(text: str) -> list[str]:
    """`line: phrase: write instead`, in order. A phrase may run over the end of a line, and of a comment's line."""
    words = [(word[0], line) for line, part in enumerate(text.splitlines(), 1) for word in re.finditer(r"\S+", part)]
    words = [(word, line) for word, line in words if word != "#"]
    whole = " ".join(word for word, _ in words)
    found = [(match.start(), match[0], instead) for phrase, instead in phrases() for match in phrase.finditer(whole)]
    line_of = [line for word, line in words for _ in range(len(word) + 1)]
    return [f"{line_of[start]}: {said!r}: write {instead}" for start, said, instead in sorted(found)]


def texts() -> list[Path]:
    named = [path for pattern in CHECKED for path in sorted(ROOT.glob(pattern))]
    files = [file for path in named for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return [file for file in files if file.is_file() and file.suffix in SUFFIXES]


def test_no_checked_text_has_a_phrase_of_the_list():
    said = [f"{file.relative_to(ROOT)}:{fault}" for file in texts() for fault in faults(file.read_text("utf-8"))]
    assert not said, "\n".join(said)


def test_every_checked_place_exists():
    assert [pattern for pattern in CHECKED if not list(ROOT.glob(pattern))] == []


@pytest.mark.parametrize(
    "text",
    [
        "shard_rows: 7 is no multiple of batch_size",
        "the key 'x' stands twice",
        "what is wrong is told\nwith that name",
        "the same command goes\n    # on after the last commit",
        "one row an image",
        "4096 values an image",
        "a time limit an image",
        "all that a run can know",
        "an object of ours",
        "an output that is not as its run has left it",
    ],
)
def test_a_phrase_of_the_list_is_found(text):
    assert faults(text)


@pytest.mark.parametrize(
    "text",
    [
        "there is no sandbox",
        "an image is no longer read",
        "a file that an image comes from",
        "one row per image",
        "the model of a user",
        "give the path of an image",
    ],
)
def test_plain_english_passes(text):
    assert not faults(text)
