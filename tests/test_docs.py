"""Every page: its examples run in the order of the page, in one folder, and its links lead to files.

A block that cannot run says why in the comment before it: `<!-- not run: needs a GPU -->`. A `text` block after a block
that runs is what it prints; `...` stands for anything. A page that reads an output or more says so: `<!-- given:
features/ -->` is the output of `configs/alexnet.yaml`.
"""

from __future__ import annotations

import copy
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import typer

import layertap
from layertap.cli.app import app
from layertap.config.loading import load_config
from layertap.images.failure_codes import REASONS
from layertap.plugins import Plugins
from layertap.taps.grammar import Tap

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / name for name in ("README.md", "SECURITY.md", "CHANGELOG.md", "plugins/README.md")),
    *sorted(DOCS.rglob("*.md")),
    *(ROOT / "tests" / name / "README.md" for name in ("comparison", "benchmark")),
]
# tests/test_plugin_page.py follows it, in processes of its own.
PLUGIN_PAGE = DOCS / "plugins/writing.md"

BLOCK = re.compile(r"(?:^<!-- not run: (?P<why>[^\n]+) -->\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.M | re.S)
NAMED = re.compile(r"# (\w+\.\w+)\n")
BASE = {"source": {"type": "samples"}, "sink": {"type": "memory"}, "observers": []}


@dataclass(frozen=True)
class Block:
    """A fenced block, where it is, and why it is not run, if it is not."""

    kind: str
    text: str
    where: str
    why: str | None


def blocks(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    lines = [text.count("\n", 0, found.start("text")) for found in BLOCK.finditer(text)]
    where = page.relative_to(ROOT)
    return [
        Block(found["kind"], found["text"], f"{where}:{line}", found["why"])
        for found, line in zip(BLOCK.finditer(text), lines, strict=True)
    ]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


@pytest.fixture
def untrained(monkeypatch) -> None:
    """Published weights without a network: a seeded model in their place, built once for all pages."""
    from layertap_plugins.models.torchvision import TorchvisionModel

    load = TorchvisionModel.load

    def loaded(provider: TorchvisionModel) -> layertap.LoadedModel:
        params = provider.params.model_copy(update={"weights": "random", "weights_sha256": None})
        key = params.model_dump_json()
        found = MODELS[key] = MODELS.get(key) or load(TorchvisionModel(params))
        return layertap.LoadedModel(copy.deepcopy(found.module), found.preprocessor, found.about)

    monkeypatch.setattr(TorchvisionModel, "load", loaded)


MODELS: dict[str, layertap.LoadedModel] = {}


@pytest.fixture
def place(tmp_path, photos, monkeypatch, untrained) -> Path:
    """A folder as a newcomer has it: a few photographs, and the repository's configurations."""
    monkeypatch.chdir(tmp_path)
    for name in ("images", "photos"):
        for file in sorted(photos.glob("*/*.jpg"))[::4]:
            copied = tmp_path / name / file.relative_to(photos)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, copied)
    shutil.copy(photos / "cats/01.jpg", tmp_path / "cat.jpg")
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    return tmp_path


@dataclass
class Reader:
    """Follows a page from its top: what was typed so far, and what it has printed."""

    names: dict[str, Any] = field(default_factory=dict)
    own: list[str] = field(default_factory=list)
    """Files of the page that register plugins."""

    def follow(self, block: Block) -> None:
        if named := NAMED.match(block.text):
            Path(named[1]).write_text(block.text)
        if block.kind == "yaml":
            self.load(block.text, whole=named is not None)
        elif block.kind == "python":
            if named and "hookimpl" in block.text:
                self.own.append(named[1])
            elif not named:
                exec(compile(block.text, block.where, "exec"), self.names)
        elif block.kind == "sh":
            for line in block.text.replace("\\\n", " ").splitlines():
                self.type(line)
        else:
            pytest.fail(f"{block.where}: a block of {block.kind!r} neither runs nor says why not")

    def load(self, text: str, *, whole: bool) -> None:
        import yaml

        data = yaml.safe_load(text)
        # A shown part of a configuration is laid over one that has what every configuration needs.
        load_config(data if whole else {**BASE, **data}, None, Plugins.load(self.own))

    def type(self, line: str) -> None:
        command, _, comment = line.partition(" # ")
        words = shlex.split(command, comments=True)
        if not words:
            return
        program, *arguments = words
        if program == "layertap":
            self.layertap(arguments, int(said[1]) if (said := re.search(r"exit code (\d+)", comment)) else 0)
        elif program == "make":
            assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.M), line
        elif program == "pip":
            self.check_install(arguments)
        elif program == "python":
            assert (ROOT / arguments[0]).is_file(), line  # tests/test_examples.py runs them
        else:
            pytest.fail(f"{line}: say in a comment why this is not run")

    def layertap(self, arguments: list[str], expected: int) -> None:
        try:
            code = typer.main.get_command(app).main(arguments, standalone_mode=False) or 0
        except layertap.LayertapError as error:
            print(error)
            code = error.code
        assert code == expected, arguments

    def check_install(self, arguments: list[str]) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        extras = {extra for word in arguments for found in re.findall(r"\[(.+)\]", word) for extra in found.split(",")}
        assert extras <= set(project["optional-dependencies"])
        for pinned in (word for word in arguments if "==" in word):
            assert pinned in (ROOT / "Makefile").read_text()


