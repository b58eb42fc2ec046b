"""Boards over SSH, end to end.

A real sshd on loopback, an unprivileged user, the real agent, and stand-ins for NVIDIA's programs.
"""

from __future__ import annotations

import contextlib
import html
import json
import os
import pty
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.conftest import read, run_cli
from tests.test_agent import old_python
from trtq import CompareSpec, FinetuneSpec, compare, finetune
from trtq import agent as agent_code
from trtq.artifact import sha256_file
from trtq.bench.gate import read_record
from trtq.cli import cli
from trtq.commands.deploy import deploy
from trtq.commands.fleet import fleet
from trtq.deploy.agent_client import Agent
from trtq.deploy.board import probe
from trtq.deploy.board_readings import memory_of
from trtq.deploy.devices import find_device, parse_device, remember_device
from trtq.deploy.jobs import do
from trtq.deploy.record import DeployRecord
from trtq.deploy.ssh import Link
from trtq.engine.trtexec_log import read_log
from trtq.errors import (
    BoardError,
    BuilderMemoryError,
    DataError,
    DeviceError,
    EngineError,
    HostKeyError,
    LinkError,
    SshError,
    UsageError,
)
from trtq.export.onnx_file import get_metadata
from trtq.progress import Silent
from trtq.specs import DeploySpec, FleetSpec
from trtq.testing.board import KINDS, StandInBoard, find_sshd
from trtq.testing.link import ShapedLink

pytestmark = pytest.mark.skipif(
    find_sshd() is None, reason="no OpenSSH server here: make system installs it"
)
QUICK = {"duration": 0.3, "min_samples": 50, "patience": 30.0}


