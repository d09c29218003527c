"""`layertap verify` and `layertap info`: an output is what its manifest says, or the fault is named."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import layertap
from layertap.pipeline.verify import verify
from tests.conftest import TINY
from tests.pipeline.test_pipeline import config, run
from tests.plugins.servers import folder, serving
from tests.store.test_store import stop

KEEPS_PARTS = """
import layertap
from layertap_plugins.sinks.npy import NpySink
class Parts(layertap.FileSink):
    def save(self, shard, folder):
        (folder / "rows").mkdir()
        inner = NpySink(self.params); inner.stems = self.stems
        inner.save(shard, folder / "rows")
    def load(self, folder, tap):
        inner = NpySink(self.params); inner.stems = self.stems
        return inner.load(folder / "rows", tap)
@layertap.hookimpl
def register_sinks(register): register("parts", Parts)
"""


@pytest.fixture
def output(photos, tmp_path) -> Path:
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos/cats/05.jpg").write_text("no image")
    run(tmp_path / "photos", tmp_path / "out", shard_rows=4)
    return tmp_path / "out"


def check(path, **kwargs):
    return verify(path, plugins=[TINY], **kwargs)


def test_output_as_its_run_has_left_it_has_no_fault(output):
    verdict = check(output, rows=100)
    assert verdict.faults == verdict.environment == []
    assert (verdict.complete, verdict.files, verdict.shards, verdict.difference) == (True, 4, 5, 0.0)
    assert verdict.rows == list(range(19))
    assert verdict.bytes == sum(p.stat().st_size for p in output.iterdir() if p.name != "manifest.json")


def test_rows_are_drawn_and_computed_again(output):
    assert len(check(output).rows) == 16
    assert check(output, rows=0).rows == []


def damage(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["classifier.npy", "features.0.npy", "index.csv", "failures.csv"])
def test_one_bit_of_any_file_is_found(output, name):
    damage(output / name, -2)
    faults = check(output).faults
    assert any(fault.startswith(f"{name}: is damaged") for fault in faults)


def test_the_shard_of_a_damaged_row_is_named(output):
    damage(output / "classifier.npy", 128 + 7 * 10 * 4)  # row 7, of shard 1 (rows 3 to 6 and 7 to 10: shard 2)
    faults = check(output).faults
    assert "classifier: the rows 7 to 10 (shard 2) are damaged" in faults
    assert not any("features.0" in fault for fault in faults)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda out: (out / "classifier.npy").unlink(), "classifier.npy: No such file"),
        (lambda out: os.truncate(out / "classifier.npy", 300), "classifier.npy: has 300 bytes"),
        (
            lambda out: (out / "index.csv").write_text("row,id,label\n0,a,b\n"),
            "index.csv has 1 rows, and its manifest says 19",
        ),
        (lambda out: (out / "failures.csv").write_text("id,stage,reason\n"), "19 images kept and 0 failed"),
    ],
    ids=["removed", "cut", "index", "failures"],
)
def test_every_planned_image_is_accounted_for(output, change, fault):
    change(output)
    assert any(fault in found for found in check(output).faults)


def test_row_that_is_no_longer_what_the_model_gives_is_found(output, tmp_path):
    """All digests fit, and the values are another model's: only computing them again shows it."""
    other = json.loads((output / "manifest.json").read_text())
    run(tmp_path / "photos", tmp_path / "other", shard_rows=4, model={"type": "tiny", "seed": 1})
    forged = json.loads((tmp_path / "other/manifest.json").read_text())
    forged |= {key: other[key] for key in ("config", "fingerprint", "model")}
    (tmp_path / "other/manifest.json").write_text(json.dumps(forged))
    verdict = check(tmp_path / "other", rows=3)
    assert len(verdict.faults) == 6
    assert all("computed again differs by" in fault for fault in verdict.faults)
    assert verdict.difference > 0


def test_source_that_has_moved_can_be_named(output, tmp_path):
    os.rename(tmp_path / "photos", tmp_path / "moved")
    with pytest.raises(layertap.ConfigError, match="photos"):
        check(output)
    assert check(output, overrides={"source.path": str(tmp_path / "moved")}).faults == []