def shown(expected: str, printed: str) -> bool:
    """Whether a `text` block shows what was printed, but for white space and what `...` stands for."""
    pattern = re.escape(" ".join(expected.split())).replace(re.escape("..."), ".*?")
    return re.fullmatch(pattern, " ".join(printed.split()), re.S) is not None


@pytest.mark.parametrize("page", [page for page in PAGES if page != PLUGIN_PAGE and blocks(page)], ids=name_of)
def test_examples_of_a_page_run(page, place, capsys):
    if "<!-- given: features/ -->" in page.read_text("utf-8"):
        layertap.run("configs/alexnet.yaml", overrides={"observers": []})
        capsys.readouterr()
    reader, printed = Reader(), None
    for block in blocks(page):
        if block.why:
            printed = None
        elif block.kind == "text":
            assert printed is not None, f"{block.where}: a `text` block is what the block before it prints"
            assert shown(block.text, printed), f"{block.where}: shown\n{block.text}\nprinted\n{printed}"
        else:
            reader.follow(block)
            printed = capsys.readouterr().out


def anchors(page: Path) -> set[str]:
    """The names by which GitHub and mkdocs link to the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@every_page
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if target.startswith(("https://", "http://")):
            continue
        path, _, heading = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not heading or heading in anchors(file), target


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=name_of)
def test_a_page_has_one_title_and_is_found_from_the_first(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.M | re.S)
    assert len(re.findall(r"^# ", text, re.M)) == 1
    assert page.name == "README.md" or f"]({page.relative_to(DOCS).as_posix()})" in (DOCS / "README.md").read_text()


def named_code(page: Path) -> Iterator[tuple[str, str]]:
    """Each file that a page names as code, with each name that it says is in it: `name` (`layertap/file.py`)."""
    text = page.read_text("utf-8")
    yield from (("", file) for file in re.findall(r"`((?:layertap|plugins)/[\w/]+\.py)`", text))
    yield from re.findall(r"`([\w.]+)(?:\(\))?`\s\(`((?:layertap|plugins)/[\w/]+\.py)`\)", text)


@every_page
def test_code_that_a_page_names_exists(page):
    for name, file in named_code(page):
        assert (ROOT / file).is_file(), file
        code = (ROOT / file).read_text("utf-8")
        for part in name.split("."):
            assert re.search(rf"\b{part}\b", code), f"{name} in {file}"


def test_every_package_is_in_the_architecture():
    text = (DOCS / "why/architecture.md").read_text("utf-8")
    packages = {path.parent.name for path in (ROOT / "layertap").glob("*/__init__.py")}
    assert {name for name in packages if f"`{name}`" not in text} == set()


def manual(name: str) -> str:
    return (DOCS / "reference" / f"{name}.md").read_text("utf-8")


def test_every_command_and_option_is_in_the_reference():
    text = manual("command-line")
    commands = typer.main.get_command(app).commands
    assert {name for name in commands if f"`layertap {name}" not in text} == set()
    options = {
        option
        for command in (*commands.values(), *commands["new"].commands.values())
        for parameter in command.params
        for option in parameter.opts
        if option.startswith("--") and not parameter.hidden
    }
    assert {option for option in options - {"--help"} if f"`{option}" not in text} == set()


def test_every_key_of_a_configuration_and_of_a_tap_is_in_the_reference():
    from layertap.config.model import RunConfig

    text = manual("configuration")
    assert {key for key in RunConfig.model_fields if f"`{key}`" not in text} == set()
    text = manual("taps")
    assert {key for key in Tap.model_fields if f"`{key}`" not in text} == set()


def test_every_installed_type_extra_and_parameter_is_in_the_reference():
    text = manual("plugin-types")
    own = [known for known in Plugins.load() if known.distribution == "layertap"]
    assert {known.type_name for known in own if f"`{known.type_name}`" not in text} == set()
    assert {known.cls.extra for known in own if known.cls.extra and f"`{known.cls.extra}`" not in text} == set()
    parameters = {name for known in own for name in known.cls.Params.model_fields}
    assert {name for name in parameters if not re.search(rf"`{name}`|\b{name}:|\.{name}\b", text)} == set()


def test_every_failure_code_is_in_the_reference():
    text = manual("failure-codes")
    assert {code for code in REASONS if f"`{code}`" not in text} == set()


def test_every_public_name_is_in_the_reference():
    text = manual("python")
    assert {name for name in layertap.__all__ if not re.search(rf"`(?:layertap\.)?{name}\b", text)} == set()
