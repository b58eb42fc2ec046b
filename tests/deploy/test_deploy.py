"""Boards over SSH, end to end.

A real sshd on loopback, an unprivileged user, the real agent, and stand-ins for NVIDIA's programs.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest

from tests.conftest import read, run_cli
from tests.support.boards import (
    Heard,
    _until,
    _with_preprocessing,
    introduce,
    name_of,
    needs_sshd,
    pooling,
    served,
    spec,
)
from trtq import FinetuneSpec, finetune
from trtq.artifact import sha256_file
from trtq.commands.deploy import deploy
from trtq.deploy.agent_client import Agent
from trtq.deploy.answers import Step
from trtq.deploy.board import probe
from trtq.deploy.board_readings import Readings, memory_of
from trtq.deploy.devices import find_device
from trtq.engine.trtexec_log import read_log
from trtq.errors import DeviceError, EngineError
from trtq.export.onnx_file import get_metadata
from trtq.progress import Silent
from trtq.specs import DeploySpec
from trtq.testing.board import StandInBoard

pytestmark = needs_sshd


# Every board, by way of the verbs.


def test_each_board_is_probed_built_measured_and_left_as_it_was(board, cnn_out, tmp_path):
    name = name_of(board)
    done = run_cli("device", "probe", name, "--json")
    found = json.loads(done.stdout)
    said = {
        "nano": ("4.6.1", "5.3", "8.2.1", 2000, "rail POM_5V_IN"),
        "xavier": ("5.1", "7.2", "8.5.2", 4000, "sum of monitored rails GPU + CPU"),
        "orin": ("6.2", "8.7", "10.3.0", 5000, "rail VDD_IN"),
        "thor": ("7.0", "11.0", "10.13.3", 30000, "rail VIN"),
    }[name]
    assert (found["jetpack"], found["capability"], found["tensorrt"], found["power"]["mw"]) == said[
        :4
    ]
    assert found["power"]["what"].startswith(said[4])
    assert found["power"]["source"] == ("tegrastats" if name == "xavier" else "INA3221 in sysfs")
    assert found["temperatures"] == {"GPU": 36.5}
    if name == "nano" and board.folder.parent.joinpath("python36").is_dir():
        assert found["python"].startswith("3.6")
    model, mode = (
        Path(shutil.copytree(cnn_out, tmp_path / "m")) / "model.qdq.onnx",
        board.kind.modes[1],
    )
    asked = [
        "--power-mode",
        mode,
        "--lock-clocks",
        "--duration",
        "0.3",
        "--min-samples",
        "50",
        "--out",
        str(tmp_path / "o"),
    ]
    done = run_cli("deploy", name, str(model), *asked)
    assert done.returncode in (0, 3), done.stderr
    record = read(tmp_path / "o/deploy.json")
    engine = Path(record["engine"])
    assert (
        sha256_file(engine)
        == record["manifest"]["engine_sha256"]
        == read(Path(f"{engine}.json"))["engine_sha256"]
    )
    row = record["rows"][0]
    assert row["settings"]["power_mode"] == mode
    assert row["settings"]["clocks"] == "pinned"
    assert row["gpu"]["median"]["value"] == pytest.approx(2.06, abs=0.02)
    assert row["memory"]["device"] == pytest.approx(0.1 * 1024 * board.kind.memory_kb, rel=0.01)
    assert 0 < row["load"][0]["total"]["median"] < 5000
    assert row["state"]["latency_ms"] == pytest.approx(2.2)  # copies are in it, from 11 on, too
    if name == "nano":
        assert (
            record["manifest"]["fallback"] == "Jetson Nano has no INT8 arithmetic: the float model"
        )
        assert "fell back: Jetson Nano has no INT8" in done.stdout
        assert record["manifest"]["quantized_tensors"] == 0
        assert b"fp16" in engine.read_bytes()
    else:
        assert record["manifest"]["quantized_tensors"] > 0
    held = read(tmp_path / "o/bench.json")
    assert held["command"].startswith(
        f"trtq deploy {name} {model} --power-mode {mode} --lock-clocks"
    )
    assert (held["card"]["jetson"]["power_mode"], held["card"]["jetson"]["clocks"]) == (
        mode,
        "pinned",
    )  # while it was measured
    # Set, and set back.
    assert (board.root / "var/lib/nvpmodel/changes").read_text().split() == [
        "1",
        "0",
        "1",
        "0",
    ]  # for the build and for the measurement
    assert (board.root / "var/lib/nvpmodel/status").read_text().startswith("pmode:0000")
    assert (board.root / f"sys/class/devfreq/{board.kind.gpu}/min_freq").read_text() == "114750000"
    # The upload is gone, the engine stays; the figures are in the history.
    assert list((board.home / ".trtq/files").iterdir()) == []
    assert "engine" in run_cli("history").stdout
    again = run_cli("deploy", name, str(model), *asked, "--json")
    second = json.loads(again.stdout)
    assert (second["built"], second["measured"]) == (False, False)
    assert second["sent"] + second["received"] < 20_000


@pytest.mark.alone
def test_a_second_deployment_takes_no_time(orin, tmp_path):
    model = pooling(tmp_path / "m.onnx", weights=3_000_000)
    deploy(spec(orin, model, tmp_path / "o"))
    seconds = []
    for _ in range(3):  # the best of three: other work may be on the machine
        done = run_cli(
            "deploy",
            "orin",
            str(model),
            "--duration",
            "0.3",
            "--min-samples",
            "50",
            "--out",
            str(tmp_path / "o"),
            "--json",
        )
        record = json.loads(done.stdout)
        assert record["sent"] + record["received"] < 20_000
        seconds.append(record["seconds"])
    assert min(seconds) < 2.0


@pytest.mark.parametrize("kind", ["nano", pytest.param("xavier", marks=pytest.mark.slow)])
def test_energy_of_a_board(place, kind, tmp_path):
    """One board with rails in sysfs and one with tegrastats tell all of it."""
    with served(place, kind) as board:
        introduce(board, kind)
        _check_energy(board, tmp_path)


def _check_energy(board: StandInBoard, tmp_path: Path) -> None:
    import trtq.deploy.board_readings as measuring

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "ENERGY_WINDOW_S", 2.0)
        patch.setattr(measuring, "SETTLE_S", 0.5)
        record = deploy(spec(board, pooling(tmp_path / "m.onnx"), tmp_path / "o", energy=True))
    energy = record.rows[0].energy
    busy, idle = {"nano": (6.0, 2.0), "xavier": (12.0, 4.0)}[name_of(board)]
    assert energy is not None
    assert energy.power_w == pytest.approx(busy, rel=0.05)
    assert energy.idle_w == pytest.approx(idle, rel=0.05)
    rate = 1000.0 / 2.2
    assert energy.gross_j == pytest.approx(busy / rate, rel=0.06)
    assert energy.net_j == pytest.approx((busy - idle) / rate, rel=0.06)
    assert not energy.valid and "too short to measure" in energy.reasons[0]
    assert not record.valid and any(
        r.startswith("energy: too short to measure") for r in record.rows[0].reasons
    )
    assert ("a sum of monitored rails is less" in " ".join(energy.limits)) == (
        name_of(board) == "xavier"
    )


def test_the_images_of_a_board(orin, images, tmp_path):
    if not orin.add_tensorrt():
        pytest.skip("no C compiler for the stand-in of CUDA's runtime library")
    path = _with_preprocessing(pooling(tmp_path / "m.onnx"))
    record = deploy(spec(orin, path, tmp_path / "o", data=str(images), images=19, precision="fp32"))
    assert record.accuracy is not None
    assert record.accuracy.images == 19
    comparison = record.accuracy.agreement.comparisons[-1]
    assert (comparison.runner, comparison.passed, len(comparison.outputs)) == ("engine", True, 1)
    assert comparison.outputs[0].exact or comparison.outputs[0].sqnr_db > 100
    assert (comparison.agreement, record.accuracy.top1) == (None, None), (
        "nothing says that these are scores of classes"
    )
    wrong = msgspec.structs.replace(comparison, passed=False, sqnr_db=None, finite=False)
    agreement = msgspec.structs.replace(record.accuracy.agreement, comparisons=[wrong])
    bad = msgspec.structs.replace(
        record, accuracy=msgspec.structs.replace(record.accuracy, agreement=agreement)
    )
    assert record.valid and not bad.valid
    assert (
        "NaN or infinite; NOT VALID: the engine does not compute what the file says" in bad.summary
    )
    assert [p.suffix for p in (orin.home / ".trtq/files").iterdir()] == []


def test_no_tensorrt_for_python_is_said_and_is_no_failure(orin, images, tmp_path):
    path = pooling(tmp_path / "m.onnx")
    heard = Heard()
    record = deploy(spec(orin, path, tmp_path / "o", data=str(images), bench=False), heard)
    assert record.accuracy is None
    assert "accuracy" in record.unavailable


def test_a_trained_model_goes_as_the_board_reads_it(orin, images, cnn_out, tmp_path):
    given = read(cnn_out / "quantize.json")["spec"]
    same = {n: given[n] for n in ("model", "data", "input_size", "preset")}
    finetune(
        FinetuneSpec.make(
            {
                **same,
                "encodings": f"{cnn_out}/encodings.safetensors",
                "out": f"{tmp_path}/qat",
                "epochs": 1,
                "limit": 8,
                "parity_images": 8,
            }
        )
    )
    record = deploy(spec(orin, tmp_path / "qat/model.qdq.onnx", tmp_path / "o", bench=False))
    assert Path(record.onnx) == tmp_path / "qat/for-orin-nano-10.3-fp16/orin-nano-10.3.onnx"
    assert "types in the graph" in " ".join(record.notes)
    (tmp_path / "qat/finetune.json").write_text(
        (tmp_path / "qat/finetune.json").read_text().replace(str(images), "/not/here")
    )
    shutil.rmtree(tmp_path / "qat/for-orin-nano-10.3-fp16")
    record = deploy(
        spec(orin, tmp_path / "qat/model.qdq.onnx", tmp_path / "o", bench=False)
    )  # as on another machine
    assert Path(record.onnx) == tmp_path / "qat/model.qdq.onnx"
    assert any(
        n.startswith("the file is sent unchanged: it cannot be written for orin-nano@10.3 here (")
        for n in record.notes
    )
    assert (
        record.manifest.encodings_sha256
        == get_metadata(onnx.load(tmp_path / "qat/model.qdq.onnx"))["encodings_sha256"]
    )


def test_an_imported_cache_names_no_model_and_goes_as_it_is(orin, cnn_out, tmp_path):
    for name in ("model.qdq.onnx", "encodings.safetensors"):
        shutil.copy(cnn_out / name, tmp_path / name)
    files = {
        n: {"sha256": sha256_file(tmp_path / n)}
        for n in ("model.qdq.onnx", "encodings.safetensors")
    }
    held = {"verb": "import-calib", "spec": {"cache": "c", "onnx": "o", "out": "d"}, "files": files}
    (tmp_path / "import.json").write_text(json.dumps(held))
    record = deploy(spec(orin, tmp_path / "model.qdq.onnx", tmp_path / "o", bench=False))
    assert Path(record.onnx) == tmp_path / "model.qdq.onnx"


def test_a_measurement_of_another_engine_does_not_stay(orin, tmp_path):
    first = deploy(spec(orin, pooling(tmp_path / "m.onnx"), tmp_path / "o"))
    kept = deploy(spec(orin, tmp_path / "m.onnx", tmp_path / "o", bench=False))
    assert not kept.measured and kept.rows == first.rows and (tmp_path / "o/bench.json").is_file()
    other = deploy(
        spec(orin, pooling(tmp_path / "m.onnx", weights=1000), tmp_path / "o", bench=False)
    )
    assert other.built and other.rows == [] and not (tmp_path / "o/bench.json").exists()


def test_memory_that_did_not_grow_is_not_a_figure():
    t, none = np.array([0.0, 1.0, 2.0]), np.full(3, np.nan)
    seen = Readings(t, none, np.array([2e9, 1.9e9, 1.8e9]), none, none, none)
    step = Step(name="s", rc=0, seconds=2.0, marks={}, files={}, begin=0.5, end=2.5)
    found, why = memory_of(step, [step], seen, read_log(""), 768)
    assert found is None and why.startswith("the board's used memory did not grow")


@pytest.mark.slow
def test_nothing_stale_is_taken_for_new(orin, tmp_path):
    model = pooling(tmp_path / "m.onnx")
    first = deploy(spec(orin, model, tmp_path / "o"))
    for given in (
        {"duration": 0.4},
        {"duration": 0.3},
        {"lock_clocks": True},
        {},
    ):  # back and forth
        assert deploy(spec(orin, model, tmp_path / "o", **given)).measured
    engine = Path(first.engine)
    before = engine.stat().st_mtime_ns
    assert deploy(spec(orin, model, tmp_path / "o", force=True, bench=False)).built
    assert engine.stat().st_mtime_ns > before
    engine.unlink()
    assert deploy(spec(orin, model, tmp_path / "o", bench=False)).built and engine.is_file()
    engine.write_bytes(b"something else")
    assert deploy(
        spec(orin, model, tmp_path / "o", bench=False)
    ).built and engine.read_bytes().startswith(b"not an engine")
    # Figures that are not valid are not used again.
    alert = orin.root / "sys/class/thermal/cooling_device0/cur_state"
    alert.write_text("2")
    assert not deploy(spec(orin, model, tmp_path / "p")).valid  # on from the start
    alert.write_text("0")
    last = deploy(spec(orin, model, tmp_path / "p"))
    assert last.measured and last.valid


@pytest.mark.slow
def test_a_pinned_clock_that_falls_is_throttling(orin, tmp_path):
    busy = json.loads((orin.root / "busy.json").read_text())
    (orin.root / "busy.json").write_text(
        json.dumps({**busy, f"sys/class/devfreq/{orin.kind.gpu}/cur_freq": "460800000"})
    )
    record = deploy(
        spec(orin, pooling(tmp_path / "m.onnx"), tmp_path / "o", lock_clocks=True, duration=1.0)
    )
    assert (
        "the GPU's pinned clock fell to 50% during the run: it throttled" in record.rows[0].reasons
    )


def test_a_board_that_is_pinned_already_stays_so(orin, tmp_path):
    node = orin.root / f"sys/class/devfreq/{orin.kind.gpu}"
    (node / "min_freq").write_text("921600000")
    (node / "cur_freq").write_text("921600000")
    record = deploy(
        spec(orin, pooling(tmp_path / "m.onnx"), tmp_path / "o", lock_clocks=True, power_mode="25W")
    )
    assert (record.rows[0].settings.clocks, record.rows[0].settings.power_mode) == (
        "pinned",
        "25W",
    )
    assert (node / "min_freq").read_text() == "921600000"


def test_what_a_power_cut_left_set_is_set_back(orin, tmp_path):
    asked = spec(
        orin,
        pooling(tmp_path / "m.onnx", "seconds:3"),
        tmp_path / "o",
        power_mode="25W",
        reconnect_timeout=0.0,
    )
    worker = threading.Thread(target=lambda: _quietly(asked))
    worker.start()
    _until(lambda: orin.processes("saveEngine"))
    orin.reboot()
    worker.join(60)
    assert (orin.root / "var/lib/nvpmodel/status").read_text().startswith("pmode:0001")
    agent = Agent(find_device("orin"), Silent())
    assert probe(agent).power_mode.name == "15W"
    assert (orin.root / "var/lib/nvpmodel/status").read_text().startswith("pmode:0000")
    agent.close()


def _quietly(asked: DeploySpec) -> None:
    with contextlib.suppress(DeviceError, EngineError):
        deploy(asked)


def test_a_recipe_is_quantized_first(place, images, tmp_path):
    with served(place, "orin") as orin:
        introduce(orin, "orin")
        recipe = tmp_path / "r.toml"
        recipe.write_text(
            f'out = "{tmp_path}/run"\n[quantize]\nmodel = "trtq.testing.models:tiny_cnn"\ndata '
            f'= "{images}"\ninput_size = "3x32x32"\n'
            'preset = "imagenet"\ncalib_images = 16\npreset_quant = "none"\ncalib_cache = '
            f'"{tmp_path}/c"\n[[build]]\n'
            'target = "rtx3080"\n[bench]\n'
        )
        done = run_cli(
            "deploy", "orin", str(recipe), "--duration", "0.3", "--min-samples", "50", cwd=tmp_path
        )
        assert done.returncode in (0, 3), done.stderr
        assert "INT8 Q/DQ" in done.stdout
        assert (tmp_path / "run/deploy/orin/deploy.json").is_file()
        page = (tmp_path / "run/report.html").read_text()
        assert "<h2>Boards</h2>" in page and "Orin Nano" in page
        assert not list(
            (tmp_path / "run").glob("*.engine")
        )  # what [[build]] asks for is not built here
