"""The harness: every figure on the CPU with real parts, GPUs and boards against stand-ins.

The tests also cover what happens when something fails.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import ClassVar

import msgspec
import numpy as np
import pytest

from tests.conftest import read, run_cli
from tests.support.bench import QUICK
from trtq import BenchSpec, bench
from trtq.artifact import sha256_file
from trtq.bench.machine_card import incomplete
from trtq.bench.sampling import warm_up
from trtq.bench.throughput import measure_throughput
from trtq.bench.workload import open_workload
from trtq.errors import BenchError, ExportError, UsageError

# ---- bench -------------------------------------------------------------------------------------


def test_bench_on_a_cpu_is_labelled_cpu_and_has_every_figure(record):
    made, out = record
    assert [(Path(r.file).name, r.batch) for r in made.rows] == [
        ("model.fp32.onnx", 1),
        ("model.fp32.onnx", 4),
        ("model.qdq.onnx", 1),
        ("model.qdq.onnx", 4),
    ]
    for row in made.rows:
        assert row.device == "CPU (ONNX Runtime)"
        if (
            row.e2e.median.low is not None
        ):  # a busy machine may leave too few independent samples, and the row says so
            assert row.e2e.median.low <= row.e2e.median.value <= row.e2e.median.high
        assert row.gpu is None
        assert row.unavailable["gpu"] == "the request runs on the CPU: there is no GPU time in it"
        assert row.input_shape == [row.batch, 3, 32, 32]
        samples = np.load(out / row.e2e.file, allow_pickle=False)
        assert len(samples) == row.e2e.samples
        assert float(np.median(samples)) / 1e6 == pytest.approx(row.e2e.median.value)
        assert row.memory.process > 0
        assert row.memory.process_peak >= row.memory.process
        assert row.memory.weights is None
        assert row.memory.sources["device"] == "n/a: the device is a CPU"
        assert {r.module for r in row.layers} >= {"conv1", "stem", "depthwise", "pointwise", "head"}
        assert sum(r.share for r in row.layers) == pytest.approx(1.0)
    assert read(out / "bench.json")["command"].startswith("trtq bench ")
    assert not incomplete(made.card)


def test_energy_without_a_meter_is_named_and_not_zero(record):
    made, _ = record
    if made.rows[0].energy is None:  # a machine without RAPL
        assert (
            "no RAPL counters" in made.rows[0].unavailable["energy"]
            or "only root" in made.rows[0].unavailable["energy"]
        )
    else:
        assert made.rows[0].energy.gross_j > 0


@pytest.mark.parametrize(
    ("scenario", "least"), [("single", 64), ("multi", 662), ("offline", 24_576)]
)
def test_mlperf_like_counts(scenario, least):
    """Also when the time is long over."""

    class Quick:
        shape = (64, 3, 8, 8)
        shapes: ClassVar = {"x": (64, 3, 8, 8)}

        def call(self) -> None:
            time.sleep(1e-5)

        def again(self):
            return self

    found = measure_throughput(Quick(), scenario=scenario, seconds=0.001, counts=True)
    assert found.queries * (64 if scenario == "offline" else 1) >= least
    assert found.seconds > 0.0005


@pytest.mark.parametrize("scenario", ["closed", "single", "multi", "offline", "server"])
def test_throughput(cnn_out, scenario):
    given = {
        **QUICK,
        "scenario": scenario,
        "latency_bound": 1000.0 if scenario == "server" else None,
    }
    row = bench(
        BenchSpec(file=(f"{cnn_out}/model.qdq.onnx",), mode="throughput", batch=(2,), **given)
    ).rows[0]
    found = row.throughput
    assert found.images_per_s > 0
    assert found.scenario == scenario
    assert ("no MLPerf result" in found.note) is (scenario != "closed")
    assert found.warmup_calls >= 50
    if scenario == "server":
        assert found.rate > 0
        assert found.met is (found.latency.high is not None and found.latency.high <= 1000.0)


def test_a_server_that_cannot_meet_its_bound_says_so(cnn_out):
    spec = BenchSpec(
        file=(f"{cnn_out}/model.qdq.onnx",),
        mode="throughput",
        scenario="server",
        latency_bound=1e-6,
        **QUICK,
    )
    row = bench(spec).rows[0]
    assert not row.valid
    assert any(
        "no rate that was tried surely keeps the 99th percentile under 1e-06 ms" in r
        for r in row.reasons
    )
    with pytest.raises(BenchError, match="needs a bound"):
        bench(msgspec.structs.replace(spec, latency_bound=None))


@pytest.mark.parametrize("mode", ["paced", "cold"])
def test_other_modes(cnn_out, mode, monkeypatch):
    # Some hosts report a last-level cache of 500 MB, which takes half a second to empty.
    monkeypatch.setattr("trtq.bench.latency.last_level_cache", lambda: 4 << 20)
    row = bench(
        BenchSpec(file=(f"{cnn_out}/model.qdq.onnx",), mode=mode, rate=100.0, **QUICK)
    ).rows[0]
    assert row.mode == mode
    assert row.e2e.samples >= 50
    assert any(
        "100 requests a second" in n or "emptied before each request: last-level cache" in n
        for n in row.notes
    )


def test_a_rate_that_is_too_high_is_not_valid(cnn_out):
    row = bench(
        BenchSpec(file=(f"{cnn_out}/model.qdq.onnx",), mode="paced", rate=1e5, **QUICK)
    ).rows[0]
    assert any("--rate is too high" in r for r in row.reasons)


@pytest.mark.parametrize("warmed", [False, True])
def test_a_request_that_fails_leaves_a_partial_record(cnn_out, monkeypatch, warmed):
    """The 21st of the warm-up, or the 2001st after it."""
    left = [10_000_000 if warmed else 20]

    def then_measured(call):
        found = warm_up(call)
        left[0] = 2000
        return found

    class Failing:
        def __init__(self, inner) -> None:
            self.__dict__.update(inner.__dict__)
            self.inner, self.apart, self.why_whole = inner, False, "a test"

        def call(self) -> None:
            if left[0] == 0:
                raise RuntimeError("CUDA error 700")
            left[0] -= 1
            self.inner.call()

    monkeypatch.setattr("trtq.bench.latency.warm_up", then_measured)
    monkeypatch.setattr(
        "trtq.bench.workload.open_workload", lambda *a, **k: Failing(open_workload(*a, **k))
    )
    row = bench(
        BenchSpec(
            file=(f"{cnn_out}/model.qdq.onnx",), duration=30.0, min_samples=100, verdict=False
        )
    ).rows[0]
    assert not row.valid
    if not warmed:
        assert (
            "a request failed in the warm-up, after 20 good requests: RuntimeError: CUDA error 700"
            in row.reasons
        )
        assert row.e2e is None
        return
    assert any(
        "a request failed after" in r and "CUDA error 700" in r and "is kept" in r
        for r in row.reasons
    )
    assert row.e2e.samples > 0


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["latency", "throughput"])
def test_ctrl_c_keeps_the_record_and_goes_no_further(cnn_out, tmp_path, mode):
    files = [f"{cnn_out}/model.qdq.onnx", f"{cnn_out}/model.fp32.onnx"]
    line = [
        sys.executable,
        "-m",
        "trtq",
        "bench",
        *files,
        "--mode",
        mode,
        "--duration",
        "60",
        "--load",
        "--out",
        str(tmp_path / "b"),
    ]
    # A shell's background jobs ignore SIGINT, and so would what this test starts.
    heeds = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        line,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heeds,  # noqa: PLW1509
    ) as process:
        assert "batch 1" in process.stderr.readline()
        time.sleep(4.0)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 3, err
    assert "NOT VALID: a request failed after" in out
    rows = read(tmp_path / "b/bench.json")["rows"]
    assert len(rows) == 1
    assert any("KeyboardInterrupt" in reason for reason in rows[0]["reasons"])


def test_bench_refuses_what_it_cannot_run(cnn_out, tmp_path):
    file = f"{cnn_out}/model.qdq.onnx"
    with pytest.raises(UsageError, match="Unknown device 'gpu'. Use cpu, cuda:N or rtx:N"):
        bench(BenchSpec(file=(file,), device="gpu"))
    with pytest.raises(
        UsageError, match="this verb measures here. On the board: trtq deploy nano FILE.onnx"
    ):
        bench(BenchSpec(file=(file,), device="ssh:nano"))
    with pytest.raises(BenchError, match="there is no such file"):
        bench(BenchSpec(file=(str(tmp_path / "no.onnx"),)))
    with pytest.raises(UsageError, match="needs a file"):
        bench(BenchSpec(file=()))
    with pytest.raises(BenchError, match="Cannot read the baseline no.onnx: there is no such file"):
        bench(BenchSpec(file=(file,), baseline="no.onnx"))
    with pytest.raises(ExportError, match="cannot run on CUDA"):
        bench(BenchSpec(file=(file,), device="cuda:0"))


def test_the_command_line(cnn_out, tmp_path):
    args = [
        "--duration",
        "0.3",
        "--min-samples",
        "50",
        "--max-duration",
        "2",
        "--percentiles",
        "50,99.999",
        "--no-verdict",
    ]
    done = run_cli("bench", f"{cnn_out}/model.qdq.onnx", *args, "--out", str(tmp_path / "b"))
    assert done.returncode in (0, 3), done.stderr
    assert "CPU (ONNX Runtime), latency, batch 1, e2e " in done.stdout
    assert "p99.999 n/a (effective sample size " in done.stdout
    assert "needs 368887)" in done.stdout
    assert "n/a: gpu: the request runs on the CPU" in done.stdout
    seen = run_cli("history", "--file", "model.qdq*", "--plot", str(tmp_path / "h.png"))
    assert "model.qdq.onnx" in seen.stdout
    assert (tmp_path / "h.png").stat().st_size > 1000
    assert run_cli("history", "--mode", "paced").stdout.startswith("nothing yet")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["latency", "throughput", "paced"])
def test_repeats_show_the_spread(cnn_out, mode):
    row = bench(BenchSpec(file=(f"{cnn_out}/model.qdq.onnx",), mode=mode, repeat=3, **QUICK)).rows[
        0
    ]
    assert len(row.repeats) == 3
    assert row.repeats[0] == pytest.approx(
        row.median_ms if mode != "throughput" else row.throughput.images_per_s
    )
    assert any(n.startswith("3 repeats: ") for n in row.notes)


def test_a_file_that_fails_after_its_latency_keeps_it(cnn_out, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("CUDA error 700")

    monkeypatch.setattr("trtq.bench.row.measure_memory", fails)
    row = bench(BenchSpec(file=(f"{cnn_out}/model.qdq.onnx",), memory=True, **QUICK)).rows[0]
    assert row.e2e.samples > 0
    assert "memory: RuntimeError: CUDA error 700" in row.reasons
    row = bench(
        BenchSpec(file=(f"{cnn_out}/model.qdq.onnx",), mode="cold", energy=True, **QUICK)
    ).rows[0]
    assert row.unavailable["energy"].startswith("Energy is not measured in this mode")


def test_a_row_reads_the_names_of_its_files_once(cnn_out, monkeypatch):
    given = []
    for name in ("load", "memory"):
        monkeypatch.setattr(
            f"trtq.bench.row.measure_{name}", lambda *a, **_: given.append(a[2]) or None
        )
    path = cnn_out / "model.qdq.onnx"
    bench(BenchSpec(file=(str(path),), load=True, memory=True, **QUICK))
    assert given == [[path]] * 3  # of loads with and without the page cache, and of memory


def test_files_of_one_name_keep_their_own_samples(cnn_out, tmp_path):
    for name, source in (("a", "fp32"), ("b", "qdq")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "m.onnx").write_bytes((cnn_out / f"model.{source}.onnx").read_bytes())
    made = bench(
        BenchSpec(
            file=(str(tmp_path / "a/m.onnx"), str(tmp_path / "b/m.onnx")),
            out=str(tmp_path / "out"),
            **QUICK,
        )
    )
    first, second = (r.e2e for r in made.rows)
    assert first.file != second.file
    for timing in (first, second):
        assert sha256_file(tmp_path / "out" / timing.file) == timing.file_sha256


def test_a_batch_that_does_not_fit_is_refused_before_anything_is_measured(cnn_out, tmp_path):
    import onnx

    model = onnx.load(cnn_out / "model.fp32.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, tmp_path / "fixed.onnx")
    start = time.perf_counter()
    with pytest.raises(UsageError, match="its batch is fixed at 1. Use --batch 1"):
        bench(BenchSpec(file=(str(tmp_path / "fixed.onnx"),), batch=(1, 4), **QUICK))
    assert time.perf_counter() - start < 1.0


def test_a_file_without_a_throughput_leaves_the_rows_before_it(cnn_out, monkeypatch):
    calls = iter([measure_throughput, fails_in_warm_up])

    def measure(*arguments, **options):
        return next(calls)(*arguments, **options)

    monkeypatch.setattr("trtq.bench.row.measure_throughput", measure)
    files = (f"{cnn_out}/model.fp32.onnx", f"{cnn_out}/model.qdq.onnx")
    first, second = bench(BenchSpec(file=files, mode="throughput", **QUICK)).rows
    assert first.throughput.images_per_s > 0
    assert second.throughput is None
    assert second.unavailable["throughput"].startswith("A request failed in the warm-up: gone")
    assert not second.valid


def fails_in_warm_up(*_, **__):
    raise BenchError("A request failed in the warm-up", "gone")
