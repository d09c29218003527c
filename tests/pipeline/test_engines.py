"""A run that an engine's workers compute: each row is made true once, whatever the engine does."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import layertap
from layertap.pipeline.verify import verify
from tests.conftest import TINY

PLUGINS = [TINY, *(str(Path(__file__).with_name(name)) for name in ("inline.py", "spoiler.py"))]
FILES = ["classifier.npy", "features.0.npy", "index.csv", "failures.csv"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Twenty-two images, of which three cannot be read, in shards of four."""
    root = tmp_path_factory.mktemp("pictures")
    for number in range(22):
        path = root / ("a b" if number % 2 else "ü") / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        if number in (5, 8, 21):
            path.write_bytes(b"no image")
        else:
            Image.effect_noise((20 + number, 24), 60).convert("RGB").save(path)
    return root


def config(pictures, out, **changes):
    return {
        "model": "tiny",
        "taps": ["classifier", "features.0"],
        "source": {"type": "folder", "path": str(pictures)},
        "sink": {"type": "npy", "path": str(out)},
        "device": "cpu",
        "batch_size": 2,
        "shard_rows": 4,
        "threads": 1,
        "observers": [],
        **changes,
    }


def run(pictures, out, **changes):
    return layertap.run(config(pictures, out, **changes), plugins=PLUGINS)


def inline(**params):
    return {"type": "inline", **params}


@pytest.fixture(scope="module")
def whole(pictures, tmp_path_factory):
    """The output of one process."""
    out = tmp_path_factory.mktemp("whole") / "out"
    run(pictures, out)
    return out


def assert_same(out, whole, files=FILES):
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in whole.iterdir())
    assert [name for name in files if (out / name).read_bytes() != (whole / name).read_bytes()] == []


@pytest.mark.parametrize("order", ["plan", "reverse", "twice"])
def test_engine_gives_the_bytes_of_one_process(pictures, whole, tmp_path, order):
    report = run(pictures, tmp_path / "out", engine=inline(order=order))
    assert (report.planned, report.kept, report.failed, report.shards) == (22, 19, 3, 6)
    assert_same(tmp_path / "out", whole)


@pytest.mark.parametrize("spoil", ["run", "shard", "size", "record", "kind"])
def test_receipt_that_is_wrong_is_computed_again(pictures, whole, tmp_path, spoil):
    run(pictures, tmp_path / "out", engine=inline(spoil=spoil))
    assert_same(tmp_path / "out", whole)


def test_shard_that_an_engine_never_brings_is_named(pictures, tmp_path):
    with pytest.raises(layertap.LayertapError, match=r"ended 3 times without a receipt, and shard 1 is missing"):
        run(pictures, tmp_path / "out", engine=inline(order="lost"))


@pytest.mark.parametrize(
    ("damage", "code", "message"),
    [
        ("folder", 7, r"open/\.00000\.json\.\d+\.tmp: No such file"),
        ("link", 7, r"taken/00000-\w+\.inline\.json: is a link"),
        ("path", 6, r"taken/00000-\w+\.inline\.json: records\.0\.2: "),
    ],
)
def test_storage_that_fails_is_not_a_fault_of_the_engine(pictures, whole, tmp_path, damage, code, message):
    with pytest.raises(layertap.StoreError, match=message) as caught:
        run(pictures, tmp_path / "out", engine=inline(damage=damage))
    assert caught.value.code == code
    shutil.rmtree(tmp_path / "out" / "work", ignore_errors=True)
    run(pictures, tmp_path / "out", engine=inline())
    assert_same(tmp_path / "out", whole)


@pytest.mark.parametrize("mode", ["resume", "new"])
def test_working_directory_need_not_be_utf_8(pictures, whole, tmp_path, monkeypatch, mode):
    folder = os.fsencode(tmp_path) + b"/\xff\xe9"
    os.mkdir(folder)
    monkeypatch.chdir(folder)
    if mode == "new":
        run(pictures, "out", limit=3)
    run(pictures, "out", engine=inline(), mode=mode)
    assert_same(Path("out"), whole)


def test_engine_that_fails_is_resumed_by_another_and_by_none(pictures, whole, tmp_path):
    for number, resumed in enumerate((inline(), inline(order="reverse"), None)):
        out = tmp_path / str(number)
        with pytest.raises(layertap.PluginError, match="out of order"):
            run(pictures, out, engine=inline(stop=3, order="reverse"))
        # Nothing is committed, because the first shards are missing; the receipts are kept.
        assert len(list((out / "attempts").glob("*.json"))) == 4
        assert len(list((out / "commits").iterdir())) == 0
        run(pictures, out, engine=resumed)
        assert_same(out, whole)


def test_receipts_that_were_left_are_not_computed_again(pictures, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(layertap.PluginError):
        run(pictures, out, engine=inline(stop=4, order="reverse"))
    left = {path.stem.partition("-")[0] for path in (out / "attempts").glob("*.json")}
    assert left == {"00001", "00002", "00003", "00004", "00005"}
    # This engine is asked for the first one only.
    report = run(pictures, out, engine=inline(stop=1))
    assert report.kept == 19


def test_run_of_one_process_is_resumed_by_an_engine(pictures, whole, tmp_path):
    with pytest.raises(layertap.PluginError):
        run(pictures, tmp_path / "out", observers=[{"type": "stop", "after": 10}])
    run(pictures, tmp_path / "out", engine=inline())
    assert_same(tmp_path / "out", whole)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("threads", 7),
        ("version of torch", "0.0"),
        ("version of tiny.py", "sha256:0"),
        ("about", {"name": "tiny", "seed": 1}),
        ("processor", {"capability": "another"}),
        ("decoders", {}),
    ],
)
def test_worker_that_would_compute_otherwise_is_refused_by_name(pictures, tmp_path, key, value):
    with pytest.raises(layertap.StoreError, match=rf"worker inline on .* otherwise than the run: {key}") as caught:
        run(pictures, tmp_path / "out", engine=inline(change={key: value}))
    assert caught.value.code == 6