@pytest.fixture(scope="session")
def place() -> Iterator[Path]:
    """A folder that an unprivileged user can reach: pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="trtq-boards-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def python36(place: Path) -> str | None:
    """A copy of Python 3.6 that an unprivileged user can start; None where there is none."""
    found = old_python()
    if found is None:
        return None
    prefix = Path(found).resolve().parent.parent
    skip = shutil.ignore_patterns(
        "test",
        "tests",
        "site-packages",
        "config-*",
        "idlelib",
        "lib2to3",
        "ensurepip",
        "__pycache__",
        "*.a",
    )
    shutil.copytree(prefix / "lib", place / "python36/lib", ignore=skip, symlinks=True)
    (place / "python36/bin").mkdir()
    shutil.copy(prefix / "bin/python3.6", place / "python36/bin/python3.6.bin")
    start = place / "python36/bin/python3.6"  # its library lies where it was built for
    start.write_text(
        f'#!/bin/bash\nLD_LIBRARY_PATH="{place}/python36/lib" exec -a "$0" "{start}.bin" "$@"\n'
    )
    start.chmod(0o755)
    return str(place / "python36/bin/python3.6")


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRTQ_CONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("TRTQ_HISTORY", str(tmp_path / "history.sqlite"))
    return tmp_path / "config"


@contextlib.contextmanager
def served(place: Path, kind: str, **given) -> Iterator[StandInBoard]:
    board = StandInBoard(Path(tempfile.mkdtemp(dir=place, prefix=f"{kind}-")), kind, **given)
    try:
        with board.serving():
            yield board
    finally:
        shutil.rmtree(board.folder, ignore_errors=True)


def introduce(board: StandInBoard, name: str, *, port: int | None = None) -> None:
    """Add a board whose key is accepted."""
    address = board.address if port is None else f"{board.user}@127.0.0.1:{port}"
    device = parse_device(name, address, identity=str(board.identity))
    link = Link(device)
    link.accept(link.offered_key()[0])
    remember_device(device)


@pytest.fixture(
    params=[
        pytest.param(k, marks=pytest.mark.slow) if k in ("xavier", "thor") else k for k in KINDS
    ]
)
def board(
    request: pytest.FixtureRequest, place: Path, python36: str | None
) -> Iterator[StandInBoard]:
    python = python36 if request.param == "nano" and python36 is not None else "/usr/bin/python3"
    with served(place, request.param, python=python) as made:
        introduce(made, request.param)
        yield made


@pytest.fixture()
def orin(place: Path) -> Iterator[StandInBoard]:
    with served(place, "orin") as made:
        introduce(made, "orin")
        yield made


def name_of(board: StandInBoard) -> str:
    return next(k for k, v in KINDS.items() if v is board.kind)


def pooling(path: Path, doc: str = "", *, weights: int = 0, opset: int = 13) -> Path:
    """A model that the board's TensorRT stand-in can compute: the mean of every channel."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["input"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["output"]),
    ]
    held = (
        [
            numpy_helper.from_array(
                np.random.default_rng(0).integers(0, 255, weights, dtype=np.uint8), "ballast"
            )
        ]
        if weights
        else []
    )
    if weights:
        nodes.append(helper.make_node("Identity", ["ballast"], ["unused"]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N", 3])],
        held,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)
    model.doc_string = doc
    onnx.save(model, path)
    return path


def spec(board: StandInBoard, model: Path, out: Path, **given) -> DeploySpec:
    return DeploySpec(device=name_of(board), model=str(model), out=str(out), **{**QUICK, **given})


class Heard(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


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


def test_the_fleet(place, cnn_out, tmp_path):
    with served(place, "orin") as orin, served(place, "nano") as nano:
        introduce(orin, "orin")
        introduce(nano, "nano")
        model = pooling(tmp_path / "m.onnx")
        gone = parse_device("gone", "nobody@127.0.0.1:1")
        remember_device(gone)
        done = run_cli(
            "fleet",
            "deploy",
            str(model),
            "--devices",
            "orin,nano,gone",
            "--duration",
            "0.3",
            "--min-samples",
            "50",
            "--out",
            str(tmp_path / "f"),
        )
        assert done.returncode == 1
        lines = done.stdout.splitlines()
        assert lines[0].split()[:3] == ["device", "board", "model"]
        assert sum("2.06" in ln for ln in lines) == 2
        assert "gone, m: Cannot reach gone" in done.stdout
        record = fleet(FleetSpec(devices="orin,nano", out=str(tmp_path / "g"), **QUICK))
        assert [(r.device, r.valid, r.batch) for r in record.rows] == [
            ("orin", True, 1),
            ("nano", True, 1),
        ]
        assert all(r.load_ms and r.memory_bytes for r in record.rows)
        assert all(
            re.fullmatch(r".* \([0-9a-f]{8}\)", r.model) for r in record.rows
        )  # of one model there may be several engines
        repeat = html.unescape(
            re.search(r"trtq fleet bench [^<]+", (tmp_path / "g/fleet.html").read_text())[0]
        )
        group = cli.get_command(None, "fleet")
        group.get_command(None, "bench").make_context("bench", shlex.split(repeat)[3:])
        assert "--bench-batch 1 " in repeat
        page = (tmp_path / "f/fleet.html").read_text()
        assert "2 devices, 1 model; 1 gave nothing" in page and "Cannot reach gone" in page
        typed = f"{orin.user}@127.0.0.1:{orin.port}"
        with (
            pytest.MonkeyPatch.context() as patch
        ):  # an address that was never added, with what the user's configuration says
            (tmp_path / "home/.ssh").mkdir(parents=True)
            (tmp_path / "home/.ssh/config").write_text(
                f"Host 127.0.0.1\n  IdentityFile {orin.identity}\n"
            )
            patch.setenv("HOME", str(tmp_path / "home"))
            assert (
                fleet(
                    FleetSpec(model=(str(model),), devices=typed, out=str(tmp_path / "h"), **QUICK)
                )
                .rows[0]
                .latency_ms
            )


# What must not be taken for something else.


def test_bench_on_a_board(orin, tmp_path):
    model = pooling(tmp_path / "m.onnx")
    asked = [
        "bench",
        str(model),
        "--device",
        "ssh:orin",
        "--duration",
        "0.3",
        "--min-samples",
        "50",
    ]
    done = run_cli(*asked, "--out", str(tmp_path / "o"))
    assert done.returncode == 0, done.stderr
    assert "gpu 2.06" in done.stdout and "inference begins" in done.stdout
    # The record has a complete card, so it can be compared with another one.
    record = read_record(tmp_path / "o/bench.json")
    assert record.command.endswith(
        f"--device ssh:orin --duration 0.3 --min-samples 50 --out {tmp_path / 'o'}"
    )
    assert record.card["jetson"]["power_mode"] == record.rows[0].settings["power_mode"]
    other = read(tmp_path / "o/bench.json")
    other["rows"][0]["gpu"]["median"]["value"] *= 1.01
    other["rows"][0]["state"]["latency_ms"] *= 1.01
    (tmp_path / "other.json").write_text(json.dumps(other))
    found = compare(
        CompareSpec(file=(str(tmp_path / "o/bench.json"), str(tmp_path / "other.json")))
    )
    assert (
        found.valid
        and found.differences == []
        and "gpu" in found.notes[0]
        and "x 1.0100" in found.notes[0]
    )
    for more, named in (
        (["--percentiles", "50,99.9"], "percentiles"),
        (["--mode", "paced"], "mode"),
        (["--repeat", "2"], "repeat"),
    ):
        refused = run_cli(*asked, *more)
        assert refused.returncode == 2
        assert (
            f"Cannot measure with --{named} on ssh:orin: boards are measured with their own trtexec"
            in refused.stderr
        )
    assert (
        "engines are built on the board that runs them"
        in run_cli("bench", "x.engine", "--device", "ssh:orin").stderr
    )


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
        n.startswith("the file goes as it is: it cannot be written for orin-nano@10.3 here (")
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
    seen = {"t": np.array([0.0, 1.0, 2.0]), "ram_bytes": np.array([2e9, 1.9e9, 1.8e9])}
    found, why = memory_of(
        {"begin": 0.5, "end": 2.5}, [{"begin": 0.5}], seen, read_log(""), [1, 3, 8, 8]
    )
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
    assert deploy(spec(orin, model, tmp_path / "o", again=True, bench=False)).built
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
    assert "the GPU's pinned clock fell to 50% meanwhile: it throttled" in record.rows[0].reasons


def test_a_board_that_is_pinned_already_stays_so(orin, tmp_path):
    node = orin.root / f"sys/class/devfreq/{orin.kind.gpu}"
    (node / "min_freq").write_text("921600000")
    (node / "cur_freq").write_text("921600000")
    record = deploy(
        spec(orin, pooling(tmp_path / "m.onnx"), tmp_path / "o", lock_clocks=True, power_mode="25W")
    )
    assert (record.rows[0].settings["clocks"], record.rows[0].settings["power_mode"]) == (
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
        patience=0.0,
    )
    worker = threading.Thread(target=lambda: _quietly(asked))
    worker.start()
    _until(lambda: orin.processes("saveEngine"))
    orin.reboot()
    worker.join(60)
    assert (orin.root / "var/lib/nvpmodel/status").read_text().startswith("pmode:0001")
    agent = Agent(find_device("orin"), Silent())
    assert probe(agent).power_mode["name"] == "15W"
    assert (orin.root / "var/lib/nvpmodel/status").read_text().startswith("pmode:0000")
    agent.close()


def _quietly(asked: DeploySpec) -> None:
    with contextlib.suppress(DeviceError, EngineError):
        deploy(asked)


def test_requests_of_any_size(orin):
    agent = Agent(find_device("orin"), Silent())
    value = {"layers": ["x" * 100] * 5000}
    agent.ask("manifest", name="engines/big.json", value=value)
    assert read(orin.home / ".trtq/engines/big.json") == value
    agent.close()


def test_a_folder_that_is_somebodys_is_not_taken(orin, tmp_path):
    theirs = orin.home / "data"
    (theirs / "files").mkdir(parents=True)
    (theirs / "files/thesis.tex").write_text("years of work")
    orin._give_away()
    remember_device(msgspec.structs.replace(find_device("orin"), workdir="data"))
    done = run_cli("device", "clean", "orin", "--all")
    assert (
        "data is not empty, and trtq did not make it. Give trtq device add a --workdir of its own"
        in done.stderr
    )
    assert (theirs / "files/thesis.tex").is_file()


def test_an_upload_whose_link_went_without_a_word_makes_way(orin, tmp_path):
    """A pulled cable: the other end of the old upload still waits, and holds the file."""
    payload = tmp_path / "payload"
    payload.write_bytes(os.urandom(1_000_000))
    with ShapedLink(orin.port) as link:
        agent = _agent(link.port, orin)
        probe(agent)
        link.rate = 5e5
        threading.Timer(0.8, link.freeze).start()
        worker = threading.Thread(
            target=lambda: agent.upload(payload, "files/p.bin", sha256_file(payload))
        )
        worker.start()
        time.sleep(1.6)
        link.drop_frozen()  # what keep-alive does after a minute, on this side alone
        link.rate = None
        worker.join(40)
        assert not worker.is_alive()
        assert sha256_file(orin.home / ".trtq/files/p.bin") == sha256_file(payload)
        agent.close()


def test_a_job_can_be_ended(orin):
    agent = Agent(find_device("orin"), Silent())
    agent.ask(
        "start",
        key="abcdef",
        job={
            "title": "a",
            "steps": [{"name": "s", "argv": ["sleep", "60"]}],
            "mode": "25W",
            "pin": True,
        },
    )
    _until(lambda: agent.ask("status", key="abcdef").get("step") == "s")
    board = probe(agent)
    assert (board.power_mode["name"], board.clocks["pinned"], board.meanwhile) == (
        "15W",
        False,
        {"mode": "25W", "pinned": True},
    )
    assert (
        "a job holds the power mode 25W, clocks pinned now; the above is what it goes back to"
        in board.lines
    )
    assert "it was stopped (trtq device stop)" in run_cli("device", "stop", "orin", "abc").stdout
    late = {"title": "b", "steps": [{"name": "s", "argv": ["sleep", "60"], "limit_s": 0.5}]}
    result, lines = do(agent, "beef", late)
    assert (result["ok"], result["steps"][0]["rc"]) == (False, 124)
    assert any("no end in 0 s: it was ended" in ln for ln in lines)
    agent.close()


def test_a_deployment_that_is_left_and_one_that_waits(orin, tmp_path):
    """Ctrl-C leaves the job on the board and says how to end it; who must wait is told for whom."""
    model = pooling(tmp_path / "m.onnx", "seconds:30")
    quick = ["--duration", "0.3", "--min-samples", "50", "--out"]
    # A shell's background jobs, pytest among them, ignore SIGINT.
    hears = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from trtq.cli "
        "import main; main()"
    )
    line = [sys.executable, "-c", hears, "deploy", "orin", str(model), *quick, str(tmp_path / "a")]
    left = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
    agent = Agent(find_device("orin"), Silent())
    _until(lambda: any(j["state"] == "running" for j in agent.ask("list")["jobs"]), 60)
    left.send_signal(signal.SIGINT)
    said = left.communicate(timeout=60)[1]
    key = re.search(
        r"goes on there, and the same command finds it again; to end it: trtq device stop orin "
        r"(\w+)",
        said,
    )
    assert key is not None and left.returncode == 130, said
    other = [
        sys.executable,
        "-m",
        "trtq",
        "deploy",
        "orin",
        str(pooling(tmp_path / "n.onnx")),
        *quick,
        str(tmp_path / "b"),
    ]
    with subprocess.Popen(other, stderr=subprocess.PIPE, text=True) as waits:
        assert waits.stderr is not None
        assert any("orin: waiting for another job here (of " in ln for ln in waits.stderr)
        assert "it was stopped" in run_cli("device", "stop", "orin", key[1]).stdout
        waits.communicate(timeout=120)
    assert waits.returncode in (0, 3)
    agent.close()


# What goes wrong.


def test_a_new_host_key_is_shown_and_accepted_once(place, tmp_path):
    with served(place, "orin") as board:
        asked = ["device", "add", "orin", board.address, "--identity", str(board.identity)]
        done = run_cli(*asked)
        assert done.returncode == 1
        assert "must be accepted once: there is no terminal to ask on" in done.stderr
        fingerprint = done.stderr.split("--accept-key ")[1].rstrip(".\n")
        assert run_cli("deploy", "orin", "m.onnx").stderr.startswith(
            "trtq: Unknown device 'orin': no device has been added yet"
        )
        wrong = run_cli(*asked, "--accept-key", "SHA256:somethingelse")
        assert "none of them has the fingerprint SHA256:somethingelse" in wrong.stderr
        mine, theirs = pty.openpty()
        with subprocess.Popen(
            [sys.executable, "-m", "trtq", *asked], stdin=theirs, stderr=subprocess.PIPE, text=True
        ) as process:
            os.write(mine, b"n\n")
            assert (
                "orin was not added: its host key was not accepted"
                in process.communicate(timeout=60)[1]
            )
        assert process.returncode == 1
        done = run_cli(*asked, "--accept-key", fingerprint.removeprefix("SHA256:"))
        assert done.returncode == 0, done.stderr
        assert "Orin Nano" in done.stdout
        # Changed: flashed again, or somebody else.
        board.new_host_key()
        board.switch_off()
        board.switch_on()
        done = run_cli("deploy", "orin", str(pooling(tmp_path / "m.onnx")))
        assert done.returncode == 1
        assert "its host key is not the one in" in done.stderr
        assert "ssh-keygen -R '[127.0.0.1]" in done.stderr
        assert "has been accepted" not in done.stdout


def test_a_wrong_key_is_refused_without_a_prompt(orin, tmp_path):
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True
    )
    remember_device(parse_device("orin", orin.address, identity=str(tmp_path / "other")))
    with pytest.raises(
        SshError,
        match=r"refuses the login \(it offers publickey\); trtq never asks .*ssh-copy-id -i "
        r".*other -p",
    ):
        deploy(spec(orin, pooling(tmp_path / "m.onnx"), tmp_path / "o"))


