"""The kind of processor is part of what a resume must meet: another kind gives other last bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import layertap
from layertap.pipeline.processor import processor
from layertap.pipeline.verify import verify
from tests.conftest import TINY
from tests.pipeline.test_pipeline import config, contents, run
from tests.store.test_store import stop


def elsewhere(asked: dict, **environment: str) -> subprocess.CompletedProcess[str]:
    """`layertap run` in a process whose libraries are limited to fewer instructions."""
    code = (
        "import sys, json, layertap\n"
        "try: report = layertap.run(json.loads(sys.argv[1]), plugins=[sys.argv[2]])\n"
        "except layertap.LayertapError as error: print(error); sys.exit(error.code)\n"
        "print(report.remarks)"
    )
    command = [sys.executable, "-c", code, json.dumps(asked), TINY]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)


def forget_processor(output: Path) -> None:
    """Make the manifest that of a version which did not record the processor."""
    manifest = json.loads((output / "manifest.json").read_text())
    del manifest["fingerprint"]["processor"]
    (output / "manifest.json").write_text(json.dumps(manifest))


def test_processor_is_recorded(photos, tmp_path):
    run(photos, tmp_path / "out")
    recorded = layertap.open(tmp_path / "out").manifest["fingerprint"]["processor"]
    assert recorded == processor(torch.device("cpu"))
    assert recorded["capability"] == torch.backends.cpu.get_cpu_capability()
    assert recorded["vendor"]


@pytest.mark.parametrize(
    "limit",
    [
        {"ATEN_CPU_CAPABILITY": "default"},
        {"ONEDNN_MAX_CPU_ISA": "SSE41"},
        {"MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
        {"MKL_CBWR": "COMPATIBLE"},
    ],
    ids=lambda limit: next(iter(limit)),
)
def test_output_of_another_instruction_set_is_not_resumed(photos, tmp_path, limit):
    stop(photos, tmp_path / "out")
    refused = elsewhere(config(photos, tmp_path / "out", shard_rows=4), **limit)
    assert refused.returncode == 6
    assert "processor was" in refused.stdout


def test_output_without_a_recorded_processor_is_resumed_and_says_so(photos, tmp_path):
    run(photos, tmp_path / "whole", shard_rows=4)
    stop(photos, tmp_path / "out")
    forget_processor(tmp_path / "out")
    report = run(photos, tmp_path / "out", shard_rows=4)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert len(report.remarks) == 1
    assert "did not record its processor" in report.remarks[0]


def test_output_without_a_recorded_processor_is_read_and_verified(photos, tmp_path):
    run(photos, tmp_path / "out")
    forget_processor(tmp_path / "out")
    assert layertap.open(tmp_path / "out")["classifier"].shape[0] == 20
    verdict = verify(tmp_path / "out", plugins=[TINY])
    assert verdict.faults == []
    assert verdict.environment == ["processor was not recorded"]


def test_verify_on_another_instruction_set_compares_within_a_tolerance(photos, tmp_path):
    done = elsewhere(config(photos, tmp_path / "out"), ATEN_CPU_CAPABILITY="default", ONEDNN_MAX_CPU_ISA="SSE41")
    assert done.returncode == 0, done.stderr
    verdict = verify(tmp_path / "out", plugins=[TINY])
    assert verdict.faults == []
    assert [word.partition(" ")[0] for word in verdict.environment] == ["processor"]
