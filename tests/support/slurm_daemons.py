"""Slurm itself on loopback: a controller and one node, in a folder, without accounting."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from trtq.jobs.work import end
from trtq.testing.board import free_port

CONFIG = """
ClusterName=trtq
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
AuthInfo=cred_expire=5
CredType=cred/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def program(name: str) -> str | None:
    """Return the path of a daemon, which is not on the PATH of every user."""
    return shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin")))


def missing() -> list[str]:
    """Return the programs of Slurm that this machine lacks."""
    daemons = [n for n in ("slurmctld", "slurmd", "slurmstepd") if program(n) is None]
    return daemons + [n for n in ("sbatch", "squeue", "scancel") if shutil.which(n) is None]


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Path]:
    """Run a controller and a node of two cores, and yield their configuration.

    Args:
        folder: for their files.
    """
    host = socket.gethostname().partition(".")[0]
    (folder / "state").mkdir(parents=True)
    (folder / "spool").mkdir()
    text = CONFIG.format(
        host=host, controller=free_port(), node=free_port(), folder=folder, user=getpass.getuser()
    )
    config = folder / "slurm.conf"
    config.write_text(text)
    lines = (
        [program("slurmctld"), "-D", "-f", config],
        [program("slurmd"), "-D", "-f", config, "-N", host, "-d", program("slurmstepd")],
    )
    with contextlib.ExitStack() as stack:
        for line in lines:
            log = stack.enter_context((folder / f"{Path(str(line[0])).name}.log").open("w"))
            daemon = subprocess.Popen(
                [str(w) for w in line], stdout=log, stderr=log, start_new_session=True
            )
            stack.callback(end, daemon)
        _wait_for_a_node(config)
        yield config


def _wait_for_a_node(config: Path, seconds: float = 60.0) -> None:
    """Wait until a task can run."""
    limit = time.monotonic() + seconds
    while True:
        asked = subprocess.run(
            ["sinfo", "--noheader", "--format=%t"],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "SLURM_CONF": str(config)},
        )
        if asked.stdout.strip() == "idle":
            return
        logs = "\n".join(p.read_text() for p in config.parent.glob("*.log"))
        assert time.monotonic() < limit, f"{asked.stdout}{asked.stderr}{logs}"
        time.sleep(0.2)
