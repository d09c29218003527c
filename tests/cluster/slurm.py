"""A real SLURM on this machine alone: Debian's packages, one node, and a database for sacct. It needs root.

Everything of it is in one folder, which goes with it; the machine's own /etc/slurm is left as it is.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

PACKAGES = ("slurm-wlm", "slurmdbd", "munge", "mariadb-server")

# More than a small machine may have, so that several tasks run at once.
_CPUS = 4
_DATABASE, _CONTROLLER, _NODE, _ACCOUNTS = 16_306, 16_817, 16_818, 16_819

_SLURM = """\
ClusterName=layertap
SlurmctldHost={host}
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort={accounts}
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
MpiDefault=none
NodeName={host} CPUs={cpus} RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""

_ACCOUNTING = """\
DbdHost=localhost
DbdPort={accounts}
SlurmUser=root
PidFile={folder}/slurmdbd.pid
LogFile={folder}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
"""

_SQL = """\
CREATE USER 'slurm'@'127.0.0.1' IDENTIFIED BY 'slurm';
GRANT ALL ON *.* TO 'slurm'@'127.0.0.1';
"""


def install() -> None:
    """The packages, where they are missing."""
    if not all(shutil.which(command) for command in ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd")):
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-qq"], check=True, env=env)
        subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES], check=True, env=env)


@contextmanager
def cluster(folder: Path) -> Iterator[None]:
    """A controller and a node that take jobs for as long as the block lasts; SLURM_CONF leads to them."""
    if any(map(_listens, (_DATABASE, _ACCOUNTS, _CONTROLLER, _NODE))):
        raise OSError("a cluster of these tests is running already")
    _configure(folder)
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    with ExitStack() as running:
        _authenticate(running)
        database = ["mariadbd", "--no-defaults", "--user=root", f"--datadir={folder}/database"]
        database += ["--bind-address=127.0.0.1", f"--port={_DATABASE}", f"--socket={folder}/database.sock"]
        _start(running, [*database, f"--init-file={folder}/users.sql", f"--pid-file={folder}/database.pid"], folder)
        _until(lambda: _listens(_DATABASE), "the database")
        _start(running, ["slurmdbd", "-D"], folder)
        _until(lambda: _listens(_ACCOUNTS), "slurmdbd")
        _run(["sacctmgr", "-i", "add", "cluster", "layertap"])
        _start(running, ["slurmctld", "-D"], folder)
        _until(lambda: _listens(_CONTROLLER), "slurmctld")
        _start(running, ["slurmd", "-D"], folder)
        _until(lambda: "idle" in _run(["sinfo", "-h", "-o", "%T"]), "the node")
        try:
            yield
        finally:
            _run(["scancel", "--quiet", "--user=root"])


def _configure(folder: Path) -> None:
    names = {"folder": folder, "host": socket.gethostname(), "cpus": _CPUS, "database": _DATABASE}
    names |= {"controller": _CONTROLLER, "node": _NODE, "accounts": _ACCOUNTS}
    for name in ("state", "spool", "database"):
        (folder / name).mkdir(parents=True)
    (folder / "slurm.conf").write_text(_SLURM.format(**names))
    (folder / "slurmdbd.conf").write_text(_ACCOUNTING.format(**names))
    (folder / "slurmdbd.conf").chmod(0o600)
    (folder / "users.sql").write_text(_SQL)
    prepare = ["mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={folder}/database"]
    subprocess.run([*prepare, "--auth-root-authentication-method=normal"], check=True, capture_output=True)


def _authenticate(running: ExitStack) -> None:
    """munge, unless the machine has it running."""
    if subprocess.run(["munge", "-n"], capture_output=True).returncode == 0:
        return
    Path("/run/munge").mkdir(exist_ok=True)
    shutil.chown("/run/munge", "munge", "munge")
    process = subprocess.Popen(["runuser", "-u", "munge", "--", "munged", "--foreground"], stderr=subprocess.DEVNULL)
    running.callback(_end, process)
    _until(lambda: subprocess.run(["munge", "-n"], capture_output=True).returncode == 0, "munge")


def _start(running: ExitStack, command: Sequence[str], folder: Path) -> None:
    with (folder / "daemons.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    running.callback(_end, process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def _run(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout


def _until(holds: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + 60
    while not holds():
        if time.monotonic() > until:
            raise TimeoutError(f"{what} has not started")
        time.sleep(0.3)
