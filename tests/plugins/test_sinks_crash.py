"""A file sink that is killed or runs out of disk resumes to the same output; damage is reported."""

from __future__ import annotations

import shutil

import pytest

import layertap
from layertap.pipeline.verify import verify
from tests.conftest import TINY
from tests.plugins.sinking import SINKS, fated, sink_config, sink_run, tree, values


@pytest.fixture(scope="module")
def wholes(photos, tmp_path_factory):
    """An undisturbed output of each sink."""
    root = tmp_path_factory.mktemp("whole")
    for kind in SINKS:
        sink_run(kind, photos, root / kind)
    return root


@pytest.fixture(scope="module")
def killed(photos, tmp_path_factory):
    """An output of each sink killed in the middle of a part, resumed, and killed in the middle of its merge."""
    root = tmp_path_factory.mktemp("killed")
    attempts = [(sink_config(kind, photos, root / kind), fate) for kind in SINKS for fate in ("part", "merge")]
    ends, said = fated(attempts)
    assert ends == [-9] * len(attempts), said
    return root


@pytest.mark.parametrize("kind", SINKS)
def test_killed_run_reads_as_far_as_it_came_and_ends_as_if_it_had_not_been(photos, wholes, killed, kind):
    out = killed / kind
    unfinished = layertap.open(out)
    assert not unfinished.is_complete
    assert values(out) == values(wholes / kind)  # everything is committed, and half of it is in its place
    assert sink_run(kind, photos, out).kept == 20
    assert values(out) == values(wholes / kind)
    if kind != "lance":  # its files have random names
        assert tree(out) == tree(wholes / kind)
    verdict = verify(out, rows=2, plugins=[TINY])
    assert (verdict.complete, verdict.faults) == (True, [])
    assert verdict.files == len(tree(out))


@pytest.mark.parametrize("kind", SINKS)
def test_interrupted_run_shows_its_commits(photos, wholes, tmp_path, kind):
    with pytest.raises(layertap.PluginError, match="stopped"):
        sink_run(kind, photos, tmp_path / "out", observers=[{"type": "stop", "after": 12}])
    unfinished = layertap.open(tmp_path / "out")
    whole = layertap.open(wholes / kind)
    for tap in whole.taps:
        assert unfinished[tap].shape[0] == 8
        assert unfinished[tap][:].tobytes() == whole[tap][:8].tobytes()
    assert verify(tmp_path / "out", rows=0, plugins=[TINY]).faults == []


def test_new_output_takes_the_place_of_one_with_folders(photos, tmp_path):
    # An output that was begun next to it and killed half in place must be removed, too.
    attempts = []
    for kind in SINKS:
        sink_run(kind, photos, tmp_path / kind, taps=["features.0"])
        attempts.append((sink_config(kind, photos, tmp_path / kind, taps=["classifier"], mode="new"), "merge"))
    ends, said = fated(attempts)
    assert ends == [-9] * len(attempts), said
    for kind in SINKS:
        sink_run(kind, photos, tmp_path / kind, taps=["features.1"], mode="new")
        assert layertap.open(tmp_path / kind).taps == ["features.1"]
        assert verify(tmp_path / kind, rows=0, plugins=[TINY]).faults == []
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(SINKS)


def test_full_disk_is_a_clean_stop_and_the_run_resumes(photos, wholes, tmp_path):
    # The first limit is less than a part needs; the second is more, but less than any merged output needs.
    attempts = [(sink_config(kind, photos, tmp_path / kind), limit) for kind in SINKS for limit in (30_000, 100_000)]
    ends, said = fated(attempts)
    expected = {"safetensors": 0, "parquet": 0, "hdf5": 7, "zarr": 7, "lance": 7}
    assert dict(zip(SINKS, ends[1::2], strict=True)) == expected, said
    assert ends[::2] == [7] * len(SINKS), said
    assert all("File too large" in line for line in said.splitlines()), said
    for kind in SINKS:
        assert sink_run(kind, photos, tmp_path / kind).kept == 20
        assert values(tmp_path / kind) == values(wholes / kind)


DAMAGE = [
    ("safetensors", "rows/part-00002.safetensors", 0),
    ("safetensors", "rows/part-00002.safetensors", 8),
    ("parquet", "rows/part-00002.parquet", -20),
    ("parquet", "rows/part-00002.parquet", 20_000),
    ("hdf5", "features.h5", 0),
    ("hdf5", "features.h5", 100_000),
    ("zarr", "features.zarr/features.0%2Ffloat32/zarr.json", 0),
    ("zarr", "features.zarr/features.0%2Ffloat32/c/0/0/0/0", 20_000),
    ("zarr", "features.zarr/features.0%2Ffloat32/c/0/0/0/0", -1),
    ("lance", "table.lance/data/*.lance", -2),
]


@pytest.mark.parametrize(
    ("kind", "name", "spot"),
    [
        *DAMAGE,
        *((kind, name, None) for kind, name, _ in DAMAGE[1::2]),
        ("lance", "table.lance/_versions/*.manifest", None),
    ],
)
def test_damaged_file_is_named(wholes, tmp_path, kind, name, spot):
    shutil.copytree(wholes / kind, tmp_path / "out")
    (file,) = (tmp_path / "out").glob(name)
    data = bytearray(file.read_bytes())
    if spot is None:
        file.write_bytes(data[: len(data) // 2])
    else:
        data[spot] ^= 0x55
        file.write_bytes(data)
    with pytest.raises(layertap.StoreError) as caught:
        values(tmp_path / "out")
    assert "\n" not in str(caught.value)
    # The file itself, or the array or table that it belongs to.
    whole = {"zarr": 2, "lance": 1}.get(kind, 9)
    assert f"{tmp_path / 'out' / '/'.join(name.split('/')[:whole])}: " in str(caught.value)