def test_a_board_that_is_off(orin, tmp_path):
    orin.switch_off()
    with pytest.raises(
        DataError, match="Cannot read images from"
    ):  # before anything is asked of the board
        deploy(
            spec(orin, pooling(tmp_path / "m.onnx"), tmp_path / "o", data=str(tmp_path / "nowhere"))
        )
    with pytest.raises(
        UsageError,
        match=r"Unknown device 'orin@10.3': orin is one, and it builds with the TensorRT it has. "
        r"Write orin",
    ):
        find_device("orin@10.3")
    with pytest.raises(
        LinkError,
        match=r"Cannot reach orin .*nothing listens on port \d+ of 127.0.0.1.*Is sshd running",
    ):
        deploy(spec(orin, pooling(tmp_path / "m.onnx"), tmp_path / "o"))


def test_names_and_addresses():
    for name, address, text in (
        ("-x", "a@b", "Cannot call a device '-x'"),
        ("n", "-oProxyCommand=x", "Cannot read the address"),
        ("n", "a@b;c", "Cannot read the address"),
        ("n", "a@b:99999", "a port lies between"),
        ("n", "a@b c", "Cannot read the address"),
    ):
        with pytest.raises(UsageError, match=text):
            parse_device(name, address)
    with pytest.raises(UsageError, match="Cannot read the jump host '-J'"):
        parse_device("n", "a@b", jump="-J")
    with pytest.raises(UsageError, match="--identity /no: there is no such file"):
        parse_device("n", "a@b", identity="/no")
    with pytest.raises(UsageError, match="Cannot use --workdir '-rf'"):
        parse_device("n", "a@b", workdir="-rf")
    assert find_device("me@board.local:2222").port == 2222
    with pytest.raises(UsageError, match=r"Unknown device 'nano'.*trtq device add nano user@host"):
        find_device("nano")