def test_source_that_is_another_one_now_cannot_vouch_for_the_rows(output, tmp_path):
    (tmp_path / "photos/cats/05.jpg").unlink()
    with pytest.raises(layertap.StoreError, match=r"images was 20, now 19.*--rows 0") as refused:
        check(output)
    assert refused.value.code == 6
    assert check(output, rows=0).faults == []


def test_files_with_new_times_are_noted_and_computed_again(output, tmp_path):
    os.utime(tmp_path / "photos/cats/01.jpg", (1, 1))
    verdict = check(output, rows=100)
    assert verdict.faults == []
    assert len(verdict.environment) == 1
    assert "file sizes and times" in verdict.environment[0]


def test_image_that_cannot_be_used_any_more_is_a_fault(output, tmp_path):
    (tmp_path / "photos/cats/01.jpg").write_text("gone bad")
    faults = check(output, rows=100).faults
    assert faults == ["row 0 ('cats/01.jpg'): its image can no longer be used"]


def test_unfinished_output_is_checked_as_far_as_it_is(photos, tmp_path):
    stop(photos, tmp_path / "out")
    verdict = check(tmp_path / "out", rows=100)
    assert (verdict.complete, verdict.shards, verdict.faults) == (False, 2, [])
    assert verdict.rows == list(range(8))
    damage(tmp_path / "out/parts/00001/classifier.npy", -1)
    faults = check(tmp_path / "out").faults
    assert any(fault.startswith("parts/00001/classifier.npy: is damaged") for fault in faults)
    assert "classifier: the rows 4 to 7 (shard 1) are damaged" in faults


def test_sink_that_keeps_its_parts_in_folders_of_its_own(photos, tmp_path):
    (tmp_path / "parts.py").write_text(KEEPS_PARTS)
    plugins = [TINY, str(tmp_path / "parts.py")]
    sink = {"type": "parts", "path": str(tmp_path / "out")}
    layertap.run(config(photos, None, sink=sink, shard_rows=4), plugins=plugins)
    verdict = verify(tmp_path / "out", rows=100, plugins=plugins)
    assert (verdict.files, verdict.shards, verdict.faults) == (12, 5, [])
    damage(tmp_path / "out/parts/00002/rows/features.0.npy", -1)
    assert len(verify(tmp_path / "out", rows=0, plugins=plugins).faults) == 2


def command(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "layertap", *map(str, args)], capture_output=True, text=True, check=False, timeout=120
    )


def test_command_line_says_what_it_checked_and_ends_with_7_at_a_fault(output):
    done = command("verify", output, "--plugin", TINY, "--rows", "2")
    assert done.returncode == 0, done.stderr
    assert "complete; 4 files" in done.stdout
    assert "2 rows computed again, the same to the bit" in done.stdout
    assert done.stdout.endswith("all is well\n")
    damage(output / "classifier.npy", -1)
    done = command("verify", output, "--plugin", TINY, "--json")
    assert done.returncode == 7
    assert len(json.loads(done.stdout)["faults"]) == 2


def test_folder_that_is_no_output_is_told(tmp_path):
    for word in ("verify", "info"):
        done = command(word, tmp_path)
        assert (done.returncode, done.stderr) == (6, f"{tmp_path}: no layertap output here (no manifest.json)\n")


def test_info_says_in_a_screen_what_an_output_is(output):
    done = command("info", output)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) < 24
    for said in (
        "complete",
        "19 kept, 1 failed, 20 planned: not_image 1",
        "tiny",
        "float32 (19, 10)",
        "torch",
        "shards",
    ):
        assert said in done.stdout, said
    data = json.loads(command("info", output, "--json").stdout)
    assert data["counts"] == {"planned": 20, "kept": 19, "failed": 1, "shards": 5}


def test_info_of_an_unfinished_output_says_how_far_it_is(photos, tmp_path):
    stop(photos, tmp_path / "out")
    done = command("info", tmp_path / "out")
    assert f"unfinished, 8 of 20 images done, last written by process {os.getpid()} on" in done.stdout


