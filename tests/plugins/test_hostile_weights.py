"""Hostile or broken weights are refused before a run: one line, nothing executed, nothing written."""

from __future__ import annotations

import hashlib
import os
import pickle
import resource
import sys
import time
from pathlib import Path

import pytest
import torch
from torchvision import models

import layertap
from layertap import ConfigError, UnsafeError, WeightsError
from layertap_plugins.models import checkpoints
from tests.config import hostile_configs
from tests.images import hostile
from tests.pipeline.test_pipeline import config

CANARY = Path("canary")
HOSTILE = {name: (content, code) for name, content, code in hostile.checkpoints(CANARY)}
# This allows for a busy machine; one attempt takes under half a second.
MOST_SECONDS, MOST_BYTES = 10, 200 * 2**20


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """A file of squeezenet1_1, which its library has loaded once."""
    path = tmp_path_factory.mktemp("honest") / "honest.pth"
    torch.save(models.squeezenet1_1(weights=None).state_dict(), path)
    checkpoints.read(path)
    return path


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working directory, in which a gadget would leave its canary."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def attempt(photos, tmp_path):
    """Runs with a file as weights; returns the error, which is one line and comes before anything is written."""

    def run(path, error=layertap.LayertapError, **model):
        model = {"type": "torchvision", "name": "squeezenet1_1", "weights": str(path), **model}
        with pytest.raises(error) as caught:
            layertap.run(config(photos, tmp_path / "out", model=model, taps=["features.0"]))
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 2_000
        assert not (tmp_path / "out").exists()
        return caught.value

    return run


def growth(before):
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024)


def test_there_are_as_many_as_there_should_be():
    assert len(HOSTILE) >= 80


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_or_broken_file_is_refused_at_once(honest, attempt, place, name):
    content, code = HOSTILE[name]
    (place / name).write_bytes(content)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    error = attempt(place / name)
    assert time.monotonic() - started < MOST_SECONDS
    assert growth(before) < MOST_BYTES
    assert error.code == code, error
    assert type(error) is (UnsafeError if code == UnsafeError.code else WeightsError)
    assert name in str(error)
    assert [entry.name for entry in place.iterdir()] == [name]


@pytest.mark.parametrize("name", ["reduce, protocol 0", "reduce, protocol 2", "stack global", "inst", "obj", "posix"])
def test_the_gadgets_would_work_on_whoever_unpickles_them(place, name):
    pickle.loads(HOSTILE[f"{name}.pth"][0])
    assert CANARY.exists()


def test_the_same_run_with_an_honest_file_succeeds(honest, photos):
    model = {"type": "torchvision", "name": "squeezenet1_1", "weights": str(honest)}
    assert layertap.run(config(photos, None, model=model, taps=["features.0"], limit=1)).kept == 1


def odd_paths(folder):
    """Paths that are not regular files, or a file that does not fit into memory."""
    os.mkfifo(folder / "fifo.pth")
    (folder / "folder.pth").mkdir()
    (folder / "zero.pth").symlink_to("/dev/zero")
    (folder / "loop.pth").symlink_to("loop.pth")
    (folder / "nowhere.pth").symlink_to("none")
    with (folder / "sparse.pth").open("wb") as file:
        file.truncate(2**42)


@pytest.mark.parametrize("name", ["fifo", "folder", "zero", "loop", "nowhere", "sparse"])
def test_paths_other_than_weights_files_are_never_read(honest, attempt, tmp_path, name):
    odd_paths(tmp_path)
    started = time.monotonic()
    assert attempt(tmp_path / f"{name}.pth", WeightsError).code == 2
    assert time.monotonic() - started < MOST_SECONDS


def test_a_link_to_a_hostile_file_is_as_hostile(honest, attempt, place):
    (place / "evil").write_bytes(HOSTILE["reduce, protocol 2.pth"][0])
    (place / "link.pth").symlink_to("evil")
    attempt(place / "link.pth", UnsafeError)
    assert not CANARY.exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_parameter_that_is_not_finite_is_named(honest, attempt, tmp_path, value):
    state = torch.load(honest, weights_only=True)
    state["features.3.squeeze.weight"][1, 2] = value
    torch.save(state, tmp_path / "bad.pth")
    error = attempt(tmp_path / "bad.pth", WeightsError)
    assert "NaN or infinity in 'features.3.squeeze.weight'" in str(error)


def test_a_pinned_file_is_loaded_and_the_pin_is_read_in_any_case(honest, photos):
    digest = hashlib.sha256(honest.read_bytes()).hexdigest()
    for pin in (digest, digest.upper()):
        model = {"type": "torchvision", "name": "squeezenet1_1", "weights": str(honest), "weights_sha256": pin}
        assert layertap.run(config(photos, None, model=model, taps=["features.0"], limit=1)).kept == 1


def test_a_file_that_is_not_the_pinned_one_is_refused_before_it_is_loaded(honest, attempt, tmp_path):
    evil = tmp_path / "evil.pth"
    evil.write_bytes(b"not even a checkpoint")
    pin = hashlib.sha256(honest.read_bytes()).hexdigest()
    error = attempt(evil, UnsafeError, weights_sha256=pin)
    found = hashlib.sha256(evil.read_bytes()).hexdigest()
    for part in (str(evil), f"expected {pin}", f"found {found}", "model.weights_sha256", "pin this one if you trust"):
        assert part in str(error)
    assert error.code == 8


@pytest.mark.parametrize("pin", ["", "abc", "g" * 64, "0" * 63, "0" * 65, "0" * 64 + "\n", "b0353104"])
def test_a_pin_that_is_not_a_digest_is_reported_at_its_key(attempt, honest, pin):
    error = attempt(honest, ConfigError, weights_sha256=pin)
    assert str(error).startswith("config: model.weights_sha256: is a sha256, 64 hexadecimal digits, not ")


@pytest.mark.parametrize("kind", ["torchvision", "timm", "transformers", "open_clip"])
def test_a_pin_has_nothing_to_hold_where_weights_are_random(attempt, kind):
    error = attempt("random", ConfigError, type=kind, weights_sha256="0" * 64)
    assert str(error).startswith("config: model.weights_sha256: there is no file to check")


def test_a_pin_is_checked_from_the_command_line_too(honest, photos, tmp_path):
    text = f"""\
model:
  type: torchvision
  name: squeezenet1_1
  weights: {honest}
  weights_sha256: {"0" * 63}
taps: [features.0]
source: {{type: folder, path: {photos}}}
sink: {{type: npy, path: {tmp_path / "out"}}}
"""
    (tmp_path / "c.yaml").write_text(text)
    code, said = hostile_configs.command("run", tmp_path / "c.yaml")
    assert (code, said.count("\n")) == (2, 1)
    # 63 digits make a number, so that the error says to quote it in YAML.
    assert said.startswith(f"{tmp_path / 'c.yaml'}:5:3: model.weights_sha256: should be a valid string, not 0")
    code, said = hostile_configs.command("run", tmp_path / "c.yaml", f"model.weights_sha256={'0' * 64}")
    assert (code, said.count("\n")) == (8, 1)
    assert f"expected {'0' * 64}" in said
    assert not (tmp_path / "out").exists()


def test_what_is_checked_and_what_is_loaded_is_read_once(honest, tmp_path):
    opened, watching = [], True

    def watch(event, arguments):
        if watching and event == "open":
            opened.append(os.fspath(arguments[0]) if not isinstance(arguments[0], int) else "")

    sys.addaudithook(watch)
    checkpoints.read(honest)
    watching = False
    assert opened.count(str(honest)) == 1
