"""The output folder: commits in their order, one owner at a time, nothing half-written."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import layertap
from layertap.store.lock import Lock
from tests.conftest import TINY
from tests.pipeline.test_pipeline import config, contents, run

SLOW = """
import os, sys, time, layertap
class Slow(layertap.Observer):
    def shard_committed(self, run, number):
        if number == 1:
            print("two shards", flush=True)
            time.sleep(60)
@layertap.hookimpl
def register_observers(register): register("slow", Slow)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_killed_run_resumes_to_the_same_bytes(photos, tmp_path, how):
    run(photos, tmp_path / "whole", shard_rows=4)
    (tmp_path / "slow.py").write_text(SLOW)
    killed = config(photos, tmp_path / "out", shard_rows=4, observers=["slow"])
    (tmp_path / "c.yaml").write_text(json.dumps(killed))
    command = ["run", str(tmp_path / "c.yaml"), "--plugin", TINY, "--plugin", str(tmp_path / "slow.py")]
    with subprocess.Popen([sys.executable, "-m", "layertap", *command], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "two shards\n"
        owner = rf"another run is writing here: process {process.pid} on \S+, since 20"
        with pytest.raises(layertap.StoreError, match=owner) as locked:
            run(photos, tmp_path / "out", shard_rows=4)
        assert locked.value.code == 5
        process.send_signal(how)
    assert process.returncode == (-9 if how is signal.SIGKILL else 143)
    committed = len(layertap.open(tmp_path / "out").ids)
    assert 8 <= committed < 20
    report = run(photos, tmp_path / "out", shard_rows=4)
    assert report.kept == 20
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not (tmp_path / "out/parts").exists()


def stop(photos: Path, out: Path) -> None:
    """An output with two shards of four, left by a run that stopped."""
    with pytest.raises(layertap.PluginError, match="stopped"):
        run(photos, out, shard_rows=4, observers=[{"type": "stop", "after": 12}])


def test_part_without_a_commit_record_does_not_exist(photos, tmp_path):
    run(photos, tmp_path / "whole", shard_rows=4)
    stop(photos, tmp_path / "out")
    part = tmp_path / "out/parts/00004"
    part.mkdir()
    np.save(part / "classifier.npy", np.full((4, 10), 7.0))
    assert len(layertap.open(tmp_path / "out").ids) == 8
    run(photos, tmp_path / "out", shard_rows=4)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_sink_that_cannot_write_ends_the_run_cleanly_and_it_resumes(photos, tmp_path):
    (tmp_path / "full.py").write_text(
        "import errno, os, layertap\n"
        "from layertap_plugins.sinks.npy import NpySink\n"
        "class Full(NpySink):\n"
        "    def save(self, shard, folder):\n"
        "        super().save(shard, folder)\n"
        "        if shard.number == 2 and os.path.exists(FLAG):\n"
        "            raise OSError(errno.ENOSPC, 'No space left on device')\n"
        f"FLAG = {str(tmp_path / 'flag')!r}\n"
        "@layertap.hookimpl\n"
        "def register_sinks(register): register('full', Full)\n"
    )
    (tmp_path / "flag").touch()
    whole = config(photos, None, shard_rows=4, sink={"type": "full", "path": str(tmp_path / "out")})
    own = [TINY, str(tmp_path / "full.py")]
    with pytest.raises(layertap.StoreError, match="No space left") as full:
        layertap.run(whole, plugins=own)
    assert full.value.code == 7
    (tmp_path / "flag").unlink()
    assert layertap.run(whole, plugins=own).kept == 20
    run(photos, tmp_path / "plain", shard_rows=4)
    assert contents(tmp_path / "out") == contents(tmp_path / "plain")


def test_commit_is_written_synced_renamed_and_recorded_in_that_order(photos, tmp_path, monkeypatch):
    trace: list[str] = []

    def traced(name: str):
        real = getattr(os, name)

        def call(*args, **kwargs):
            shown = args[0] if isinstance(args[0], (str, Path)) else os.readlink(f"/proc/self/fd/{args[0]}")
            target = f" -> {args[1]}" if name in ("rename", "replace", "link") else ""
            trace.append(f"{name} {shown}{target}".replace(f"{tmp_path}/out/", ""))
            return real(*args, **kwargs)

        return call

    for name in ("fsync", "rename", "link"):
        monkeypatch.setattr(os, name, traced(name))
    run(photos, tmp_path / "out", shard_rows=4, taps=["classifier"])
    start = trace.index("fsync parts/00001.tmp/classifier.npy")
    assert trace[start : start + 7] == [
        "fsync parts/00001.tmp/classifier.npy",
        "fsync parts/00001.tmp",
        "rename parts/00001.tmp -> parts/00001",
        "fsync parts",
        "fsync commits/00001.json.tmp",
        "link commits/00001.json.tmp -> commits/00001.json",
        "fsync commits",
    ]


@pytest.mark.parametrize("made", ["", "deep", "deep/out"])
def test_folder_that_a_killed_run_has_made_is_durable_before_anything_is_in_it(photos, tmp_path, monkeypatch, made):
    (tmp_path / made).mkdir(parents=True, exist_ok=True)
    real, synced, empty = os.fsync, [], []

    def fsync(descriptor):
        real(descriptor)
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        empty.append(not any(path.is_file() for path in (tmp_path / "deep").rglob("*")))

    monkeypatch.setattr(os, "fsync", fsync)
    run(photos, tmp_path / "deep/out")
    first = [path for path, before in zip(synced, empty, strict=True) if before]
    assert first[-1] == str(tmp_path / "deep")
    assert (str(tmp_path) in first) == (made != "deep/out")


@pytest.mark.parametrize("refusal", [errno.EACCES, errno.EINVAL])
def test_parent_that_cannot_be_synced_is_no_hindrance_to_a_folder_that_is_there(photos, tmp_path, monkeypatch, refusal):
    (tmp_path / "out").mkdir()
    real = os.open

    def refuse(path, *args, **kwargs):
        if path == tmp_path:
            raise OSError(refusal, os.strerror(refusal), str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    assert run(photos, tmp_path / "out").kept == 20
    with pytest.raises(layertap.StoreError, match=os.strerror(refusal)):
        run(photos, tmp_path / "new")


def test_lock_is_gone_with_its_process_and_leaves_no_file(photos, tmp_path):
    (tmp_path / "out").mkdir()
    descriptor = os.open(tmp_path / "out", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(layertap.StoreError):
        run(photos, tmp_path / "out")
    os.close(descriptor)
    assert run(photos, tmp_path / "out").kept == 20


def test_folder_that_another_run_switches_away_while_we_lock_it_is_locked_again(photos, tmp_path, monkeypatch):
    """The lock is on the folder, not on its name: what stands at the path afterwards is what must be held."""
    run(photos, tmp_path / "out")
    run(photos, tmp_path / "other")
    real = fcntl.flock

    def flock(descriptor, how):
        if (tmp_path / "other").exists():
            os.rename(tmp_path / "out", tmp_path / "gone")
            os.rename(tmp_path / "other", tmp_path / "out")
        return real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with Lock(tmp_path / "out"), pytest.raises(layertap.StoreError, match="another run"):
        Lock(tmp_path / "out")


def test_file_system_without_locks_is_refused_in_words(photos, tmp_path, monkeypatch):
    def flock(descriptor, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(layertap.StoreError, match="has no locks"):
        run(photos, tmp_path / "out")


def replaced_by_link(part: Path) -> None:
    os.rename(part, part.parents[3] / "elsewhere.npy")
    part.symlink_to(part.parents[3] / "elsewhere.npy")


def replaced_by_pipe(part: Path) -> None:
    part.unlink()
    os.mkfifo(part)


def flipped(part: Path) -> None:
    data = bytearray(part.read_bytes())
    data[-3] ^= 1
    part.write_bytes(data)


def forged(part: Path) -> None:
    record = part.parents[2] / f"commits/{part.parent.name}.json"
    record.write_text(record.read_text().replace("cats/01.jpg", "cats/xx.jpg").replace("cats/09.jpg", "cats/xx.jpg"))


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("how", [flipped, Path.unlink, replaced_by_link, replaced_by_pipe, forged])
def test_committed_part_that_is_not_what_was_committed_is_made_again(photos, tmp_path, how, number):
    run(photos, tmp_path / "whole", shard_rows=4)
    stop(photos, tmp_path / "out")
    how(tmp_path / f"out/parts/{number:05d}/classifier.npy")
    run(photos, tmp_path / "out", shard_rows=4)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("how", [Path.unlink, lambda path: os.truncate(path, 300)], ids=["gone", "cut"])
def test_complete_output_that_has_lost_a_file_is_not_called_complete(photos, tmp_path, how):
    run(photos, tmp_path / "out")
    how(tmp_path / "out/classifier.npy")
    with pytest.raises(layertap.StoreError, match=r"classifier.npy: .*mode=new extracts everything again") as lost:
        run(photos, tmp_path / "out")
    assert lost.value.code == 7
    assert run(photos, tmp_path / "out", mode="new").kept == 20
    assert run(photos, tmp_path / "out").already


def test_reader_beside_a_run_sees_whole_commits_only(photos, tmp_path):
    (tmp_path / "watch.py").write_text(
        "import layertap\n"
        "class Watch(layertap.Observer):\n"
        "    def batch_done(self, run, count):\n"
        "        seen = layertap.open(run.path)\n"
        "        assert len(seen['classifier']) == len(seen.ids) and len(seen.ids) % 4 == 0\n"
        "@layertap.hookimpl\n"
        "def register_observers(register): register('watch', Watch)\n"
    )
    whole = config(photos, tmp_path / "out", shard_rows=4, observers=["watch"])
    assert layertap.run(whole, plugins=[TINY, str(tmp_path / "watch.py")]).kept == 20


def test_crash_while_sweeping_is_swept_by_the_next_run(photos, tmp_path):
    run(photos, tmp_path / "out", shard_rows=4)
    stop(photos, tmp_path / "stopped")
    for name in ("parts", "commits"):
        shutil.copytree(tmp_path / "stopped" / name, tmp_path / "out" / name)
    before = contents(tmp_path / "out")
    assert run(photos, tmp_path / "out", shard_rows=4).already
    assert contents(tmp_path / "out") == before
    assert not (tmp_path / "out/parts").exists()


def test_commit_records_are_read_once_to_resume_and_once_to_finish(photos, tmp_path, monkeypatch):
    stop(photos, tmp_path / "out")
    read: Counter[str] = Counter()
    real = os.open

    def opened(path, *args, **kwargs):
        if str(path).endswith(".json") and Path(path).parent.name == "commits":
            read[Path(path).name] += 1
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", opened)
    run(photos, tmp_path / "out", shard_rows=4)
    # Once more each, for the names of the parts that are removed after the merge.
    assert read == {f"{number:05d}.json": 3 if number < 2 else 2 for number in range(5)}


def test_metadata_of_a_subclass_has_the_plain_type_that_it_is_stored_as(tmp_path, photos):
    (tmp_path / "scored.py").write_text(
        "from pathlib import Path\nimport numpy as np\nimport layertap\n"
        "class Scored(layertap.Source):\n"
        "    def records(self):\n"
        f"        for number, path in enumerate(sorted(Path({str(photos)!r}).rglob('*.jpg'))):\n"
        "            meta = {'score': np.float64(number / 7), 'word': np.str_('a') if number else None}\n"
        "            yield layertap.ImageRecord(path.name, path, meta)\n"
        "@layertap.hookimpl\n"
        "def register_sources(register): register('scored', Scored)\n"
    )
    whole = config(photos, tmp_path / "out", source="scored", shard_rows=4)
    layertap.run(whole, plugins=[TINY, str(tmp_path / "scored.py")])
    features = layertap.open(tmp_path / "out")
    assert features.manifest["meta"] == {"score": "float", "word": "str"}
    assert features.index[1] == {"row": 1, "id": features.ids[1], "score": 1 / 7, "word": "a"}
