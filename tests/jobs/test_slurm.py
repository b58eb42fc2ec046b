"""Sweeps in a queue of Slurm itself, which ``make test-cluster`` installs where it may."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import run_cli
from tests.support.slurm_daemons import cluster, missing
from tests.sweep.test_sweep import BITS, record_of, runs_of, states, wait_for
from trtq.errors import UsageError
from trtq.jobs.executors import Settings, open_executor
from trtq.jobs.work import Job, versions
from trtq.progress import Silent
from trtq.quant.encodings import Encodings
from trtq.specs.sweep import Slots

INTERRUPTED = 130

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=f"no {', '.join(missing())}: make test-cluster"),
]


@pytest.fixture(scope="module")
def configuration(tmp_path_factory) -> Iterator[Path]:
    with cluster(tmp_path_factory.mktemp("slurm") / "cluster") as config:
        yield config


@pytest.fixture(autouse=True)
def queue(configuration: Path, monkeypatch) -> Iterator[None]:
    """The queue is the one that sbatch takes, and is empty afterwards."""
    monkeypatch.setenv("SLURM_CONF", str(configuration))
    yield
    subprocess.run(["scancel", "--quiet", "--name=trtq-sweep"], check=False)
    wait_for(lambda: not tasks())


def tasks() -> list[str]:
    """Return the tasks in the queue, such as ``4_0``."""
    words = ["squeue", "--noheader", "--array", "--format=%i"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()


def test_the_table_of_the_queue_is_the_local_one(write_sweep, tmp_path):
    done = run_cli("sweep", str(write_sweep(BITS)), "--on", "slurm")
    assert done.returncode == 0, done.stderr
    here = run_cli("sweep", str(write_sweep(BITS, folder=tmp_path / "here")), "--workers", "1")
    assert here.returncode == 0, here.stderr
    queued, local = record_of(tmp_path / "out"), record_of(tmp_path / "here/out")
    assert (queued.executor, states(tmp_path / "out")) == ("slurm", ["done", "done"])
    assert [r.key for r in queued.rows] == [r.key for r in local.rows]
    for ours, theirs in zip(queued.rows, local.rows, strict=True):
        assert ours.measured.scores == theirs.measured.scores
        files = [Path(r.store) / row.files for r, row in ((queued, ours), (local, theirs))]
        one, two = (Encodings.load(f / "encodings.safetensors").digest() for f in files)
        assert one == two


def test_a_task_that_somebody_cancels_is_lost_for_a_reason(write_sweep, tmp_path):
    words = [sys.executable, "-m", "trtq", "sweep", str(write_sweep(BITS)), "--on", "slurm"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as driver:
        wait_for(lambda: len(runs_of(tmp_path)) == 2)
        first = next(t for t in tasks() if t.endswith("_0"))
        subprocess.run(["scancel", first], check=True)
        _, errors = driver.communicate()
    assert driver.returncode == 1
    assert "it left the queue without a result: slurmstepd" in errors and "CANCELLED" in errors
    assert states(tmp_path / "out") == ["failed", "done"]
    assert not runs_of(tmp_path)
    again = run_cli("sweep", str(tmp_path / "sweep.toml"), "--on", "slurm")
    assert again.returncode == 0, again.stderr
    assert states(tmp_path / "out") == ["done", "reused"]


def test_a_task_that_is_put_back_into_the_queue_ends_well(write_sweep, tmp_path):
    words = [sys.executable, "-m", "trtq", "sweep", str(write_sweep('"quantize.seed" = [0]'))]
    with subprocess.Popen([*words, "--on", "slurm"], stderr=subprocess.PIPE, text=True) as driver:
        wait_for(lambda: runs_of(tmp_path))
        (task,) = tasks()
        subprocess.run(["scontrol", "requeue", task], check=True)
        wait_for(lambda: not runs_of(tmp_path))
        _, errors = driver.communicate()
    assert driver.returncode == 0, errors
    assert states(tmp_path / "out") == ["done"]


def test_a_driver_that_is_interrupted_leaves_no_task(write_sweep, tmp_path):
    words = [sys.executable, "-m", "trtq", "sweep", str(write_sweep(BITS)), "--on", "slurm"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as driver:
        wait_for(lambda: runs_of(tmp_path))
        driver.send_signal(signal.SIGINT)
        _, errors = driver.communicate()
    assert driver.returncode == INTERRUPTED, errors
    wait_for(lambda: not tasks() and not runs_of(tmp_path))
    assert states(tmp_path / "out") == ["waiting", "waiting"]


def test_what_slurm_refuses_is_said(tmp_path):
    own = ("--partition=nowhere",)
    settings = Settings(folder=tmp_path, slots=Slots(), sbatch=own)
    executor = open_executor("slurm", settings, Silent())
    job = Job(name="1", key="k", recipe="", folder="", cwd="", threads=1, versions=versions())
    with pytest.raises(UsageError) as caught:
        executor.submit([job])
    assert "invalid partition specified: nowhere" in str(caught.value)
    assert os.listdir(tmp_path) == ["slurm"]
