"""Paths of a configuration: `~` is the user's home, and an environment variable is refused."""

from __future__ import annotations

import json
import pwd
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

import layertap
from layertap.config.loading import load_config
from layertap.pipeline.verify import verify
from layertap.plugins import Plugins

PLUGIN = """
from pathlib import Path
import layertap
class Listed(layertap.Source):
    class Params(layertap.Params):
        files: tuple[str, ...]
        options: dict[str, str] = {}
    def records(self):
        for path in self.params.files:
            yield layertap.ImageRecord(path, Path(path).read_bytes())
@layertap.hookimpl
def register_sources(register):
    register("listed", Listed)
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home with two images, and another working directory."""
    (tmp_path / "home" / "images").mkdir(parents=True)
    for name in "ab":
        Image.new("RGB", (40, 40), (len(name), 90, 200)).save(tmp_path / "home" / "images" / f"{name}.png")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def config(**changes):
    return {
        "model": "tiny",
        "taps": ["features.1"],
        "source": {"type": "folder", "path": "~/images"},
        "sink": {"type": "npy", "path": "~/out"},
        "observers": [],
        "device": "cpu",
        **changes,
    }


def run(tiny, **changes):
    return layertap.run(config(**changes), plugins=[tiny])


@pytest.fixture
def tiny():
    return str(Path(__file__).parents[1] / "outsider" / "tiny.py")


def test_paths_below_the_home_are_used_and_kept_expanded(home, tiny, monkeypatch, tmp_path):
    assert run(tiny).kept == 2
    assert sorted(path.name for path in home.iterdir()) == ["images", "out"]
    assert not list((tmp_path / "work").iterdir())
    manifest = json.loads((home / "out" / "manifest.json").read_text())
    assert manifest["config"]["sink"]["path"] == str(home / "out")
    assert manifest["config"]["source"]["path"] == str(home / "images")
    assert len(layertap.open("~/out").index) == 2

    # From another home and folder, the output still says where its images are.
    monkeypatch.setenv("HOME", str(tmp_path / "elsewhere"))
    monkeypatch.chdir(tmp_path)
    assert not verify(home / "out", plugins=[tiny]).faults


def test_a_users_home_is_found_and_an_unknown_user_is_a_name_like_any_other(monkeypatch):
    user = pwd.getpwuid(0)
    plugins = Plugins.load()
    loaded = load_config(
        config(model="torchvision/alexnet", source={"type": "folder", "path": f"~{user.pw_name}/x"}), None, plugins
    )
    assert loaded.source.params["path"] == f"{user.pw_dir.rstrip('/')}/x"
    same = load_config(
        config(model="torchvision/alexnet", source={"type": "folder", "path": "~no-such-user/x"}), None, plugins
    )
    assert same.source.params["path"] == "~no-such-user/x"


def test_a_strangers_plugin_and_lists_get_expanded_paths(home, tiny, tmp_path):
    own = tmp_path / "listed.py"
    own.write_text(PLUGIN)
    shutil.copy(own, home / "listed.py")
    files = ["~/images/a.png", str(home / "images" / "b.png")]
    source = {"type": "listed", "files": files, "options": {"key": "~/key", "password": "$ecret"}}
    report = layertap.run(config(source=source, sink="memory"), plugins=[tiny, "~/listed.py"])
    assert report.kept == 2
    assert report.ids[0] == str(home / "images" / "a.png")
    loaded = load_config(config(source=source, sink="memory"), None, Plugins.load([tiny, str(own)]))
    assert loaded.source.params["options"] == {"key": str(home / "key"), "password": "$ecret"}


def test_extract_and_the_configuration_file_take_a_home(home, tiny):
    (home / "config.yaml").write_text(yaml.safe_dump(config(sink="memory")))
    assert layertap.run("~/config.yaml", plugins=[tiny]).kept == 2
    for images in ("~/images", ["~/images/a.png", "~/images/b.png"], {"type": "folder", "path": "~/images"}):
        found = list(layertap.extract({"type": "tiny"}, images, ["features.1"], plugins=[tiny], device="cpu"))
        assert sum(len(batch.records) for batch in found) == 2


@pytest.mark.parametrize(
    ("path", "variable"),
    [
        ("$HOME/out", "$HOME"),
        ("${DATA}/out", "${DATA}"),
        ("$OUT", "$OUT"),
        ("/data/$USER/out", "$USER"),
        ("/data/run-${RUN}", "${RUN}"),
        ("~/${RUN:-1}/out", "${RUN:-1}"),
        ("s3://bucket/$USER/out", "$USER"),
    ],
)
def test_an_environment_variable_in_a_path_is_refused_with_the_way_out(home, tiny, path, variable):
    with pytest.raises(layertap.ConfigError) as caught:
        run(tiny, sink={"type": "npy", "path": path})
    written = path.replace("~", str(home))
    assert str(caught.value) == (
        f"config: sink.path: the environment variable {variable} is not replaced in a path; write the path out, or let "
        f'the shell expand it: sink.path="{written}"'
    )
    assert caught.value.code == 2


def test_every_variable_in_a_configuration_is_reported_at_once(tiny, tmp_path):
    own = tmp_path / "listed.py"
    own.write_text(PLUGIN)
    source = {"type": "listed", "files": ["a.png", "$DATA/b.png"], "options": {"key": "$HOME/key"}}
    with pytest.raises(layertap.ConfigError) as caught:
        layertap.run(config(source=source, sink={"type": "npy", "path": "$OUT/x"}), plugins=[tiny, str(own)])
    assert [fault.where for fault in caught.value.faults] == [
        ("source", "files", 1),
        ("source", "options", "key"),
        ("sink", "path"),
    ]


def test_other_doors_refuse_a_variable_too(tiny):
    for call in (
        lambda: layertap.open("$HOME/out"),
        lambda: layertap.run("${HOME}/config.yaml"),
        lambda: list(layertap.extract({"type": "tiny"}, "$DATA/images", ["features.1"], plugins=[tiny])),
        lambda: list(layertap.extract({"type": "tiny"}, ["$DATA/a.png"], ["features.1"], plugins=[tiny])),
    ):
        with pytest.raises(layertap.ConfigError, match=r"the environment variable \$\{?[A-Z]+\}? is not replaced"):
            call()


def test_a_file_that_really_has_such_a_name_is_used(home, tiny, tmp_path):
    (home / "images").rename(tmp_path / "work" / "$images")
    assert run(tiny, source={"type": "folder", "path": "$images"}).kept == 2


@pytest.mark.parametrize("text", ["*.$", "x$", "a$b", "^(a|b)$", "price: 5$/6"])
def test_a_dollar_that_names_nothing_is_left_alone(tiny, tmp_path, text):
    own = tmp_path / "listed.py"
    own.write_text(PLUGIN)
    loaded = load_config(
        config(source={"type": "listed", "files": [text]}, sink="memory"), None, Plugins.load([tiny, str(own)])
    )
    assert loaded.source.params["files"] == [text]