def test_neither_info_nor_open_loads_torch(output):
    code = (
        "import sys, layertap\nfrom pathlib import Path\n"
        "from layertap.cli.info import summary_text\nfrom layertap.store.manifest import read_output\n"
        f"path = Path({str(output)!r}); print(summary_text(path, read_output(path)))\n"
        "assert layertap.open(path)['classifier'][3:5].shape == (2, 10)\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_bfloat16_is_verified_by_its_bits(photos, tmp_path):
    taps = [{"layer": "classifier", "dtype": "bfloat16"}]
    run(photos, tmp_path / "out", taps=taps, shard_rows=4)
    assert check(tmp_path / "out", rows=5).faults == []
    stored = np.load(tmp_path / "out/classifier.npy")
    stored[4, 3] ^= 1
    np.save(tmp_path / "out/classifier.npy", stored)
    assert "classifier: the rows 4 to 7 (shard 1) are damaged" in check(tmp_path / "out").faults


def moved(output, **source):
    """The manifest of an output as somebody else may have written it, with another source."""
    path = output / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["config"]["source"] = source
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("source", "hosts"),
    [
        ({"type": "folder", "path": "http://example.org/photos/"}, ["example.org"]),
        ({"type": "folder", "path": "http://user@example.org:8080/a.jpg"}, ["example.org:8080"]),
        ({"type": "folder", "path": "zip://photos::https://example.org/a.zip"}, ["example.org"]),
        (
            {"type": "folder", "path": "s3://photos/cats", "storage_options": {"endpoint_url": "http://10.0.0.1"}},
            ["10.0.0.1", "photos"],
        ),
        ({"type": "manifest", "path": "list.csv"}, ["example.net", "example.org"]),
        ({"type": "huggingface", "path": "owner/name"}, ["huggingface.co"]),
        ({"type": "torchvision_dataset", "name": "CIFAR10", "args": {"download": True}}, ["torchvision"]),
    ],
    ids=lambda case: case["type"] + " " + case.get("path", "").partition(":")[0] if isinstance(case, dict) else "",
)
def test_nothing_is_fetched_for_an_output_unless_its_hosts_are_named(output, tmp_path, monkeypatch, source, hosts):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    (tmp_path / "list.csv").write_text("path\nhttp://example.org/a.jpg\nhttps://example.net/b.jpg\nc.jpg\n")
    moved(output, **source)

    def refuse(*_):
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for named in ([], hosts[1:], ["elsewhere.org"]):
        with pytest.raises(layertap.UnsafeError) as caught:
            check(output, remote=named)
        options = " ".join(f"--remote {host}" for host in hosts if host not in named)
        assert f"to fetch them from there, add {options}, or check the files alone with --rows 0" in str(caught.value)
    assert check(output, rows=0).faults == []


def test_a_remote_source_is_read_again_from_the_host_that_is_named(photos, tmp_path):
    with serving(folder(photos)) as server:
        run(f"{server.url}/", tmp_path / "out", shard_rows=4)
        before = sum(server.asked.values())
        host = server.url.removeprefix("http://")
        with pytest.raises(layertap.UnsafeError, match=f"--remote {host}"):
            check(tmp_path / "out")
        command = [sys.executable, "-m", "layertap", "verify", str(tmp_path / "out"), "--plugin", TINY]
        refused = subprocess.run(command, capture_output=True, text=True)
        assert (refused.returncode, sum(server.asked.values())) == (8, before)
        verdict = check(tmp_path / "out", remote=[host])
        assert (verdict.faults, len(verdict.rows)) == ([], 16)
        assert sum(server.asked.values()) > before
        allowed = subprocess.run([*command, "--remote", host], capture_output=True, text=True)
        assert allowed.returncode == 0, allowed.stderr
    # What has been copied to this machine needs no leave.
    shutil.copytree(photos, tmp_path / "copies")
    assert check(tmp_path / "out", overrides={"source.path": str(tmp_path / "copies")}).faults == []