def test_a_damaged_list_of_devices(config):
    config.mkdir()
    (config / "devices.json").write_text("{")
    with pytest.raises(DeviceError, match="Cannot read the devices in"):
        find_device("nano")


def test_a_jump_host_and_a_stale_agent(place, tmp_path):
    with served(place, "orin") as far, served(place, "nano") as gate:
        shutil.copy(far.identity, tmp_path / "key")
        key = (far.folder / "client_key.pub").read_text()
        (gate.folder / "authorized_keys").write_text(key)
        introduce(gate, "gate")
        introduce(far, "far")
        # The jump host is reached with what SSH finds: here a configuration of the user's.
        home = tmp_path / "home/.ssh"
        home.mkdir(parents=True)
        (home / "config").write_text(f"Host 127.0.0.1\n  IdentityFile {tmp_path}/key\n")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HOME", str(tmp_path / "home"))
            behind = parse_device("far", far.address, identity=str(far.identity), jump=gate.address)
            remember_device(behind)
            with pytest.raises(
                HostKeyError, match="the host key of this host has not been accepted yet.*--jump"
            ):
                probe(Agent(behind, Silent()))  # the same address behind a gateway is another board
            Link(behind).accept(Link(behind).offered_key()[0])
            agent = Agent(find_device("far"), Silent())
            assert probe(agent).board == "orin-nano"
            there = next((far.home / ".trtq/agents").glob("*/agent.py"))
            there.write_text(there.read_text().replace("PROTOCOL = 1", "PROTOCOL = 0"))
            assert probe(agent).board == "orin-nano"  # it was replaced
            assert sha256_file(there) == agent.digest
            agent.close()


def test_no_sudo(place, tmp_path):
    with served(place, "xavier", sudo=False) as board:
        introduce(board, "xavier")
        model = pooling(tmp_path / "m.onnx")
        with pytest.raises(
            BoardError,
            match=r"Cannot set the power mode or the clocks of Jetson-AGX: sudo asks for a "
            r"password there.*visudo",
        ):
            deploy(spec(board, model, tmp_path / "o", power_mode="MODE_15W"))
        record = deploy(spec(board, model, tmp_path / "o"))  # all the rest works
        assert record.rows[0].settings["clocks"] == "not pinned"
        assert any("not pinned" in n for n in record.rows[0].notes)
        assert (board.root / "var/lib/nvpmodel/changes").read_text() == ""


def test_power_modes_that_cannot_be(orin, tmp_path):
    model = pooling(tmp_path / "m.onnx")
    with pytest.raises(
        UsageError, match=r"has no power mode MAXN: it has 15W, 25W, MAXN_SUPER, 7W"
    ):
        deploy(spec(orin, model, tmp_path / "o", power_mode="MAXN"))
    conf = orin.root / "etc/nvpmodel.conf"
    conf.write_text(conf.read_text() + "NEEDS_REBOOT 7W\n")
    with pytest.raises(
        BoardError,
        match=r"cannot set the power mode 7W: it needs a restart of the board.*sudo nvpmodel -m 3",
    ):
        deploy(spec(orin, model, tmp_path / "o", power_mode="7W", lock_clocks=True))
    assert (orin.root / f"sys/class/devfreq/{orin.kind.gpu}/min_freq").read_text() == "114750000"


def test_throttling_makes_it_not_valid(orin, tmp_path):
    alert = orin.root / "sys/class/thermal/cooling_device0/cur_state"
    busy = json.loads((orin.root / "busy.json").read_text())
    (orin.root / "busy.json").write_text(
        json.dumps({**busy, str(alert.relative_to(orin.root)): "3"})
    )
    done = run_cli(
        "deploy",
        "orin",
        str(pooling(tmp_path / "m.onnx")),
        "--duration",
        "0.5",
        "--min-samples",
        "50",
        "--out",
        str(tmp_path / "o"),
    )
    assert done.returncode == 3
    assert "NOT VALID: the board throttled meanwhile (gpu-throttle-alert 3" in done.stdout


def test_pain_26_a_build_that_is_killed_for_memory_is_tried_with_less(orin, tmp_path):
    record = deploy(spec(orin, pooling(tmp_path / "m.onnx", "memory:300"), tmp_path / "o"))
    assert [a.workspace for a in record.manifest.attempts] == [1024, 512]
    assert record.manifest.workspace == 256
    with pytest.raises(
        BuilderMemoryError,
        match=r"tried workspaces of 1024 MiB, 512 MiB, .*64 MiB.*(close what uses CUDA|add swap)",
    ):
        deploy(spec(orin, pooling(tmp_path / "n.onnx", "memory:10"), tmp_path / "p"))


def test_pain_27_int8_on_a_nano(place, cnn_out, tmp_path):
    """Pairs of another toolkit's file are taken out, and a note says so."""
    with served(place, "nano") as nano:
        introduce(nano, "nano")
        from trtq.commands.quantize import quantize
        from trtq.specs import QuantizeSpec

        old = read(cnn_out / "quantize.json")["spec"]
        fields = {
            k: v
            for k, v in old.items()
            if k in QuantizeSpec.__struct_fields__ and v not in (None, [], {})
        }
        quantize(QuantizeSpec.make({**fields, "opset": 13, "out": str(tmp_path / "q")}))
        shutil.copy(tmp_path / "q/model.qdq.onnx", tmp_path / "foreign.onnx")
        record = deploy(spec(nano, tmp_path / "foreign.onnx", tmp_path / "o"))
        assert record.manifest.fallback.startswith(
            "Jetson Nano (compute capability 5.3) has no INT8 arithmetic: FP16 of the same model"
        )


