"""Everything the README shows runs as it stands."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
import typer.testing

import layertap
from layertap.cli.main import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS: list[tuple[str, str]] = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)


def block(language: str, holding: str) -> str:
    (found,) = (text for kind, text in BLOCKS if kind == language and holding in text)
    return found


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """AlexNet's published file name, with seeded values in a cache folder of the test's own."""
    from torchvision.models import alexnet

    path = tmp_path_factory.mktemp("cache") / "alexnet.pth"
    torch.save(alexnet().state_dict(), path)
    return path


@pytest.fixture
def place(tmp_path, photos, monkeypatch):
    """A folder as a newcomer has it: photographs, and the repository's configurations."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(photos, tmp_path / "images")
    shutil.copytree(photos, tmp_path / "photos")
    shutil.copy(photos / "cats/01.jpg", tmp_path / "cat.jpg")
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    return tmp_path


def test_first_yaml_runs(place, weights):
    (place / "alexnet.yaml").write_text(block("yaml", "# alexnet.yaml"))
    report = layertap.run("alexnet.yaml", overrides={"model.weights": str(weights), "observers": []})
    assert report.kept == 20
    features: dict[str, object] = {}
    exec(block("python", "features.failures)"), features)
    assert features["features"]["classifier.5"].shape == (20, 4096)
    exec(block("python", "rows.chunks"), features)
    assert features["chunk"].shape == (20, 4096)
    for command in re.findall(r"^layertap (export [^#\n]+)", block("bash", "layertap export"), flags=re.MULTILINE):
        assert typer.testing.CliRunner().invoke(app, command.split()).exit_code == 0
    assert (place / "for-clip/img_emb/img_emb_0.npy").is_file()


def test_first_yaml_is_the_default_config(place):
    (place / "alexnet.yaml").write_text(block("yaml", "# alexnet.yaml"))
    from layertap.config.loading import load_config
    from layertap.plugins import Plugins

    plugins = Plugins.load()
    shown = load_config("alexnet.yaml", None, plugins)
    assert shown.plain() == load_config("configs/alexnet.yaml", None, plugins).plain()
    bare = {"source": shown.source.model_dump(), "sink": shown.sink.model_dump()}
    assert shown.plain() == load_config(bare, None, plugins).plain()


def test_first_python_runs(capsys):
    exec(block("python", "torch.randn"), {})
    lines = capsys.readouterr().out.splitlines()
    assert "-" in lines[0]
    assert lines[1] == "torch.Size([2, 4096])"


def test_one_image_runs(place, weights, capsys):
    code = block("python", "cat.jpg").replace('"torchvision/alexnet"', "MODEL")
    exec(code, {"MODEL": {"type": "torchvision", "name": "alexnet", "weights": str(weights)}})
    assert capsys.readouterr().out == "torch.Size([1, 4096])\n"


def test_plugin_of_the_readme_runs(place):
    (place / "mine.py").write_text(block("python", "# mine.py"))
    (place / "images.txt").write_text("images/cats/01.jpg\nimages/dogs/00.jpg\n")
    report = layertap.run(
        {
            "model": {"type": "torchvision", "name": "squeezenet1_1", "weights": "random"},
            "taps": "features.2",
            "source": {"type": "listed", "path": "images.txt"},
            "sink": "memory",
            "observers": [],
        },
        plugins=["mine.py"],
    )
    assert report.ids == ["images/cats/01.jpg", "images/dogs/00.jpg"]


def test_every_command_option_and_key_that_exists_is_named():
    from layertap.config.model import RunConfig

    commands = typer.main.get_command(app).commands
    assert {name for name in commands if f"`layertap {name}" not in README} == set()
    assert {key for key in RunConfig.model_fields if not re.search(rf"`{key}`|\b{key}:", README)} == set()


def test_every_installed_type_is_named():
    from layertap.plugins import Plugins

    own = [known for known in Plugins.load() if known.distribution == "layertap"]
    assert {known.type_name for known in own if f"`{known.type_name}`" not in README} == set()
    assert {known.cls.extra for known in own if known.cls.extra and f"`{known.cls.extra}`" not in README} == set()


def test_commands_of_the_first_screen_are_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    for command in re.findall(r"^make (\w+)", block("sh", "make demo"), flags=re.MULTILINE):
        assert re.search(rf"^{command}:", makefile, flags=re.MULTILINE)
