"""The dry run says what a run would do, and writes nothing."""

from __future__ import annotations

import json

import pytest

import layertap
from layertap.cli.format import forecast_text
from layertap.cli.plan import forecast
from tests.conftest import TINY
from tests.pipeline.test_pipeline import config, run

TAPS = {"map": "features.0", "pooled": {"layer": "features.1", "reduce": ["mean_pool"], "dtype": "float16"}}


def plan(*args, measure=False, **changes):
    return forecast(config(*args, **changes), plugins=[TINY], measure=measure)


def test_forecast_is_what_the_run_then_does(photos, tmp_path):
    found = plan(photos, tmp_path / "out", taps=TAPS)
    assert not (tmp_path / "out").exists()
    assert (found.images, found.batch_size, found.state) == (20, 4, "new")
    assert found.row_bytes == 8 * 14 * 14 * 4 + 8 * 2
    assert found.bytes == 20 * found.row_bytes
    assert found.free_bytes is not None
    report = run(photos, tmp_path / "out", taps=TAPS)
    assert {n: (c.shape, c.dtype) for n, c in report.columns.items()} == {
        n: (c.shape, c.dtype) for n, c in found.columns.items()
    }
    assert [c.tap.reduce for c in found.columns.values()] == [(), ("mean_pool",)]
    assert plan(photos, tmp_path / "out", taps=TAPS).state == "complete"


def test_forecast_says_where_the_forward_stops_and_what_that_saves(photos):
    first, second, head = 3 * 9 * 8 * 14 * 14, 8 * 9 * 8 * 5 * 5, 8 * 5 * 5 * 10
    found = plan(photos, None, taps=["features.0"])
    assert found.stop == "features.0"
    assert found.compute == pytest.approx(first / (first + second + head))
    assert plan(photos, None, taps=["<features.0"]).compute == 0
    assert plan(photos, None, taps=["features.0", "classifier"]).stop == "classifier"
    whole = plan(photos, None, taps=["features.0"], early_stop=False)
    assert (whole.stop, whole.compute) == (None, 1)


def test_forecast_of_a_wrong_tap_is_the_error_of_the_run(photos, tmp_path):
    with pytest.raises(layertap.TapError, match="did you mean 'classifier'"):
        plan(photos, tmp_path / "out", taps=["clasifier"])


def test_forecast_of_an_engine_says_what_its_workers_do(photos, tmp_path):
    found = plan(photos, tmp_path / "out", shard_rows=4, engine={"type": "local", "devices": 2}, measure=True)
    assert (found.engine, found.workers, found.shards) == ("local", 2, 5)
    assert found.rate > 0
    # One of the workers has three shards of four images.
    assert found.seconds == pytest.approx(12 / found.rate)
    assert not list(tmp_path.iterdir())
    lines = forecast_text(found).splitlines()
    assert f"engine  local: 2 workers, 5 shards, {found.bytes // 2 / 1e3:.1f} kB each" in lines
    assert any(line.startswith("rate    ") and " images/s per worker: " in line for line in lines)
    joined = plan(photos, tmp_path / "out", engine="folder", measure=True)
    assert (joined.workers, joined.seconds, joined.rate > 0) == (None, None, True)


def test_rate_of_one_process_is_measured_from_the_second_batch(photos, tmp_path):
    found = plan(photos, tmp_path / "out", measure=True)
    assert found.seconds == pytest.approx(20 / found.rate)
    with pytest.raises(layertap.ConfigError, match="batch_size: a rate needs more than one batch of 64 images"):
        plan(photos, tmp_path / "out", batch_size=64, measure=True)


def test_plan_on_the_command_line(photos, tmp_path, capsys, monkeypatch):
    from layertap.cli.main import main

    (tmp_path / "c.yaml").write_text(json.dumps(config(photos, tmp_path / "out", taps=TAPS)))
    for extra in ([], ["--json"]):
        monkeypatch.setattr("sys.argv", ["layertap", "plan", str(tmp_path / "c.yaml"), "--plugin", TINY, *extra])
        with pytest.raises(SystemExit) as done:
            main()
        assert not done.value.code
    text, _, data = capsys.readouterr().out.partition("{")
    lines = dict(line.split(maxsplit=1) for line in text.splitlines() if not line.startswith("tap"))
    assert lines["images"] == "20, batches of 4, shards of 1024, on cpu"
    assert lines["compute"].startswith("the forward stops after features.1: ")
    assert lines["disk"].startswith("6.29 kB per image, 126 kB in all, ")
    assert lines["output"] == f"{tmp_path / 'out'}: new"
    assert "pooled = features.1: (N, 8, 14, 14) -> mean_pool -> (N, 8) NCHW float16" in text
    assert json.loads("{" + data)["taps"]["pooled"]["shape"] == [8]


def test_plan_of_operations(photos, tmp_path, capsys, monkeypatch):
    from layertap.cli.main import main

    first, second, head = 3 * 9 * 8 * 14 * 14, 8 * 9 * 8 * 5 * 5, 8 * 5 * 5 * 10
    found = plan(photos, None, taps=["features.0@conv2d"])
    assert found.stop == "features.0@conv2d"
    assert found.compute == pytest.approx(first / (first + second + head))
    (tmp_path / "c.yaml").write_text(json.dumps(config(photos, tmp_path / "out", taps={"sum": "features.0@conv2d"})))
    monkeypatch.setattr(
        "sys.argv", ["layertap", "plan", str(tmp_path / "c.yaml"), "--plugin", TINY, "--ops", "features.*"]
    )
    with pytest.raises(SystemExit) as done:
        main()
    assert not done.value.code
    out = capsys.readouterr().out
    assert "sum = features.0@conv2d: (N, 8, 14, 14) NCHW float32" in out
    assert "\nfeatures.1@relu " in out