def test_the_builder_refuses(orin, tmp_path):
    with pytest.raises(
        EngineError,
        match=r"trtexec on orin cannot build the engine for Jetson Orin Nano: .*While parsing "
        r"node number 0",
    ):
        deploy(spec(orin, pooling(tmp_path / "m.onnx", "refuse-me"), tmp_path / "o"))
    assert list((orin.home / ".trtq/engines").glob("*.engine")) == []


def test_no_trtexec(orin, tmp_path):
    (orin.root / "usr/src/tensorrt/bin/trtexec").unlink()
    found = run_cli("device", "probe", "orin")
    assert (
        "missing: neither trtexec nor TensorRT's Python module: nothing can be built here; on "
        "the board: sudo apt-get install" in found.stdout
    )
    with pytest.raises(
        BoardError,
        match=r"Cannot build on orin: it has neither trtexec nor TensorRT's Python "
        r"module.*apt-get install",
    ):
        deploy(spec(orin, pooling(tmp_path / "m.onnx"), tmp_path / "o"))
    assert not list(
        (orin.home / ".trtq/files").glob("*.onnx")
    )  # it was known before anything was sent


def test_a_machine_that_is_no_jetson(orin, tmp_path):
    (orin.root / "proc/device-tree/compatible").write_text("acme,board")
    (orin.root / "proc/device-tree/model").write_text("Acme One\0")
    with pytest.raises(
        BoardError,
        match=r"Acme One cannot be deployed to: it is no Jetson that trtq knows \(acme,board\)",
    ):
        deploy(spec(orin, pooling(tmp_path / "m.onnx"), tmp_path / "o"))


def test_a_jetpack_that_is_too_old(place, tmp_path):
    with served(place, "nano") as nano:
        introduce(nano, "nano")
        trtexec = nano.root / "usr/src/tensorrt/bin/trtexec"
        trtexec.write_text(
            '#!/bin/sh\necho "&&&& RUNNING TensorRT.trtexec [TensorRT v7103] # trtexec"\n'
        )
        with pytest.raises(
            BoardError,
            match=r"it has TensorRT 7.1 \(JetPack 4.6.1\), trtq knows it from 8.0 on.*Flash "
            r"JetPack 4.6",
        ):
            deploy(spec(nano, pooling(tmp_path / "m.onnx"), tmp_path / "o"))


def test_a_clock_of_1970(orin, tmp_path):
    (orin.folder / "python").mkdir(exist_ok=True)
    (orin.folder / "python/sitecustomize.py").write_text("import time\ntime.time = lambda: 400.0\n")
    found = run_cli("device", "probe", "orin")
    assert "missing: the clock stands in 1970: only intervals of it are used" in found.stdout
    assert deploy(spec(orin, pooling(tmp_path / "m.onnx"), tmp_path / "o")).valid


