"""`layertap new plugin`: the written plugin builds, installs, is listed, works and passes its own tests."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib.util import find_spec

import pytest
import yaml

import layertap
from layertap.cli import new

ENV = {key: value for key, value in os.environ.items() if key != "LAYERTAP_PLUGINS"}


def command(*words, cwd, **env):
    return subprocess.run([sys.executable, *words], cwd=cwd, env=ENV | env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One distribution of each kind, written by the command line."""
    folder = tmp_path_factory.mktemp("made")
    code = (
        "import sys\nfrom layertap.cli.app import new_plugin\n"
        "for word in sys.argv[1:]: new_plugin('layertap-my-' + word, word)\n"
    )
    done = command("-c", code, *new.KINDS, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("wrote layertap-my-source; now: pip install -e layertap-my-source")
    return folder


@pytest.fixture(scope="module")
def installed(made, tmp_path_factory):
    """The folder in which all of them are installed, by an installer that uses no index."""
    target = tmp_path_factory.mktemp("installed")
    uv = ["uv", "pip", "install", "--python", sys.executable, "--offline", "--no-cache"]
    words = ["-m", *(uv if find_spec("uv") else ["pip", "install", "--no-index"])]
    words += ["--no-deps", "--no-build-isolation", "--target", str(target)]
    done = command(*words, *(f"./layertap-my-{kind}" for kind in new.KINDS), cwd=made)
    assert done.returncode == 0, done.stderr
    return target


def test_every_kind_is_built_installed_and_listed(installed):
    done = command("-m", "layertap", "plugins", cwd=installed, PYTHONPATH=str(installed))
    assert done.returncode == 0
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert sorted(row for row in rows if row[2].startswith("layertap-my-")) == sorted(
        [kind, f"my_{kind}", f"layertap-my-{kind}", "0.1.0", str(installed / f"layertap_my_{kind}.py")]
        for kind in new.KINDS
    )
    assert "layertap-my-" not in done.stderr


def test_every_kind_passes_its_own_tests(made, installed):
    """The tests with the installed modules, as their authors would run them, all six in one process."""
    tests = [f"layertap-my-{kind}/tests" for kind in new.KINDS]
    words = ["-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "-p", "no:xdist", "--rootdir", "."]
    done = command(*words, *tests, cwd=made, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


def test_every_kind_works_in_a_run(made, photos, tmp_path, monkeypatch):
    """All six at once, each named as its own README says."""
    (tmp_path / "images.txt").write_text("\n".join(sorted(str(path) for path in photos.rglob("*.jpg"))))
    monkeypatch.chdir(tmp_path)
    config = {"device": "cpu", "batch_size": 8}
    for kind in ("source", "sink", "preprocessor", "model", "observer"):
        config |= yaml.safe_load(example(made, kind))
    (reduced,) = yaml.safe_load(example(made, "reducer"))["taps"]
    config |= {"taps": ["1", {**reduced, "layer": "2"}], "preprocess": {"type": "my_preprocessor", "size": 64}}
    own = [str(made / f"layertap-my-{kind}" / f"layertap_my_{kind}.py") for kind in new.KINDS]
    report = layertap.run(config, plugins=own)
    assert (report.kept, report.failed) == (20, 0)
    features = layertap.open("features", plugins=own)
    assert features["1"].shape == (20, 8, 16, 16)
    assert features["2"].shape == (20, 8)
    assert (features["2"][:, :-1] >= features["2"][:, 1:]).all()


def example(made, kind):
    readme = (made / f"layertap-my-{kind}" / "README.md").read_text()
    return readme.partition("```yaml\n")[2].partition("```")[0]


def test_type_is_the_name_without_layertap(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = new.write_plugin("fine-art_2", "source")
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    assert project["project"]["name"] == "fine-art_2"
    assert project["project"]["entry-points"]["layertap"] == {"source-fine_art_2": "fine_art_2"}
    assert "class FineArt2(layertap.Source):" in (folder / "fine_art_2.py").read_text()


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("My Images", "source", "'My Images' cannot be the name of a plugin"),
        ("../images", "source", "cannot be the name of a plugin"),
        ("-images", "source", "cannot be the name of a plugin"),
        ("2images", "source", "cannot be the name of a plugin"),
        ("images\n", "source", "cannot be the name of a plugin"),
        ("json", "source", "'json' is a name that Python itself uses; choose another name, such as layertap-json"),
        ("class", "source", "'class' is a name that Python itself uses"),
        ("torch", "source", "a package 'torch' is already installed"),
        ("folder", "source", "layertap already has a source of the type 'folder'"),
        ("layertap-folder", "source", "layertap already has a source of the type 'folder'"),
        ("model", "preprocessor", "`preprocess:` itself uses the name `model`"),
        ("images", "sources", "--kind must be one of source, sink, .*, not 'sources'; did you mean 'source'"),
        ("there", "source", "there: already exists; choose another name, or move it"),
    ],
)
def test_what_cannot_be_made_is_refused_and_nothing_written(name, kind, said, tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(layertap.ConfigError, match=said) as caught:
        new.write_plugin(name, kind)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def test_folder_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(layertap.ConfigError, match="images: cannot be written: No such file or directory"):
        new.write_plugin("images", "source")


def test_command_line_tells_in_one_line(tmp_path):
    done = command("-m", "layertap", "new", "plugin", "json", "--kind", "source", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "'json' is a name that Python itself uses; choose another name, such as layertap-json\n"
