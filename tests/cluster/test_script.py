"""The script for SLURM: the page shows this very one, and it runs, here with a stand-in for srun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import layertap
from tests.plugins.test_slurm import files

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "configs" / "slurm.sh"
PAGE = ROOT / "docs" / "how-to" / "several-machines.md"

CONFIG = """\
model: {{type: torchvision, name: squeezenet1_1, weights: random}}
taps: [classifier.3]
source: {{type: folder, path: {photos}}}
preprocess: {{type: squash, size: 64}}
sink: {{type: npy, path: unused}}
device: cpu
batch_size: 2
shard_rows: 2
observers: []
"""

# Runs the command, and kills the first worker that computes.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
"$@" &
if mkdir killed; then
    until ls "$OUT"/work/taken/*.json; do sleep 0.01; done
    kill -KILL $!
fi
wait $!
"""


def test_page_shows_the_script_that_make_cluster_runs():
    from tests.cluster import run

    assert run.SCRIPT == SCRIPT
    assert f"```sh\n{SCRIPT.read_text()}```\n" in PAGE.read_text()


def test_script_leaves_the_bytes_of_one_process(photos, tmp_path):
    for name, text in {"srun": SRUN, "layertap": f'#!/bin/sh\nexec {sys.executable} -m layertap "$@"\n'}.items():
        command = tmp_path / "bin" / name
        command.parent.mkdir(exist_ok=True)
        command.write_text(text)
        command.chmod(0o755)
    config = tmp_path / "run.yaml"
    config.write_text(CONFIG.format(photos=photos))
    env = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "OUT": str(tmp_path / "many")}
    env |= {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    env |= {"SLURM_NTASKS": "2", "SLURM_CPUS_PER_TASK": "1"}
    layertap.run(config, overrides={"sink.path": str(tmp_path / "one"), "threads": 1})
    # Its last steps end with it, as they do with a job of SLURM.
    with subprocess.Popen(
        ["bash", str(SCRIPT), str(config), env["OUT"]], cwd=tmp_path, env=env, start_new_session=True
    ) as script:
        try:
            assert script.wait(120) == 0
        finally:
            os.killpg(script.pid, signal.SIGKILL)
    assert (tmp_path / "killed").exists()
    assert files(tmp_path / "many") == files(tmp_path / "one")