def test_processors_any_records_what_computed_each_shard(pictures, whole, tmp_path):
    out = tmp_path / "out"
    run(pictures, out, engine=inline(spoil="kind"), processors="any")
    assert_same(out, whole)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["fingerprint"]["processor"] == manifest["fingerprint"]["device"] == "any"
    assert all(shard["processor"]["architecture"] for shard in manifest["shards"])
    # As if another kind of processor had computed shard 2: verify allows it last bits, and the others none.
    manifest["shards"][2]["processor"]["vendor"] = "Another"
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert not verify(out, plugins=PLUGINS).faults


def test_processors_any_is_tolerant_of_other_kinds_alone(pictures, tmp_path):
    for other, faults in ((True, 0), (False, 4)):
        out = tmp_path / str(other)
        run(pictures, out, processors="any", taps=["classifier"])
        values = np.load(out / "classifier.npy")
        values[:4] = np.nextafter(values[:4], np.inf)
        np.save(out / "classifier.npy", values)
        _sign_again(out, values, other=other)
        assert len(verify(out, rows=19, plugins=PLUGINS).faults) == faults


def _sign_again(out, values, *, other):
    """Give changed rows the digests of rows that were written so."""
    from layertap.store.commits import digest
    from layertap.store.manifest import FileFacts

    manifest = json.loads((out / "manifest.json").read_text())
    manifest["files"]["classifier.npy"] = FileFacts.of(out / "classifier.npy").model_dump()
    start = 0
    for shard in manifest["shards"]:
        shard["values"]["classifier"] = digest(values[start : start + shard["kept"]])
        start += shard["kept"]
    if other:
        for shard in manifest["shards"][:2]:
            shard["processor"]["vendor"] = "Another"
    (out / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"on_error": "fail"}, 4, "cannot be used: not_image"),
        ({"max_failures": 1}, 4, "2 images failed, and max_failures allows 1"),
        ({"sink": "memory"}, 2, "the sink memory does not keep"),
        ({"batch_size": "auto", "shard_rows": None}, 2, "set it to a number"),
    ],
)
def test_limits_and_refusals(pictures, tmp_path, changes, code, message):
    with pytest.raises(layertap.LayertapError, match=message) as caught:
        run(pictures, tmp_path / "out", engine=inline(), **changes)
    assert caught.value.code == code


def test_retry_failed_computes_here(pictures, tmp_path):
    settings = config(pictures, tmp_path / "out", engine=inline())
    layertap.run(settings, plugins=PLUGINS)
    with pytest.raises(layertap.ConfigError, match="engine=null"):
        layertap.run(settings, plugins=PLUGINS, retry_failed=True)
    layertap.run(settings, overrides={"engine": None}, plugins=PLUGINS, retry_failed=True)


def test_new_output_replaces_the_old_one(pictures, whole, tmp_path):
    run(pictures, tmp_path / "out", engine=inline(), model={"type": "tiny", "seed": 1})
    run(pictures, tmp_path / "out", engine=inline(), mode="new")
    assert_same(tmp_path / "out", whole)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_images_that_are_not_files_are_listed_by_the_worker(pictures, tmp_path):
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 255, (11, 20, 20, 3), np.uint8))
    for name, engine in (("one", None), ("many", inline(order="reverse"))):
        run(pictures, tmp_path / name, engine=engine, source={"type": "array", "path": str(tmp_path / "images.npy")})
    assert_same(tmp_path / "many", tmp_path / "one")


def test_vanished_and_changed_images_fail_alike(pictures, tmp_path):
    shutil.copytree(pictures, tmp_path / "pictures")

    files = sorted((tmp_path / "pictures").rglob("*.png"))
    outs = []
    for engine in (None, inline()):
        out = tmp_path / f"out{len(outs)}"
        outs.append(out)
        kept = files[3].read_bytes(), files[10].read_bytes()
        layertap.run(
            config(
                tmp_path / "pictures",
                out,
                engine=engine,
                observers=[{"type": "spoiler", "remove": str(files[3]), "change": str(files[10])}],
            ),
            plugins=PLUGINS,
        )
        files[3].write_bytes(kept[0])
        files[10].write_bytes(kept[1])
    assert (outs[0] / "failures.csv").read_text() == (outs[1] / "failures.csv").read_text()
    assert "vanished" in (outs[0] / "failures.csv").read_text()


def test_images_of_different_sizes(pictures, tmp_path):
    for name, engine in (("one", None), ("many", inline(order="reverse"))):
        run(
            pictures,
            tmp_path / name,
            engine=engine,
            model="any_size",
            taps=[{"layer": "0", "reduce": ["mean_pool"]}],
            preprocess="as_large",
        )
    assert_same(tmp_path / "many", tmp_path / "one", ["0.npy", "index.csv", "failures.csv"])


def test_threads_are_set_for_the_run_alone(pictures, tmp_path):
    before = torch.get_num_threads()
    run(pictures, tmp_path / "out", threads=before + 1)
    assert torch.get_num_threads() == before
    assert layertap.open(tmp_path / "out").manifest["threads"] == before + 1
    with pytest.raises(layertap.StoreError, match=rf"threads was {before + 1}, now {before}"):
        run(pictures, tmp_path / "out", threads=before)
