"""Where an output cannot be written is known before a model is loaded, and nothing is written to find it out."""

from __future__ import annotations

import json
import os

import pytest

import layertap
from layertap.store.lock import Lock
from tests.conftest import TINY
from tests.pipeline.test_pipeline import config, run

# A model that must not be loaded.
UNLOADED = """
import layertap
class Unloaded(layertap.ModelProvider):
    def load(self):
        raise AssertionError("loaded")
@layertap.hookimpl
def register_models(register): register("unloaded", Unloaded)
"""


def refused(photos, out, tmp_path, **changes):
    """The error of a run into `out`, which comes before the model."""
    (tmp_path / "unloaded.py").write_text(UNLOADED)
    with pytest.raises(layertap.LayertapError) as caught:
        layertap.run(config(photos, out, model="unloaded", **changes), plugins=[TINY, str(tmp_path / "unloaded.py")])
    assert "loaded (at" not in str(caught.value)
    return caught.value


def test_a_file_and_a_file_above_are_refused(photos, tmp_path):
    (tmp_path / "file").write_text("precious")
    error = refused(photos, tmp_path / "file", tmp_path)
    assert (error.code, "is a file" in str(error)) == (6, True)
    error = refused(photos, tmp_path / "file" / "out", tmp_path)
    assert (error.code, f"{tmp_path / 'file'}: is not a folder" in str(error)) == (7, True)


def test_a_link_to_nothing_is_refused(photos, tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "gone" / "away")
    assert refused(photos, tmp_path / "out", tmp_path).code == 7


def test_a_folder_of_something_else_is_refused(photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    assert refused(photos, tmp_path / "out", tmp_path).code == 6


def test_a_folder_that_cannot_be_written_is_refused(photos, tmp_path, monkeypatch):
    (tmp_path / "locked").mkdir()
    # The superuser may write anywhere, so the system's answer is replaced.
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, *rest: path != tmp_path / "locked" and real(path, *rest))
    for out in ("locked", "locked/deep/out"):
        error = refused(photos, tmp_path / out, tmp_path)
        assert (error.code, str(error).startswith(f"{tmp_path / 'locked'}: cannot be written to")) == (7, True)
    assert not list((tmp_path / "locked").iterdir())


def test_an_output_that_is_being_written_is_refused(photos, tmp_path):
    run(photos, tmp_path / "out")
    with Lock(tmp_path / "out"):
        assert refused(photos, tmp_path / "out", tmp_path, mode="new").code == 5


@pytest.mark.parametrize("text", ["{", "[]", '{"layertap": 99}'])
def test_a_manifest_that_cannot_be_read_is_refused(photos, tmp_path, text):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text(text)
    error = refused(photos, tmp_path / "out", tmp_path)
    assert (error.code, "manifest.json" in str(error)) == (6, True)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"batch_size": 5}, "batch_size was 4, now 5"),
        ({"taps": ["features.1"]}, "taps was"),
        ({"limit": 10}, "images was 20, now 10"),
        ({"autocast": "bfloat16"}, 'autocast was null, now "bfloat16"'),
        ({"nondeterministic": "seed"}, 'nondeterministic was null, now "seed"'),
        ({"formats": ["AVIF"]}, "formats was"),
    ],
)
def test_another_configuration_is_refused_as_far_as_it_is_known(photos, tmp_path, changes, named):
    run(photos, tmp_path / "out")
    error = refused(photos, tmp_path / "out", tmp_path, **changes)
    assert (error.code, named in str(error)) == (6, True)


def test_every_configuration_may_take_an_output_without_a_shard(photos, tmp_path):
    run(photos, tmp_path / "whole", taps=["features.1"])
    with pytest.raises(layertap.PluginError, match="stopped"):
        run(photos, tmp_path / "out", shard_rows=8, observers=[{"type": "stop", "after": 4}])
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["status"] == "running"
    assert run(photos, tmp_path / "out", taps=["features.1"]).kept == 20
    assert list(layertap.open(tmp_path / "out").taps) == ["features.1"]
    assert not (tmp_path / "out" / "parts").exists()
