"""`layertap work`: what joins no run, and why."""

from __future__ import annotations

import json
import signal
import sys

import pytest
from PIL import Image

import layertap
from layertap.cli.main import main
from layertap.store.board import Board
from tests.conftest import TINY


@pytest.fixture
def joined(tmp_path, monkeypatch, capsys):
    """Joins a run whose job is as given, with other values: the exit code and what it printed."""
    (tmp_path / "images").mkdir()
    Image.effect_noise((20, 24), 60).convert("RGB").save(tmp_path / "images" / "a.png")
    config = {
        "model": "tiny",
        "taps": ["classifier"],
        "source": {"type": "folder", "path": str(tmp_path / "images")},
        "sink": {"type": "npy", "path": str(tmp_path / "out")},
        "device": "cpu",
        "observers": [],
    }
    layertap.run(config, plugins=[TINY])
    out, manifest = tmp_path / "out", json.loads((tmp_path / "out" / "manifest.json").read_text())

    def run(**changes):
        paths = {"folder": str(out), "logs": f"{out}.logs", "directory": str(tmp_path)}
        job = layertap.Job(run=manifest["run"], config=config, manifest=manifest, threads=1, plugins=(TINY,), **paths)
        Board(out).open(job, None)
        file = out / "work" / "job.json"
        data = json.loads(file.read_text())
        data["job"] |= changes
        file.write_text(json.dumps(data))
        monkeypatch.setattr(sys, "argv", ["layertap", "work", str(out), "--plugin", TINY])
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with pytest.raises(SystemExit) as caught:
                main()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return caught.value.code, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"manifest": "x"}, "job.json: job.manifest: should be a valid dictionary"),
        ({"manifest": {}}, "job.json: job.manifest.layertap: is required"),
        ({"config": ["a"]}, "job.json: job.config: should be a valid dictionary"),
        ({"plugins": [{}]}, "job.json: job.plugins.0: should be a valid string"),
        ({"folder": 5}, "job.json: job.folder: should be a valid string"),
        ({"directory": "/a\0b"}, "job.json: job.directory: "),
    ],
)
def test_job_of_other_types_is_refused(joined, changes, message):
    code, said = joined(**changes)
    assert (code, said.count("\n")) == (6, 1)
    assert message in said


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("folder", "out: the run calls this folder /not/here, which this machine does not have"),
        ("directory", "/not/here: No such file or directory; the run was started in this folder"),
    ],
)
def test_machine_that_does_not_see_the_folders_of_the_run_is_refused(joined, key, message):
    code, said = joined(**{key: "/not/here"})
    assert (code, said.count("\n")) == (6, 1)
    assert message in said
