"""The page on writing plugins, followed to the letter: every file, every command, in the order of the page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import layertap
from layertap import hookspecs, testing
from layertap.plugins import KINDS

PAGE = Path(__file__).parents[1] / "docs" / "plugins" / "writing.md"
TEXT = PAGE.read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)

INSTALL = "-m uv pip install --python {python} --offline --no-cache" if find_spec("uv") else "-m pip install --no-index"


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """The output of each block, by its first line; the commands are those of this environment, without a network."""
    folder = tmp_path_factory.mktemp("reader")
    commands, installed = folder / "bin", folder / "installed"
    commands.mkdir()
    install = f"{INSTALL.format(python=sys.executable)} --no-deps --no-build-isolation --target {installed}"
    for name, words in {"layertap": "-m layertap", "pytest": "-m pytest -p no:cacheprovider", "pip": install}.items():
        # `pip install X` already contains the word `install` at its start.
        shift = "shift\n" if name == "pip" else ""
        (commands / name).write_text(f'#!/bin/sh\n{shift}exec {sys.executable} {words} "$@"\n')
        (commands / name).chmod(0o755)
    env = {**os.environ, "PATH": f"{commands}:{os.environ['PATH']}", "PYTHONPATH": str(installed)}
    env.pop("LAYERTAP_PLUGINS", None)
    printed = {}
    for language, text in BLOCKS:
        first, *_ = text.splitlines()
        if named := re.fullmatch(r"# (\w+\.\w+)", first):
            (folder / named[1]).write_text(text)
            continue
        assert language in ("sh", "python"), f"a {language} block without a file's name"
        words = ["sh", "-e", "-c", text] if language == "sh" else [sys.executable, "-c", text]
        done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        printed[first] = done.stdout
    return printed


def test_source_and_sink_work_together(followed):
    assert "6 of 6 images kept, 0 failed" in followed["layertap run discs.yaml --plugin discs.py --plugin npz.py"]
    (read,) = [text for text in followed.values() if text.startswith("['disc-0'")]
    assert read.endswith("'disc-5'] (6, 512)\n")


def test_suites_pass(followed):
    assert re.search(r"\b\d\d passed\b", followed["pytest -q test_mine.py"])


def test_new_plugin_is_installed_and_listed(followed):
    said = followed["layertap new plugin my-images --kind source"]
    (row,) = [line.split("\t") for line in said.splitlines() if "\tmy_images\t" in line]
    assert row[:4] == ["source", "my_images", "my-images", "0.1.0"]


def test_plugins_are_a_dozen_lines():
    for name, most in (("discs", 12), ("npz", 14)):
        (text,) = [text for _, text in BLOCKS if text.startswith(f"# {name}.py")]
        code = [line for line in text.partition("class ")[2].splitlines() if line.strip()]
        body = code[: next(number for number, line in enumerate(code) if line.startswith("@"))]
        assert len(body) <= most


def test_every_kind_hook_and_suite_is_on_the_page():
    names = [*KINDS, *testing.__all__, *(name for name in vars(hookspecs.Registration) if name.startswith("register_"))]
    names += [base.__name__ for base in KINDS.values()]
    assert [name for name in names if not re.search(rf"\b{name}\b", TEXT)] == []


def test_what_the_page_names_exists():
    for name in re.findall(r"layertap\.([A-Z]\w+)", TEXT):
        assert hasattr(layertap, name)
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        assert (PAGE.parent / target).is_file()