def test_disk_full_there(orin, tmp_path):
    small = orin.folder / "small"
    small.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k,mode=777", "tmpfs", str(small)],
        capture_output=True,
        check=False,
    ).returncode:
        pytest.skip("cannot mount a small tmpfs here")
    try:
        device = find_device("orin")
        remember_device(msgspec.structs.replace(device, workdir=str(small / "w")))
        model = pooling(tmp_path / "m.onnx", weights=2_000_000)
        with pytest.raises(
            BoardError,
            match=r"orin refuses to put: .*needs \d+ MB, 0 are free. Free some space.*trtq device "
            r"clean orin",
        ):
            deploy(spec(orin, model, tmp_path / "o"))
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_disk_full_there_in_the_middle_of_a_build(orin, tmp_path):
    """There was room for the model, and none for the engine.

    With more room the same command continues.
    """
    small = orin.folder / "small"
    small.mkdir()
    line = ["mount", "-t", "tmpfs", "-o", "size=80m,mode=777", "tmpfs", str(small)]
    if subprocess.run(line, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a small tmpfs here")
    try:
        remember_device(msgspec.structs.replace(find_device("orin"), workdir=str(small / "w")))
        asked = spec(
            orin, pooling(tmp_path / "m.onnx", "megabytes:100"), tmp_path / "o", power_mode="25W"
        )
        said = (
            r"Saving engine to file failed.*ended with status 1, and the disk is full. Free "
            r"some space.*trtq device clean orin"
        )
        with pytest.raises(EngineError, match=said):
            deploy(asked)
        assert list((small / "w/engines").iterdir()) == []  # half an engine is none
        assert (orin.root / "var/lib/nvpmodel/status").read_text().startswith("pmode:0000")
        subprocess.run([*line[:3], "-o", "remount,size=200m", "tmpfs", str(small)], check=True)
        record = deploy(asked)
        assert record.built and record.valid
        assert sha256_file(Path(record.engine)) == record.manifest.engine_sha256
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


@pytest.mark.slow
def test_disk_full_here(orin, small_disk, tmp_path):
    from trtq.errors import ArtifactError

    with pytest.raises(ArtifactError, match="Free some space on the disk that holds"):
        deploy(spec(orin, pooling(tmp_path / "m.onnx"), small_disk / "o", min_samples=20000))


def test_two_at_once_share_one_build(orin, tmp_path):
    model = pooling(tmp_path / "m.onnx", "seconds:1.5")
    line = [
        sys.executable,
        "-m",
        "trtq",
        "deploy",
        "orin",
        str(model),
        "--duration",
        "0.3",
        "--min-samples",
        "50",
        "--json",
        "--out",
    ]
    both = [
        subprocess.Popen(
            [*line, str(tmp_path / str(i))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    done = [p.communicate(timeout=120) for p in both]
    assert [p.returncode for p in both] == [0, 0], done
    records = [json.loads(d[0]) for d in done]
    assert records[0]["engine"] == records[1]["engine"]
    assert records[0]["manifest"]["engine_sha256"] == records[1]["manifest"]["engine_sha256"]
    agent = Agent(find_device("orin"), Silent())
    assert sum(j["title"].startswith("the build") for j in agent.ask("list")["jobs"]) == 1
    agent.close()


def test_one_job_at_a_time_on_a_board(orin):
    def reached(key: str, state: str) -> dict:
        until = time.monotonic() + 30.0
        while (now := agent.ask("status", key=key))["state"] != state or not now["step"]:
            assert time.monotonic() < until, now
            time.sleep(0.1)
        return now

    agent, go = Agent(find_device("orin"), Silent()), orin.home / "go"  # the job is another user
    agent.ask("list")
    slow = {
        "title": "a",
        "owner": "her@desk",
        "steps": [{"name": "s", "argv": ["sh", "-c", f"while [ ! -e {go} ]; do sleep 0.1; done"]}],
    }
    agent.ask("start", key="aa", job=slow)
    try:
        reached("aa", "running")
        agent.ask(
            "start",
            key="bb",
            job={**slow, "title": "b", "steps": [{"name": "s", "argv": ["true"]}]},
        )
        assert "another job here (of her@desk)" in reached("bb", "waiting")["step"]
    finally:
        go.touch()
    assert agent.follow("bb", lambda _: None)["result"]["ok"]
    agent.close()


# The link and the power go.


def _agent(port: int, board: StandInBoard) -> Agent:
    introduce(board, "orin", port=port)
    return Agent(find_device("orin"), Heard(), patience_s=30.0)


@pytest.mark.parametrize(
    "seed", [pytest.param(i, marks=pytest.mark.slow) if i >= 2 else i for i in range(20)]
)
def test_the_link_is_cut_at_some_moment(tmp_path, seed, one_orin):
    """Cut the link once during the upload, once during the build and once during the fetch.

    Nothing is lost, and what arrives is right.
    """
    draw, board, cuts = random.Random(seed), one_orin, []
    with ShapedLink(board.port) as link:
        agent = _agent(link.port, board)
        payload = tmp_path / "payload"
        payload.write_bytes(random.Random(seed).randbytes(2_000_000))
        digest = sha256_file(payload)
        probe(agent)

        def cut_soon() -> None:
            cuts.append(threading.Timer(draw.uniform(0.0, 0.9), link.cut))
            cuts[-1].start()

        link.rate = 3e6
        cut_soon()
        path = agent.upload(payload, f"files/{seed}.bin", digest)
        cuts[-1].join()
        step = {
            "name": "build",
            "argv": [
                "sh",
                "-c",
                f"for i in 1 2 3 4 5 6; do echo line $i; sleep 0.1; done; cp {path} {path}.new",
            ],
            "makes": [[f"{path}.new", f"{path}.out"]],
        }
        cut_soon()
        result, lines = do(agent, f"{seed:032x}", {"title": "t", "steps": [step]})
        cuts[-1].join()
        cut_soon()
        back = agent.download(
            f"files/{seed}.bin.out",
            tmp_path / "back",
            digest=result["steps"][0]["files"][f"{path}.out"]["sha256"],
        )
        cuts[-1].join()
        assert sha256_file(back) == digest
        assert [ln for ln in lines if ln.startswith("line")] == [f"line {i}" for i in range(1, 7)]
        assert result["ok"]
        agent.close()


@pytest.fixture(scope="module")
def one_orin(place: Path) -> Iterator[StandInBoard]:
    """One board for many tests that leave it as it was."""

    board = StandInBoard(Path(tempfile.mkdtemp(dir=place, prefix="orin-")), "orin")
    with board.serving():
        yield board
    shutil.rmtree(board.folder, ignore_errors=True)


def test_an_upload_goes_on_where_it_was_cut(orin, tmp_path):
    with ShapedLink(orin.port) as link:
        agent = _agent(link.port, orin)
        payload = tmp_path / "payload"
        payload.write_bytes(os.urandom(4_000_000))
        probe(agent)
        link.rate = 4e6
        cutter = threading.Timer(0.7, link.cut)
        cutter.start()
        before = link.sent
        agent.upload(payload, "files/p.bin", sha256_file(payload))
        assert any("goes on where it stopped" in n for n in agent.told.notes)
        assert link.sent - before < 1.35 * 4_000_000  # what had arrived was not sent again
        assert sha256_file(orin.home / ".trtq/files/p.bin") == sha256_file(payload)
        agent.close()


def _while_building(board: StandInBoard, tmp_path: Path) -> tuple[threading.Thread, list, Heard]:
    """A deployment in another mode with pinned clocks, its builder at work."""
    asked = spec(
        board,
        pooling(tmp_path / "m.onnx", "seconds:2"),
        tmp_path / "o",
        power_mode="25W",
        lock_clocks=True,
    )
    done, heard = [], Heard()
    worker = threading.Thread(target=lambda: done.append(deploy(asked, heard)))
    worker.start()
    _until(lambda: board.processes("saveEngine"))
    return worker, done, heard


def test_a_reboot_in_the_middle_of_a_build(orin, tmp_path):
    worker, done, heard = _while_building(orin, tmp_path)
    orin.reboot()
    worker.join(90)
    assert done and done[0].built
    assert any(
        "was lost: the board was started again meanwhile; starting it again" in n
        for n in heard.notes
    )
    assert (
        (orin.root / "var/lib/nvpmodel/status").read_text().startswith("pmode:0000")
    )  # of before the first try
    assert (orin.root / f"sys/class/devfreq/{orin.kind.gpu}/min_freq").read_text() == "114750000"


def test_an_agent_that_is_killed_takes_its_build_along_and_sets_all_back(orin, tmp_path):
    worker, done, heard = _while_building(orin, tmp_path)
    status, clock = (
        orin.root / "var/lib/nvpmodel/status",
        orin.root / f"sys/class/devfreq/{orin.kind.gpu}/min_freq",
    )
    assert status.read_text().startswith("pmode:0001")
    assert clock.read_text() == "921600000"
    victim = next(
        p
        for p in orin.processes("agent.py")
        if b"work" in Path(f"/proc/{p}/cmdline").read_bytes() and _parent_of(p, orin)
    )
    os.kill(victim, signal.SIGKILL)
    _until(lambda: not [p for p in orin.processes("saveEngine") if _parent(p) in (1, victim)])
    worker.join(90)
    assert done and done[0].built
    assert any("its process was killed" in n for n in heard.notes)
    assert status.read_text().startswith("pmode:0000")
    assert clock.read_text() == "114750000"


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _parent_of(pid: int, board: StandInBoard) -> bool:
    """Whether it is the worker: the parent of the build."""
    return any(_parent(p) == pid for p in board.processes("saveEngine"))


def _until(found, limit_s: float = 30.0) -> None:
    until = time.monotonic() + limit_s
    while not found():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.slow
def test_a_slow_link(orin, tmp_path):
    with ShapedLink(orin.port, rate=1e6 / 8) as link:  # 1 Mbit/s
        introduce(orin, "orin", port=link.port)
        record = deploy(spec(orin, pooling(tmp_path / "m.onnx", weights=200_000), tmp_path / "o"))
        assert record.valid


def test_logs_clean_and_what_is_not_ours(orin, tmp_path):
    model = pooling(tmp_path / "m.onnx")
    deploy(spec(orin, model, tmp_path / "o", keep=True, fetch_engine=True))
    assert (
        sha256_file(tmp_path / "o/m.orin.engine")
        == read(tmp_path / "o/m.orin.engine.json")["engine_sha256"]
    )
    listed = run_cli("device", "logs", "orin").stdout
    key = next(ln.split()[1].rstrip(":") for ln in listed.splitlines() if "the build of" in ln)
    assert [" s ago" in ln for ln in listed.splitlines()] == [
        False,
        True,
        True,
    ]  # the engine; its build, then its measurement
    assert "the build of" in listed.splitlines()[1]
    assert "--saveEngine=" in run_cli("device", "logs", "orin", key[:6]).stdout
    assert "0 jobs on orin begin with zz" in run_cli("device", "logs", "orin", "zz").stderr
    stranger = orin.home / "mine.txt"
    stranger.write_text("x")
    assert "removed" in run_cli("device", "clean", "orin").stdout
    assert [p.name for p in (orin.home / ".trtq/files").iterdir()] == []
    assert len(list((orin.home / ".trtq/engines").glob("*.engine"))) == 1
    run_cli("device", "clean", "orin", "--all")
    assert list((orin.home / ".trtq/engines").iterdir()) == []
    assert stranger.read_text() == "x"
    assert run_cli("device", "list").stdout.startswith(f"orin: {orin.user}@127.0.0.1:{orin.port}")
    assert "is forgotten" in run_cli("device", "remove", "orin").stdout


def test_a_file_outside_the_folder_is_refused(orin):
    agent = Agent(find_device("orin"), Silent())
    with pytest.raises(BoardError, match=r"\.\./x lies outside of"):
        agent.ask("have", name="../x", size=1, sha256="0")
    with pytest.raises(BoardError, match="Cannot fetch no of orin|there is no"):
        agent.download("files/no", Path("/tmp/never"))
    agent.close()


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


def _told(board: StandInBoard, record: DeployRecord) -> dict:
    """What the board's builder was told, as its engine has it."""
    return json.loads(Path(record.engine).read_bytes().partition(b": ")[2])


@pytest.mark.parametrize("kind", ["nano", "xavier", "orin"])
def test_a_build_through_python_where_there_is_no_trtexec(place, python36, images, kind, tmp_path):
    """Each release's own words; what only trtexec can do is said, the images run."""
    python = python36 if kind == "nano" and python36 is not None else "/usr/bin/python3"
    with served(place, kind, python=python) as board:
        introduce(board, kind)
        if not board.add_tensorrt():
            pytest.skip("no C compiler for the stand-in of CUDA's runtime library")
        (board.root / "usr/src/tensorrt/bin/trtexec").unlink()
        path = _with_preprocessing(pooling(tmp_path / "m.onnx"))
        heard = Heard()
        asked = spec(
            board,
            path,
            tmp_path / "o",
            workspace=64,
            batch=(1, 2, 4),
            data=str(images) if kind != "nano" else None,
            images=7,
        )
        record = deploy(asked, heard)
        assert record.manifest.builder["backend"] == "tensorrt"
        assert sha256_file(Path(record.engine)) == record.manifest.engine_sha256
        told = _told(board, record)
        typed = kind == "orin"
        assert told["workspace"] == 64
        assert told["creation"] == (
            ["EXPLICIT_BATCH", "STRONGLY_TYPED"] if typed else ["EXPLICIT_BATCH"]
        )
        assert told["flags"] == ([] if typed else ["FP16"])
        assert told["profiles"] == [{"input": [[1, 3, 8, 8], [2, 3, 8, 8], [4, 3, 8, 8]]}]
        assert (record.rows, record.measured) == ([], False)
        assert (
            "latency n/a: there is no trtexec on the board (sudo apt-get install libnvinfer-bin)"
            in record.summary
        )
        if kind != "nano":
            assert record.accuracy.agreement.comparisons[-1].passed
        again = deploy(asked)
        assert not again.built and again.sent + again.received < 20_000
        with pytest.raises(
            EngineError, match="While parsing node number 0: no importer for this one"
        ):
            deploy(spec(board, pooling(tmp_path / "n.onnx", "refuse-me"), tmp_path / "p"))
        with pytest.raises(EngineError, match=r"Error Code 1: Cuda Runtime"):
            deploy(spec(board, pooling(tmp_path / "n.onnx", "no-gpu"), tmp_path / "p"))
        record = deploy(
            spec(board, pooling(tmp_path / "n.onnx", "memory:300"), tmp_path / "p", workspace=1000)
        )
        assert [a.workspace for a in record.manifest.attempts] == [1000, 512]


def _with_preprocessing(path: Path) -> Path:
    from trtq.data.preprocess import Preprocess
    from trtq.export.onnx_file import set_metadata_

    model = onnx.load(path)
    how = Preprocess(
        input_size=(3, 8, 8),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        resize=8,
        crop=8,
        interpolation="bilinear",
    )
    set_metadata_(model, {"preprocess": how})
    onnx.save(model, path)
    return path


def test_nodes_that_stay_in_float_through_python(place, tmp_path):
    """A weakly typed release is told by name which layers FP16 would harm."""
    with served(place, "xavier") as board:
        introduce(board, "xavier")
        if not board.add_tensorrt():
            pytest.skip("no C compiler for the stand-in of CUDA's runtime library")
        (board.root / "usr/src/tensorrt/bin/trtexec").unlink()
        from trtq.export.fp16_ranges import FLOAT_NODES
        from trtq.export.onnx_file import set_metadata_

        model = onnx.load(pooling(tmp_path / "m.onnx"))
        model.graph.node[0].name, model.graph.node[1].name = "node_pool", "node_flat"
        set_metadata_(model, {FLOAT_NODES: {"node_pool": "its sum leaves FP16's range"}})
        onnx.save(model, tmp_path / "m.onnx")
        record = deploy(
            spec(board, tmp_path / "m.onnx", tmp_path / "o", bench=False, optimization_level=None)
        )
        told = _told(board, record)
        assert (told["float"], told["flags"]) == (
            ["node_pool"],
            ["FP16", "OBEY_PRECISION_CONSTRAINTS"],
        )
        assert record.manifest.float_nodes == {"node_pool": "its sum leaves FP16's range"}
        # And a DLA: the core of the build is the core of the runtime, too.
        record = deploy(
            spec(board, tmp_path / "m.onnx", tmp_path / "p", bench=False, dla=1, gpu_fallback=True)
        )
        told = _told(board, record)
        assert (told["dla"], "GPU_FALLBACK" in told["flags"]) == (1, True)
        assert read(tmp_path / "p/deploy.json")["manifest"]["spec"]["dla"] == 1


@pytest.mark.parametrize("kind", ["orin", pytest.param("xavier", marks=pytest.mark.slow)])
def test_int8_on_a_dla(place, cnn_out, kind, tmp_path):
    """No release takes Q/DQ pairs on a DLA.

    The same scales are given as a calibration cache of the exact patch release, and the network is
    weakly typed.
    """
    from trtq.export.calibration_cache import read_cache
    from trtq.platform.releases import shown

    with served(place, kind) as board:
        name = {"orin": "NVIDIA Jetson AGX Orin Developer Kit", "xavier": "Jetson-AGX"}[kind]
        (board.root / "proc/device-tree/model").write_text(f"{name}\0")
        introduce(board, kind)
        model = Path(shutil.copytree(cnn_out, tmp_path / "m")) / "model.qdq.onnx"
        quick = ["--duration", "0.3", "--min-samples", "50", "--out", str(tmp_path / "o")]
        asked = ["deploy", kind, str(model), "--dla", "0", *quick, "--json"]
        done = run_cli(*asked)
        assert done.returncode in (0, 3), done.stderr
        record = json.loads(done.stdout)
        number = {"orin": "100300", "xavier": "8502"}[kind]
        assert (
            f"with the scales of activations in a calibration cache for TRT-{number}"
            in done.stderr + " ".join(record["notes"])
        )
        told = Path(record["engine"]).read_bytes().decode().split(": ")[1].split()
        assert {"useDLACore", "allowGPUFallback", "calib", "int8", "fp16"} <= set(
            told
        ) and "stronglyTyped" not in told
        assert record["rows"][0]["gpu"]["median"]["value"] == pytest.approx(2.06, abs=0.02)
        cache = read_cache((tmp_path / f"o/dla/trt-{number}.cache").read_text(), "c")
        assert shown(cache.version) == {"orin": "10.3", "xavier": "8.5"}[kind]
        exported = onnx.load(next((tmp_path / "m").glob("for-*-fp32/*[0-9].onnx")))
        held = {i.name: numpy_helper.to_array(i) for i in exported.graph.initializer}
        scale = next(
            float(held[n.input[1]])
            for n in exported.graph.node
            if n.op_type == "QuantizeLinear" and n.input[0] == "input"
        )
        assert cache.scales["input"] == pytest.approx(scale, rel=1e-6)
        assert "INT8 by a calibration cache + fp16" in run_cli(*asked[:-1]).stdout
        second = json.loads(run_cli(*asked).stdout)
        assert (second["built"], second["sent"] + second["received"] < 20_000) == (False, True)
        assert "FP32: it computes in FP16 and INT8 alone" not in done.stderr
        (board.root / "usr/src/tensorrt/bin/trtexec").unlink()
        done = run_cli(*asked, "--again")
        assert (
            "Cannot build INT8 for the DLA of" in done.stderr
            and "there is no trtexec to read the calibration cache" in done.stderr
        )


def test_a_trtexec_that_does_not_start(orin, cnn_out, tmp_path):
    """Such a trtexec counts as none.

    The engine is built through Python, latency is n/a, and earlier figures of the same engine are
    kept; INT8 on a DLA is refused.
    """
    if not orin.add_tensorrt():
        pytest.skip("no C compiler for the stand-in of CUDA's runtime library")
    model = pooling(tmp_path / "m.onnx")
    first = deploy(spec(orin, model, tmp_path / "o"))
    trtexec = orin.root / "usr/src/tensorrt/bin/trtexec"
    trtexec.write_text("#!/bin/sh\necho 'error while loading shared libraries' >&2\nexit 127\n")
    again = deploy(spec(orin, model, tmp_path / "o"))
    assert (again.built, again.measured, again.rows) == (False, False, first.rows)
    assert "latency n/a: there is no trtexec" in again.summary
    other = deploy(spec(orin, pooling(tmp_path / "n.onnx", "another"), tmp_path / "p"))
    assert (other.manifest.builder["backend"], other.rows) == ("tensorrt", [])
    (orin.root / "proc/device-tree/model").write_text("NVIDIA Jetson AGX Orin Developer Kit\0")
    qdq = Path(shutil.copytree(cnn_out, tmp_path / "q")) / "model.qdq.onnx"
    with pytest.raises(
        BoardError,
        match=r"Cannot build INT8 for the DLA of .*there is no trtexec to read the calibration "
        r"cache",
    ):
        deploy(spec(orin, qdq, tmp_path / "d", dla=0))


def test_a_board_without_a_dla(orin, tmp_path):
    with pytest.raises(
        EngineError,
        match="Cannot build with --dla for Jetson Orin Nano: it has no DLA. Leave --dla out",
    ):
        deploy(spec(orin, pooling(tmp_path / "m.onnx"), tmp_path / "o", dla=0))


def test_what_the_agent_knows_of_releases():
    assert agent_code.jetpack_of("36.4.3") == "6.2"
    assert agent_code.jetpack_of("36.9.9") == "6.x"
    assert agent_code.jetpack_of("99.0.0") is None
    assert agent_code.jetpack_of(None) is None
