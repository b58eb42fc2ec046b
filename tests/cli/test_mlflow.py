"""``--mlflow``: what commands log."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from tests.conftest import read, run_cli
from tests.support.cluster import needs
from trtq.cli import run_command, tracked
from trtq.tracking import Experiment, Tracked, figures_of
from trtq.verbs import VERBS

with_mlflow = needs("mlflow")
LOGGED_ELSEWHERE = ("run", "sweep")


@pytest.fixture()
def logged(monkeypatch: pytest.MonkeyPatch) -> list[Tracked]:
    """What commands log, in place of a server."""
    runs: list[Tracked] = []

    class Heard(Experiment):
        def log(self, run: Tracked, *, known: str = "") -> bool:
            runs.append(run)
            return True

    monkeypatch.setattr(tracked, "open_experiment", lambda uri, name: Heard(uri, None, name))
    return runs


def test_every_verb_with_a_record_logs_it():
    for verb in VERBS.values():
        if verb.record and verb.name not in LOGGED_ELSEWHERE:
            file = f"trtq/cli/{verb.name.replace('-', '_')}_cmd.py"
            assert "done(" in Path(file).read_text(), file
            assert "--mlflow" in run_help(verb.name), verb.name


def run_help(verb: str) -> str:
    import importlib

    import click

    command = importlib.import_module(f"trtq.cli.{verb.replace('-', '_')}_cmd").command
    every = list(command.commands.values()) if isinstance(command, click.Group) else [command]
    return " ".join(o for c in every for p in c.params for o in p.opts)


def test_a_quantization_its_evaluation_and_a_recipe(logged, images, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    out = tmp_path / "out"
    table = (
        f'model = "trtq.testing.models:tiny_cnn"\ndata = "{images}"\ninput_size = "3x32x32"\n'
        f'preset = "imagenet"\ncalib_images = 8\nparity_images = 4\n'
        f'calib_cache = "{tmp_path}/cache"\n'
    )
    recipe = tmp_path / "r.toml"
    recipe.write_text(f'out = "{out}"\ntitle = "tiny"\n[quantize]\n{table}[evaluate]\nlimit = 8\n')
    server = ["--mlflow", "http://nowhere"]
    assert run_command(["run", str(recipe), *server]) == 0
    whole = logged.pop()
    assert whole.name == "tiny"
    assert whole.params["quantize.calib_images"] == "8"
    assert whole.metrics["top-1"] == read(out / "evaluate.json")["top1"]
    assert whole.metrics["bytes model.qdq.onnx"] == (out / "model.qdq.onnx").stat().st_size
    assert [f.name for f in whole.files] == ["report.html"]

    data = ["--data", str(images), "--input-size", "3x32x32", "--preset", "imagenet"]
    given = [*data, "--calib-images", "8", "--calib-cache", str(tmp_path / "cache")]
    words = ["quantize", "trtq.testing.models:tiny_cnn", *given, "--out", str(tmp_path / "q")]
    assert run_command([*words, *server]) == 0
    made = logged.pop()
    record = read(tmp_path / "q/quantize.json")
    assert made.name == "quantize trtq.testing.models:tiny_cnn"
    assert made.params["calib_images"] == "8"
    assert made.metrics["parity.quantization_sqnr_db"] == record["parity"]["quantization_sqnr_db"]
    assert {f.name for f in made.files} == set(record["files"])
    name, text = made.text or ("", "")
    assert name == "quantize.json"
    assert json.loads(text) == record

    fp32, qdq = (str(tmp_path / "q" / n) for n in ("model.fp32.onnx", "model.qdq.onnx"))
    scored = ["evaluate", qdq, "--reference", fp32, "--data", str(images), "--limit", "8"]
    assert run_command([*scored, *server]) == 0
    assert {"top-1", "float top-1", "agreement"} <= set(logged.pop().metrics)
    assert run_command(scored) == 0
    assert logged == []  # it is off by default


def test_a_file_of_one_verb_is_logged_as_that_verb(logged, images, tmp_path):
    (tmp_path / "one.toml").write_text(
        f'out = "{tmp_path}/analysis.json"\n[analyze]\nmodel = "trtq.testing.models:tiny_cnn"\n'
        f'data = "{images}"\ninput_size = "3x32x32"\npreset = "imagenet"\nmetric = "l2"\n'
        f'images = 4\ncalib_images = 8\nbits = ["8"]\ncalib_cache = "{tmp_path}/cache"\n'
    )
    assert run_command(["run", str(tmp_path / "one.toml"), "--mlflow", "http://nowhere"]) == 0
    (made,) = logged
    assert made.tags["trtq.verb"] == "analyze"
    assert made.text is not None
    assert made.text[0] == "analysis.json"


def test_a_server_that_refuses_stops_a_command_before_its_work(images, tmp_path):
    words = ["cost", "trtq.testing.models:tiny_cnn", "--input-size", "3x32x32"]
    done = run_cli(*words, "--mlflow", f"file://{tmp_path}/ml")
    if importlib.util.find_spec("mlflow") is None:
        assert done.returncode == 2
        assert "Cannot use --mlflow: mlflow is not installed. pip install" in done.stderr
        assert done.stdout == ""
    else:  # MLflow 3 has no folder without being asked
        assert "Cannot log to MLflow at file://" in done.stderr


def test_the_figures_of_a_record():
    record = {
        "schema": 3,
        "spec": {"seed": 1},
        "a": {"b": {"c": 2}, "d": True},
        "rows": [1],
        "e": 0.5,
    }
    assert figures_of(record) == {"a.b.c": 2.0, "e": 0.5}


@with_mlflow
@pytest.mark.filterwarnings("ignore")
def test_a_command_in_a_real_store(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.chdir(tmp_path)
    words = ["cost", "trtq.testing.models:tiny_cnn", "--input-size", "3x32x32"]
    uri = f"file://{tmp_path}/ml"
    assert run_cli(*words, "--mlflow", uri).returncode == 0
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri, registry_uri="file:///nowhere")
    experiment = client.get_experiment_by_name("trtq")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.tags["trtq.verb"] == "cost"
    assert run.data.params["input_size"] == "[3,32,32]"
    assert run.data.metrics["total.macs"] > 0
    assert [f.path for f in client.list_artifacts(run.info.run_id)] == ["cost.json"]
