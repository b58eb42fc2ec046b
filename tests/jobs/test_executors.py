"""Where runs are executed: slots, queues, clusters, and what they lose."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import run_cli
from tests.support.cluster import needs
from tests.support.processes import start
from tests.support.slurm import write_queue
from tests.sweep.conftest import REFUSER
from tests.sweep.test_sweep import BITS, record_of, runs_of, states, wait_for
from trtq.errors import MissingExtraError, TrtqError, UsageError
from trtq.jobs.executors import Settings, local, open_executor, slurm
from trtq.jobs.work import ANOTHER, Job, perform, versions
from trtq.progress import Silent
from trtq.quant.encodings import Encodings
from trtq.specs.sweep import Slots

WRONG = 'out = "x"\n[quantise]\n'  # trtq run refuses it in a moment


class Heard(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def job(tmp_path: Path, name: str = "1", recipe: str = WRONG, **changes) -> Job:
    values = {
        "name": name,
        "key": name * 64,
        "recipe": recipe,
        "folder": f"runs/{name}",
        "cwd": str(tmp_path),
        "url": str(tmp_path / "store"),
        "project": "",
        "threads": 1,
    }
    return Job(**{**values, **changes})


def settings(tmp_path: Path, *, slots: Slots | None = None, **changes) -> Settings:
    return Settings(folder=tmp_path, slots=slots or Slots(), **changes)


def ended(executor, count: int):
    done = []
    wait_for(lambda: done.extend(executor.wait(0.2)) or len(done) >= count)
    return sorted(done, key=lambda e: e.name)


# ---- this machine ------------------------------------------------------------------------------


def test_jobs_run_in_as_many_processes_as_there_are_slots(tmp_path):
    executor = open_executor("local", settings(tmp_path, workers=2), Silent())
    assert (executor.name, executor.workers, executor.room()) == ("local", 2, 2)
    executor.submit([job(tmp_path, "1"), job(tmp_path, "2")])
    assert executor.room() == 0
    done = ended(executor, 2)
    assert executor.room() == 2
    assert [e.code for e in done] == [2, 2]
    assert "Unknown table or setting 'quantise'" in done[0].reason
    assert done[0].upload is None
    executor.close()


def test_a_run_gets_its_share_of_threads_and_gpus(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-abc,7,5")
    slots = Slots(cpus=2, gpus=2)
    executor = local.open_executor(settings(tmp_path, slots=slots, workers=5), heard := Heard())
    assert executor.workers == 2
    assert "2 runs at a time: there are 4 GPUs" in heard.lines
    seen = []
    monkeypatch.setattr(local, "perform", lambda job, _: seen.append(job) or perform(job))
    executor.submit([job(tmp_path, "1"), job(tmp_path, "2")])
    ended(executor, 2)
    assert [j.threads for j in seen] == [2, 2]
    assert sorted(j.gpus for j in seen) == [("3", "GPU-abc"), ("7", "5")]
    executor.submit([job(tmp_path, "3")])  # the GPUs are free again
    ended(executor, 1)
    executor.close()


SHOW = """
import os, sys
sys.stderr.write("trtq: " + " ".join(os.environ.get(n, "-") for n in
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES")))
sys.exit(1)
"""


def test_a_process_sees_its_share(tmp_path, monkeypatch):
    package = tmp_path / "stand/trtq"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(SHOW)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "stand"))
    assert perform(job(tmp_path, threads=3, gpus=("1", "4"))).reason == "3 3 1,4"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6")
    assert perform(job(tmp_path)).reason == "1 1 6"


def test_what_this_machine_has_not_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for slots, text in (
        (Slots(gpus=1), "A run takes 1 GPUs: this machine has 0. Lower .sweep.slots. gpus, or use"),
        (Slots(resources={"orin": 1}), "This machine cannot give a run orin: .* Use --on ray, or"),
    ):
        with pytest.raises(UsageError, match=text):
            open_executor("local", settings(tmp_path, slots=slots), Silent())


def test_too_many_runs_for_the_cores_are_said(tmp_path):
    cores = len(os.sched_getaffinity(0))
    local.open_executor(settings(tmp_path, workers=cores + 1), heard := Heard())
    assert f"{cores + 1} runs with 1 threads each share {cores} cores" in heard.lines[0]


def test_a_closed_executor_ends_its_processes(tmp_path, few_images, write_sweep):
    text = write_sweep("").read_text().replace("[vary]", "")
    executor = open_executor("local", settings(tmp_path, workers=1), Silent())
    executor.submit([job(tmp_path, recipe=text)])
    wait_for(lambda: executor._processes)
    start = time.monotonic()
    executor.close()
    assert time.monotonic() - start < 60
    assert executor.wait(0.1)[0].code != 0


def test_a_worker_with_other_versions_refuses(tmp_path):
    wanted = {**versions(), "torch": "0.4.1", "trtq": "9"}
    done = perform(job(tmp_path, versions=wanted))
    assert done.code == ANOTHER
    assert "(expected 9)" in done.reason
    assert "(expected 0.4.1)" in done.reason
    assert not (tmp_path / "runs").exists()


def test_a_temporary_folder_is_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    done = perform(job(tmp_path, folder=""))
    assert "Unknown table or setting 'quantise'" in done.reason
    assert not list(tmp_path.glob("trtq-sweep-*"))


def test_an_executor_from_outside(tmp_path, write_sweep):
    (tmp_path / "own.py").write_text(REFUSER.replace("CODE", "1"))
    path = write_sweep(BITS)
    done = run_cli("sweep", str(path), "--on", f"{tmp_path}/own.py:open_executor")
    assert done.returncode == 1
    assert "failed: 00002 (bits=w4a8): it is Sunday" in done.stdout
    memory = ("--store", f"memory://{tmp_path}", "--out", f"{tmp_path}/memory")
    done = run_cli("sweep", str(path), "--on", f"{tmp_path}/own.py:open_executor", *memory)
    assert "does not refuse to create a file twice: of two sweeps" in done.stderr
    (tmp_path / "own.py").write_text(REFUSER.replace("CODE", str(ANOTHER)))
    done = run_cli("sweep", str(path), "--on", f"{tmp_path}/own.py:open_executor")
    assert done.returncode == 2
    assert "The workers have other versions than this machine: it is Sunday" in done.stderr
    assert states(tmp_path / "out") == ["waiting", "waiting"]
    for more in ((), ("--dry-run",)):  # one that opens no executor refuses the name, too
        done = run_cli("sweep", str(path), "--on", "slrm", *more)
        assert (
            "Cannot use --on slrm: known are local, ray, slurm. Did you mean slurm" in done.stderr
        )


def test_the_executor_that_the_documentation_shows(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs/extending.md").read_text()
    part = page[page.index("# Adding an executor of sweeps") :]
    (tmp_path / "own.py").write_text(re.search(r"```python\n(.*?)```", part, re.S)[1])
    executor = open_executor(f"{tmp_path}/own.py:open_executor", settings(tmp_path), Silent())
    assert (executor.room(), executor.wait(0)) == (1, [])
    executor.submit([job(tmp_path)])
    assert executor.room() == 0
    assert "Unknown table or setting 'quantise'" in ended(executor, 1)[0].reason


def test_measuring_beside_other_runs_is_said(tmp_path, write_sweep):
    path = write_sweep('"quantize.seed" = [0]', more='high_precision = ["no such layer"]\n[bench]')
    done = run_cli("sweep", str(path), "--workers", "2")
    assert done.returncode == 1
    (note,) = [n for n in record_of(tmp_path / "out").notes if n.startswith("[bench]")]
    assert note.startswith("[bench] measures beside other runs: 2 run at a time on this machine")
    assert note in done.stderr


# ---- Slurm -------------------------------------------------------------------------------------


@pytest.fixture()
def queue(tmp_path, monkeypatch) -> Path:
    """The folder of a queue whose programs are on PATH."""
    monkeypatch.setenv("PATH", f"{write_queue(tmp_path)}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "ASK_S", 0.1)
    monkeypatch.setattr(slurm, "LATE_S", 0.3)
    return tmp_path / "queue"


def calls(queue: Path) -> list[list[str]]:
    return [json.loads(line) for line in (queue / "calls.jsonl").read_text().splitlines()]


def test_a_sweep_is_an_array_of_the_queue(queue, write_sweep, tmp_path):
    more = '[sweep]\nsbatch = ["--partition=gpu"]\nslots = {cpus = 1, gpus = 2}'
    path = write_sweep('"quantize.bits" = ["w8a8"]', more=more)
    done = run_cli("sweep", str(path), "--on", "slurm")
    assert done.returncode == 0, done.stderr
    assert states(tmp_path / "out") == ["done"]
    first = calls(queue)[0]
    assert first[:3] == ["sbatch", "--parsable", "--array=0-0"]
    assert {"--cpus-per-task=1", "--gres=gpu:2", "--partition=gpu"} <= set(first)
    assert first[-2] == sys.executable
    record = record_of(tmp_path / "out")
    assert (record.executor, record.rows[0].measured.valid) == ("slurm", True)


def test_jobs_of_an_array_end_one_by_one(queue, tmp_path):
    executor = open_executor("slurm", settings(tmp_path), Silent())
    executor.submit([job(tmp_path, "1"), job(tmp_path, "2")])
    assert executor.room() == slurm.MOST - 2
    assert [e.code for e in ended(executor, 2)] == [2, 2]
    assert executor.room() == slurm.MOST
    executor.close()


def test_a_job_that_leaves_no_result_is_lost_for_a_reason(queue, tmp_path, monkeypatch):
    executor = open_executor("slurm", settings(tmp_path), Silent())
    monkeypatch.setattr(sys, "executable", "/bin/false")
    executor.submit([job(tmp_path)])
    (lost,) = ended(executor, 1)
    assert lost.code == slurm.LOST
    assert lost.reason.startswith(
        "it left the queue without a result: OUT_OF_MEMORY, exit code 0:125"
    )


def test_a_queue_that_does_not_answer_loses_nothing(queue, tmp_path, monkeypatch):
    executor = open_executor("slurm", settings(tmp_path), Silent())
    (queue / "mute").touch()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    executor.submit([job(tmp_path)])
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        assert executor.wait(0.1) == []
    (queue / "mute").unlink()
    assert ended(executor, 1)[0].code == slurm.LOST


def test_a_closed_queue_has_no_task(queue, tmp_path, monkeypatch):
    executor = open_executor("slurm", settings(tmp_path), Silent())
    (tmp_path / "sleep").write_text("#!/bin/sh\nexec sleep 600\n")
    (tmp_path / "sleep").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "sleep"))
    executor.submit([job(tmp_path)])
    executor.close()
    assert calls(queue)[-1] == ["scancel", "100"]
    asked = subprocess.run(["squeue", "--jobs=100"], capture_output=True, text=True, check=False)
    assert asked.stdout == ""


def test_what_slurm_refuses_is_said(queue, tmp_path):
    own = settings(tmp_path, sbatch=("--partition=nowhere",))
    executor = open_executor("slurm", own, Silent())
    with pytest.raises(UsageError) as caught:
        executor.submit([job(tmp_path)])
    assert "invalid partition specified: nowhere. Set options such as sbatch" in str(caught.value)
    boards = settings(tmp_path, slots=Slots(resources={"orin": 1}))
    with pytest.raises(UsageError, match=r'Slurm has no resource orin: .* Set sbatch = \["--gr'):
        open_executor("slurm", boards, Silent())


def test_a_machine_without_a_queue_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(write_queue(tmp_path, "squeue")))
    with pytest.raises(MissingExtraError, match="there is no sbatch and no scancel on PATH. Run"):
        open_executor("slurm", settings(tmp_path), Silent())
    monkeypatch.setenv("PATH", str(write_queue(tmp_path / "b", "squeue", "sbatch", "scancel")))
    open_executor("slurm", settings(tmp_path), heard := Heard())
    assert "there is no sacct" in heard.lines[0]


def test_a_command_that_hangs_up_is_an_error(queue, tmp_path, monkeypatch):
    executor = open_executor("slurm", settings(tmp_path), Silent())
    (tmp_path / "bin/sbatch").write_bytes(b"\x7fnot a program")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))  # the next sbatch on it would be taken
    with pytest.raises(TrtqError, match="Cannot ask Slurm .sbatch.: .*"):
        executor.submit([job(tmp_path)])


# ---- Ray ---------------------------------------------------------------------------------------

with_ray = needs("ray")


def test_ray_is_an_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"Ray is not installed. pip install 'trtq\[ray\]'"):
        open_executor("ray", settings(tmp_path), Silent())


RAY = """
import sys
from pathlib import Path
from trtq.progress import Silent
from trtq.quant.encodings import Encodings
from trtq.specs.sweep import Slots
from trtq.jobs.executors import Settings, open_executor
try:
    open_executor("ray", Settings(folder=Path("."), slots=Slots(), address=sys.argv[1]), Silent())
except Exception as exc:
    print(type(exc).__name__, exc)
"""


@with_ray
@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_one_error():
    """Ray itself writes to the terminal and asks for minutes."""
    for address, text in (
        ("127.0.0.1:9", "connection refused"),
        ("ray://127.0.0.1:9", "connection refused"),
        ("auto", "Could not find any running Ray instance"),
    ):
        words = [sys.executable, "-c", RAY, address]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
        assert done.stdout.startswith(f"UsageError Cannot use the Ray cluster at {address}")
        assert text in done.stdout
        assert "Start one (ray start --head)" in done.stdout


def sweep_on_ray(path: Path, *more: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "trtq", "sweep", str(path), "--on", "ray", *more]
    return subprocess.run(words, capture_output=True, text=True, check=False)


@with_ray
@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_24_variants_on_four_workers_of_ray_equal_the_serial_table(write_sweep, tmp_path):
    vary = (
        '"quantize.bits" = ["w8a8", "w6a6", "w4a8", "w4a4"]\n'
        '"quantize.calibrator" = ["max", "mse", "entropy"]\n"quantize.seed" = [0, 1]'
    )
    done = sweep_on_ray(write_sweep(vary), "--workers", "4")
    assert done.returncode == 0, done.stderr
    assert "Ray is started on this machine for these runs" in done.stderr
    record = record_of(tmp_path / "out")
    assert [r.state for r in record.rows] == ["done"] * 24
    assert (record.executor, record.workers) == ("ray", 4)
    here = run_cli("sweep", str(write_sweep(vary, folder=tmp_path / "here")), "--workers", "1")
    assert here.returncode == 0, here.stderr
    alike = record_of(tmp_path / "here/out")
    assert [r.key for r in alike.rows] == [r.key for r in record.rows]
    assert [r.measured.scores for r in alike.rows] == [r.measured.scores for r in record.rows]
    for ours, theirs in zip(alike.rows, record.rows, strict=True):
        files = [Path(r.store) / row.files for r, row in ((alike, ours), (record, theirs))]
        one, two = (Encodings.load(f / "encodings.safetensors").digest() for f in files)
        assert one == two


@with_ray
@pytest.mark.slow
def test_a_driver_that_is_killed_on_ray_is_gone_on_with(write_sweep, tmp_path):
    path, out = write_sweep(BITS), tmp_path / "out"
    driver = start("sweep", str(path), "--on", "ray", "--workers", "1")
    done = wait_for(lambda: list(out.glob("store/runs/*/done.json")))
    driver.kill()
    before = done[0].read_bytes()
    again = sweep_on_ray(path, "--workers", "1")
    assert again.returncode == 0, again.stderr
    assert states(out) == ["reused", "done"]
    assert done[0].read_bytes() == before


@pytest.fixture(params=["token", "disabled"])
def cluster_with_a_board(request: pytest.FixtureRequest) -> Iterator[str]:
    """A Ray cluster of one node, which has a board; one asks for a token."""
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    head = ["start", "--head", "--port=0", "--num-cpus=2", "--include-dashboard=false"]
    env = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": request.param}
    if request.param == "token":
        token = [*ray, "get-auth-token", "--generate"]
        subprocess.run(token, capture_output=True, check=True, env=env, timeout=120)
    words = [*ray, *head, "--disable-usage-stats", '--resources={"orin": 1}']
    begun = subprocess.run(words, capture_output=True, text=True, check=True, env=env, timeout=120)
    found = re.search(r"--address='([\d.]+:\d+)'", begun.stdout)
    assert found is not None, begun.stdout
    yield found[1]
    subprocess.run([*ray, "stop", "--force"], capture_output=True, check=False, timeout=120)


@with_ray
@pytest.mark.slow
def test_runs_share_the_board_of_a_cluster(cluster_with_a_board, write_sweep, tmp_path):
    path = write_sweep(BITS, more="[sweep]\nslots = {resources = {orin = 1}}")
    done = sweep_on_ray(path, "--address", cluster_with_a_board)
    assert done.returncode == 0, done.stderr
    record = record_of(tmp_path / "out")
    assert [r.state for r in record.rows] == ["done", "done"]
    assert record.workers == 1  # as many as there are boards


def tasks_of_ray() -> list[int]:
    """Return the processes of Ray that do a task of ours."""
    own = list[int]()
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            if file.read_bytes().startswith(b"ray::work"):
                own.append(int(file.parent.name))
    return own


@with_ray
@pytest.mark.slow
def test_what_ray_loses_is_tried_again(write_sweep, tmp_path):
    """The process of the run is killed, then the worker of Ray that waits for the second one."""
    words = [sys.executable, "-m", "trtq", "sweep", str(write_sweep('"quantize.seed" = [0]'))]
    words += ["--on", "ray", "--workers", "1"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as driver:
        (first,) = wait_for(lambda: runs_of(tmp_path))
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: [p for p in runs_of(tmp_path) if p != first])
        os.kill(wait_for(tasks_of_ray)[0], signal.SIGKILL)
        _, errors = driver.communicate()
    assert driver.returncode == 0, errors
    assert states(tmp_path / "out") == ["done"]


@with_ray
@pytest.mark.slow
def test_a_resource_that_no_node_has_is_refused(write_sweep):
    more = "[sweep]\nslots = {resources = {orin = 1}}"
    done = sweep_on_ray(write_sweep(BITS, more=more))
    assert done.returncode == 2
    assert "The Ray cluster has too little orin: a run takes 1 CPU, 1 orin; the cluster" in (
        done.stderr
    )
