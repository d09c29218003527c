"""What the README says is true. That its examples run is tested with the other pages, in tests/test_docs.py."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

from layertap.config.loading import load_config
from layertap.plugins import Plugins
from tests.test_docs import BLOCK

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def block(language: str, holding: str) -> str:
    (found,) = (b["text"] for b in BLOCK.finditer(README) if b["kind"] == language and holding in b["text"])
    return found


def test_it_stays_a_first_screen():
    assert len(README.splitlines()) <= 110


def test_first_yaml_is_the_default_config():
    plugins = Plugins.load()
    shown = load_config(yaml.safe_load(block("yaml", "# alexnet.yaml")), None, plugins)
    assert shown.plain() == load_config(ROOT / "configs/alexnet.yaml", None, plugins).plain()
    bare = {"source": shown.source.model_dump(), "sink": shown.sink.model_dump()}
    assert shown.plain() == load_config(bare, None, plugins).plain()


def test_first_python_prints_what_it_says(capsys):
    exec(block("python", "torch.randn"), {})
    lowest, shape = capsys.readouterr().out.splitlines()
    assert "-" in lowest
    assert f"# {shape}" in README


def test_the_two_commands_are_there_and_are_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    commands = re.findall(r"^make (\w+)", block("sh", "make demo"), flags=re.MULTILINE)
    assert commands == ["demo", "test"]
    for command in commands:
        assert re.search(rf"^{command}:", makefile, flags=re.MULTILINE)


def verdicts() -> tuple[int, dict[str, list[str]]]:
    """How many cases tests/comparison has, and what each tool's column says."""
    page = (ROOT / "tests/comparison/README.md").read_text("utf-8")
    table = page[page.index("| case | layertap.tap") :].partition("\n\n")[0]
    head, _, *rows = ([cell.strip() for cell in line.strip("| ").split(" | ")] for line in table.splitlines())
    return len(rows), {name: [row[place] for row in rows] for place, name in enumerate(head) if place}


def test_figures_are_those_of_the_comparison():
    cases, said = verdicts()
    others = {name: words.count("wrong") for name, words in said.items() if not name.startswith("layertap")}
    assert f"In [{cases} known traps]" in README
    assert set(said["layertap.extract"]) == {"right", "refused"}
    assert all(name in README for name in others)
    assert f"{min(others.values())} to {max(others.values())} wrong results" in README
    page = " ".join((ROOT / "docs/why/comparison.md").read_text("utf-8").split())
    extract = said["layertap.extract"]
    assert f"right {extract.count('right')} times and refuses {extract.count('refused')} times" in page
    assert f"{min(others.values())} to {max(others.values())} times each" in page


def test_citation_is_of_this_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"version = {{{version}}}" in README
