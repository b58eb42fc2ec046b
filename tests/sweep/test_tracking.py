"""Runs of a sweep in MLflow."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import run_cli
from tests.support.cluster import needs
from tests.sweep.test_sweep import BITS
from trtq.artifact import environment
from trtq.errors import ArtifactError, MissingExtraError
from trtq.records.sweep import Measured, SweepRecord, SweepRow
from trtq.sweep.tracking import log_sweep, open_tracker
from trtq.tasks import Figure

with_mlflow = needs("mlflow")


def test_mlflow_is_an_extra(monkeypatch, tmp_path, write_sweep):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(MissingExtraError, match=r"mlflow is not .* pip install 'trtq\[mlflow\]'"):
        open_tracker("file:///tmp", tmp_path)
    done = run_cli("sweep", str(write_sweep(BITS)), "--mlflow", f"file://{tmp_path}/tracked")
    assert done.returncode == 2
    assert "Cannot use --mlflow: mlflow is not installed" in done.stderr
    assert not (tmp_path / "out/runs").exists()


def record(rows: list[SweepRow]) -> SweepRecord:
    return SweepRecord(
        schema=1,
        verb="sweep",
        spec={"recipe": "s.toml"},
        rows=rows,
        out="out",
        store="out/store",
        project="",
        executor="local",
        workers=1,
        recipes="recipes",
        notes=[],
        seconds=1.0,
        environment=environment(),
    )


@with_mlflow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["file", "sqlite"])
def test_finished_runs_are_logged_once(kind, tmp_path, monkeypatch):
    if kind == "sqlite":
        pytest.importorskip("alembic")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.chdir(tmp_path)
    uri = {"file": f"file://{tmp_path}/ml", "sqlite": f"sqlite:///{tmp_path}/ml.db"}[kind]
    measured = Measured(
        scores=[Figure(name="mAP@0.5", value=57.25), Figure(name="none", value=None)],
        reference=[Figure(name="mAP@0.5", value=57.9)],
        sizes={"weights": 1000, "engine t4 int8": 5},
        latency_ms={"qdq": 1.5},
    )
    rows = [
        SweepRow(
            name="00001",
            key="a" * 64,
            settings={"quantize.bits": "w8a8", "quantize.model_arg": {"width": 8}},
            state="done",
            seconds=2.0,
            measured=measured,
            files="runs/aa/bb",
        ),
        SweepRow(name="00002", key="b" * 64, settings={}, state="failed", reason="no"),
    ]
    tracker = open_tracker(uri, tmp_path / "mine.toml")
    assert log_sweep(tracker, record(rows)) == 1
    assert log_sweep(open_tracker(uri, tmp_path / "mine.toml"), record(rows)) == 0
    (run,) = tracker.client.search_runs([tracker.id])
    assert run.data.metrics == {
        "mAP_0.5": 57.25,
        "float mAP_0.5": 57.9,
        "bytes weights": 1000.0,
        "bytes engine t4 int8": 5.0,
        "latency_ms qdq": 1.5,
        "seconds": 2.0,
    }
    assert run.data.params == {"quantize.bits": "w8a8", "quantize.model_arg": '{"width":8}'}
    assert run.data.tags["trtq.files"] == "out/store/runs/aa/bb"
    assert run.info.status == "FINISHED"


@with_mlflow
@pytest.mark.filterwarnings("ignore")
def test_a_run_that_was_cut_off_is_logged_again(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    row = SweepRow(
        name="00001", key="a" * 64, settings={}, state="done", seconds=2.0, measured=Measured()
    )
    tracker = open_tracker(f"file://{tmp_path}/ml", tmp_path / "mine.toml")

    def cut(*_: object, **__: object) -> None:
        raise OSError("connection reset")

    with monkeypatch.context() as broken, pytest.raises(ArtifactError, match="connection reset"):
        broken.setattr(tracker.client, "log_batch", cut)
        log_sweep(tracker, record([row]))
    assert log_sweep(tracker, record([row])) == 1
    assert log_sweep(tracker, record([row])) == 0
    runs = tracker.client.search_runs([tracker.id], "attributes.status = 'FINISHED'")
    assert [r.data.metrics for r in runs] == [{"seconds": 2.0}]


@with_mlflow
def test_a_server_that_is_not_there_is_an_error(tmp_path):
    code = (
        "import sys; from pathlib import Path; from trtq.sweep.tracking import open_tracker\n"
        "try:\n    open_tracker(sys.argv[1], Path('a.toml'))\n"
        "except Exception as exc:\n    print(type(exc).__name__, exc)"
    )
    words = [sys.executable, "-c", code, "http://127.0.0.1:9"]
    env = {**os.environ, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=env)
    assert "ArtifactError Cannot log to MLflow at http://127.0.0.1:9: API request" in done.stdout
    assert "Check --mlflow, or leave it out" in done.stdout
