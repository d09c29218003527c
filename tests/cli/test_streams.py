"""Output that ends early, and errors as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest


def start(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "layertap", *arguments], stderr=subprocess.PIPE, text=True, timeout=60, **options
    )


@pytest.mark.parametrize("command", [["plugins"], ["schema"], ["schema", "--manifest"], ["--help"]])
def test_a_closed_pipe_ends_a_command_quietly(command):
    reader, writer = os.pipe()
    os.close(reader)
    ended = start(*command, stdout=writer)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_below_stdout_is_one_line():
    with open("/dev/full", "w") as full:
        ended = start("schema", stdout=full)
    assert ended.returncode == 7
    assert ended.stderr == "stdout: cannot be written to: No space left on device\n"


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["run", "none.yaml", "--json"], 2),
        (["plan", "none.yaml", "--json"], 2),
        (["layers", "none/none", "--json"], 2),
        (["info", "none", "--json"], 6),
        (["verify", "none", "--json"], 6),
        (["run", "none.yaml", "--json", "--nope"], 2),
    ],
)
def test_a_command_that_fails_prints_its_error_as_json(command, code):
    ended = start(*command, stdout=subprocess.PIPE)
    assert ended.returncode == code
    error = json.loads(ended.stdout)["error"]
    assert error["code"] == code
    assert set(error["faults"][0]) == {"code", "where", "place", "message"}
    assert error["faults"][0]["message"] in ended.stderr
