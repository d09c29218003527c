"""The samples are photographs that scikit-image ships, found without importing it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from importlib.machinery import ModuleSpec

import pytest

import layertap
from layertap.images.decoding.decode import decode
from layertap.images.reading import read
from layertap.records import Planned
from layertap_plugins.sources.samples import SamplesSource


def test_samples_are_decodable_photographs_sorted_by_name():
    records = list(SamplesSource.of().records())
    ids = [record.id for record in records]
    assert ids == sorted(set(ids), key=str.encode)
    assert {"motorcycle_left.png", "motorcycle_right.png"} <= set(ids)
    assert 8 <= len(ids) <= 16
    assert all(record.meta == {"label": record.id.partition(".")[0]} for record in records)
    assert {decode(read(Planned(record))).mode for record in records} == {"L", "RGB"}
    assert list(SamplesSource.of().records()) == records


def test_samples_are_found_without_importing_skimage():
    code = (
        "import sys; from layertap_plugins.sources.samples import SamplesSource; list(SamplesSource.of().records());"
        "print(sorted({'skimage', 'numpy', 'PIL', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_missing_scikit_image_names_the_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError) as caught:
        list(SamplesSource.of().records())
    assert caught.value.name == "skimage"
    assert SamplesSource.extra == "samples"


def test_a_photograph_that_is_gone_is_named(monkeypatch, tmp_path):
    (tmp_path / "data").mkdir()
    spec = ModuleSpec("skimage", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(layertap.ConfigError, match=r"astronaut\.png is not in .*install another version"):
        list(SamplesSource.of().records())
