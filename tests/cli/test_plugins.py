"""`layertap plugins` on a terminal and as JSON: parameters, and how to install what is missing."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys

import pytest

from layertap.cli import plugins
from layertap.plugins import Plugins

PLUGIN = """
from pydantic import Field
import layertap

class Own(layertap.Source):
    extra = "heavy"
    class Params(layertap.Params):
        path: str = Field(description="a file")
        kinds: list[str] = Field(default_factory=lambda: ["a b", "c"], description="which")
        most: int | None = Field(None, description="how many")
        from_: str = Field("start", alias="from", description="where to begin")
    def records(self): ...

@layertap.hookimpl
def register_sources(register):
    register("own", Own)
"""


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """An installed distribution whose extra needs one package that is here and one that is nowhere."""
    info = tmp_path / "stranger-2.1.dist-info"
    info.mkdir()
    requires = ["numpy", "numpy>=2; extra == 'heavy'", "no-such-package[x]>=1; extra == 'heavy'", "y; extra == 'other'"]
    lines = ["Metadata-Version: 2.1", "Name: stranger", "Version: 2.1", *(f"Requires-Dist: {r}" for r in requires)]
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    (info / "entry_points.txt").write_text("[layertap]\nsource-own = stranger_own\n")
    (tmp_path / "stranger_own.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    for cached in (plugins._needed, plugins._is_installed):
        cached.cache_clear()
    return tmp_path


def on_a_terminal(*words, **env):
    """What a command prints where its output is a terminal."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1", **env}
    with subprocess.Popen(
        [sys.executable, "-m", "layertap", *words], stdout=theirs, env=env, close_fds=True
    ) as process:
        os.close(theirs)
        said = b""
        try:
            while piece := os.read(ours, 65536):
                said += piece
        except OSError:  # Linux says so of a terminal that nobody holds any more
            pass
        process.wait()
    os.close(ours)
    return re.sub(r"\x1b\[[0-9;]*m", "", said.decode().replace("\r\n", "\n"))


def test_json_tells_parameters_and_how_to_install_what_is_missing(stranger):
    own = plugins.plugin_data(Plugins.load().find("source", "own"))
    assert own["install"] == "pip install 'stranger[heavy]'"
    assert own["extra"] == "heavy"
    assert own["parameters"] == [
        {"name": "path", "required": True, "default": None, "description": "a file"},
        {"name": "kinds", "required": False, "default": ["a b", "c"], "description": "which"},
        {"name": "most", "required": False, "default": None, "description": "how many"},
        {"name": "from", "required": False, "default": "start", "description": "where to begin"},
    ]
    assert json.loads(json.dumps(own)) == own


def test_nothing_is_missing_where_all_is_installed():
    known = Plugins.load()
    assert plugins.install(known.find("source", "samples")) is None
    assert plugins.install(known.find("source", "folder")) is None


def test_extra_is_known_by_any_spelling(monkeypatch):
    known = Plugins.load().find("model", "open_clip")
    assert plugins._needed(known.distribution, known.cls.extra) == ["open-clip-torch"]


def test_terminal_shows_parameters_and_the_command(stranger):
    lines = on_a_terminal("plugins", PYTHONPATH=str(stranger)).splitlines()
    assert lines[0].split() == ["kind", "type", "distribution", "version", "file"]
    (at,) = [number for number, line in enumerate(lines) if line.split()[1:2] == ["own"]]
    assert lines[at].split()[2:] == ["stranger", "2.1", str(stranger / "stranger_own.py")]
    assert lines[at + 1].strip() == 'path, kinds=["a b", "c"], most=null, from=start'
    assert lines[at + 2].strip() == "needs packages that are not installed: pip install 'stranger[heavy]'"
    assert lines[at + 1].startswith(" " * lines[0].index("type"))


def test_own_file_has_no_distribution_to_install_from(tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    own = Plugins.load([str(tmp_path / "mine.py")]).find("source", "own")
    assert plugins.install(own) is None
