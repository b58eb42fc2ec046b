"""The harness: every figure on the CPU with real parts, GPUs and boards against stand-ins.

The tests also cover what happens when something fails.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests.conftest import read, run_cli
from trtq import BenchSpec, CompareSpec, GateSpec, bench, compare, gate
from trtq.artifact import sha256_file
from trtq.bench import harness
from trtq.bench import system_info as cards
from trtq.bench.clocks import locked_clocks
from trtq.bench.energy import EnergySettings, Recorder, Track, mean_power, measure_energy
from trtq.bench.history import plot, recall
from trtq.bench.interleaved import TurnSettings, judge, take_turns
from trtq.bench.latency import last_level_cache
from trtq.bench.layers import read_onnx_profile, what_ate
from trtq.bench.meters.jetson import JetsonRails
from trtq.bench.meters.nvml import Gpu, NvmlCounter, NvmlPower, load_nvml
from trtq.bench.meters.rapl import Rapl
from trtq.bench.record import LayerTime
from trtq.bench.sampling import StopRule, loop_overhead, sample, warm_up
from trtq.bench.startup import cached_share, drop_from_cache, measure_load
from trtq.bench.startup_worker import account_of, shared_memory_used, status
from trtq.bench.system_info import Watch, differences, incomplete, take_card
from trtq.bench.throughput import offered
from trtq.bench.trtexec_bench import command as trtexec_command
from trtq.bench.trtexec_bench import second_opinion
from trtq.bench.workload import EngineWorkload, LoadOptions, open_workload
from trtq.engine.runner import EngineRunner
from trtq.errors import ArtifactError, BenchError, ExportError, MeterError, UsageError
from trtq.progress import Silent
from trtq.testing.cuda import FakeCuda
from trtq.testing.nvml import load_fake_nvml, write_fake_nvml
from trtq.testing.tensorrt import write_fake_tensorrt
from trtq.testing.trtexec import write_fake_trtexec

pytestmark = pytest.mark.alone
QUICK = {"duration": 0.3, "min_samples": 50, "max_duration": 1.0, "verdict": False}


@pytest.fixture(autouse=True)
def own_history(tmp_path, monkeypatch):
    monkeypatch.setenv("TRTQ_HISTORY", str(tmp_path / "history.sqlite"))


@pytest.fixture(scope="module")
def record(cnn_out, tmp_path_factory):
    """Every figure that a CPU has, of the float and the quantized file."""
    os.environ["TRTQ_HISTORY"] = str(tmp_path_factory.mktemp("h") / "history.sqlite")
    out = tmp_path_factory.mktemp("bench")
    files = (f"{cnn_out}/model.fp32.onnx", f"{cnn_out}/model.qdq.onnx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trtq.bench.row.measure_load", partial(measure_load, processes=2))
        made = bench(
            BenchSpec(
                file=files,
                batch=(1, 4),
                load=True,
                memory=True,
                profile=True,
                energy=True,
                out=str(out),
                **QUICK,
            )
        )
    return made, out


# ---- sampling ----------------------------------------------------------------------------------


class Ticks:
    """A clock that moves when something is called."""

    def __init__(self, *durations: int) -> None:
        self.now, self.durations, self.calls = 0, durations, 0

    def __call__(self) -> int:
        return self.now

    def work(self) -> None:
        self.now += self.durations[min(self.calls, len(self.durations) - 1)]
        self.calls += 1


def test_times_are_those_of_the_calls():
    clock = Ticks(*range(1000, 3000))
    found = sample(
        clock.work,
        1e-6,
        StopRule(seconds=0.0, samples=100, limit_s=1e-3),
        block_s=5e-5,
        clock=clock,
    )
    assert found.ns[:100].tolist() == list(range(1000, 1100))
    assert found.blocks == list(range(0, len(found.ns), 50))
    assert found.stopped == "0.001 s had passed"


def test_warm_up_goes_on_until_two_windows_agree():
    clock = Ticks(
        *(max(1_000_000, int(1e7 * 0.97**i)) for i in range(10_000))
    )  # 76 calls until it no longer gets faster
    found = warm_up(clock.work, calls=50, seconds=0.0, clock=clock)
    assert found.stable
    assert found.call_s == 1e-3
    assert 90 < found.calls < 120
    growing = Ticks(*(int(1e6 * 1.01**i) for i in range(3000)))
    assert not warm_up(growing.work, limit_s=2.0, clock=growing).stable


def test_the_loop_costs_at_most_3_us_a_call():
    assert min(loop_overhead(20_000) for _ in range(5)) < 3.0


def test_a_million_samples_fit_into_100_mb():
    code = """
import resource
from trtq.bench.sampling import StopRule, sample
from trtq.bench.latency import summarize
import scipy.stats
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
sample(lambda: None, 1e-7, StopRule(seconds=0.01, samples=10_000, limit_s=1))
before = peak()
found = sample(lambda: None, 1e-7, StopRule(seconds=0.0, samples=1_000_000, limit_s=60, narrow=1.0))
summarize("e2e", found)
print(len(found.ns), peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, grown = done.stdout.split()
    assert int(count) >= 1_000_000
    assert float(grown) <= 100.0


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RuntimeError("gone"), "RuntimeError: gone"),
        (KeyboardInterrupt(), "KeyboardInterrupt: interrupted"),
    ],
)
def test_what_was_measured_before_a_failure_is_kept(error, text):
    calls = iter(range(10_000))

    def fails() -> None:
        if next(calls) == 1000:
            raise error

    found = sample(fails, 1e-5, StopRule(seconds=5.0))
    assert len(found.ns) == 1000
    assert found.failed.startswith(text)
    assert found.stopped == "a call failed"


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


def test_pain_34_the_parts_of_a_start_add_up(record):
    made, _ = record
    for load in made.rows[0].load:
        assert [p.name for p in load.phases] == [
            "process and Python",
            "imports",
            "read",
            "deserialize and context",
            "first answer",
        ]
        assert sum(p.median for p in load.phases) == pytest.approx(load.total.median, rel=0.2)
        assert load.processes == 2
        assert load.second.median < load.total.median


def test_the_parts_of_one_start_are_the_time_a_watch_shows(cnn_out):
    start = time.perf_counter()
    load = measure_load(cnn_out / "model.qdq.onnx", device="cpu", batch=1, processes=1)
    seen = 1e3 * (time.perf_counter() - start)
    assert load.total.median <= seen
    assert sum(p.median for p in load.phases) == pytest.approx(load.total.median, rel=1e-6)


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
    from trtq.bench.throughput import measure_throughput

    class Quick:
        shape = (64, 3, 8, 8)

        def call(self) -> None:
            time.sleep(1e-5)

        def again(self):
            return self

    found = measure_throughput(Quick(), scenario=scenario, seconds=0.001, counts=True)
    assert found.queries * (64 if scenario == "offline" else 1) >= least
    assert found.seconds > 0.0005


def test_comparisons_stand_in_the_history(cnn_out, tmp_path, monkeypatch):
    monkeypatch.setenv("TRTQ_HISTORY", str(tmp_path / "h.sqlite"))
    files = (f"{cnn_out}/model.fp32.onnx", f"{cnn_out}/model.qdq.onnx")
    record = compare(CompareSpec(file=files, max_loads=8, block=0.005, profile=False))
    [entry] = recall(mode="compare")
    assert (entry.file, entry.median_ms, entry.batch) == (
        record.verdicts[0].second,
        record.verdicts[0].second_ms,
        1,
    )


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


def test_arrivals_do_not_wait_for_answers():
    class Slow:
        def call(self) -> None:
            time.sleep(0.02)

    latency, span, failed = offered(
        [Slow()], np.arange(10) * 0.005
    )  # more than it can serve: the queue grows
    assert latency[-1] > 5 * latency[0] > 0.0
    assert span >= 0.2
    assert not failed


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


def test_last_level_cache_of_a_fake_tree(tmp_path):
    for i, size in enumerate(("32K", "1M", "36M")):
        folder = tmp_path / f"sys/devices/system/cpu/cpu0/cache/index{i}"
        folder.mkdir(parents=True)
        (folder / "size").write_text(f"{size}\n")
    assert last_level_cache(tmp_path) == 36 << 20
    assert last_level_cache(tmp_path / "none") == 64_000_000


@pytest.mark.parametrize("after", [20, 60_000])
def test_a_request_that_fails_leaves_a_partial_record(cnn_out, monkeypatch, after):
    calls = iter(range(10_000_000))

    class Failing:
        def __init__(self, inner) -> None:
            self.__dict__.update(inner.__dict__)
            self.inner, self.apart, self.why_whole = inner, False, "a test"

        def call(self) -> None:
            if next(calls) == after:
                raise RuntimeError("CUDA error 700")
            self.inner.call()

    monkeypatch.setattr(
        "trtq.bench.workload.open_workload", lambda *a, **k: Failing(open_workload(*a, **k))
    )
    row = bench(
        BenchSpec(
            file=(f"{cnn_out}/model.qdq.onnx",), duration=30.0, min_samples=100, verdict=False
        )
    ).rows[0]
    assert not row.valid
    if after < 50:
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
    with pytest.raises(UsageError, match="Unknown device 'gpu'. Use cpu or cuda:N"):
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
    assert "p99.999 n/a (worth " in done.stdout
    assert "needs 368887)" in done.stdout
    assert "n/a: gpu: the request runs on the CPU" in done.stdout
    seen = run_cli("history", "--file", "model.qdq*", "--plot", str(tmp_path / "h.png"))
    assert "model.qdq.onnx" in seen.stdout
    assert (tmp_path / "h.png").stat().st_size > 1000
    assert run_cli("history", "--mode", "paced").stdout.startswith("nothing yet")


def test_history_filters_and_survives_damage(record, cnn_out, tmp_path, monkeypatch):
    bench(BenchSpec(file=(f"{cnn_out}/model.qdq.onnx",), repeat=2, **QUICK))
    found = recall()
    assert [(Path(e.file).name, e.mode, e.batch) for e in found] == [
        ("model.qdq.onnx", "latency", 1)
    ]
    assert recall(file="model.fp32*") == []
    assert recall(since="2999-01-01") == []
    assert recall(device="CPU*") == found
    assert plot(found, tmp_path / "h.svg").is_file()
    (tmp_path / "bad.sqlite").write_bytes(b"this is no database, not at all" * 100)
    monkeypatch.setenv("TRTQ_HISTORY", str(tmp_path / "bad.sqlite"))
    with pytest.raises(ArtifactError, match="Cannot use the history"):
        recall()
    told = []

    class Told(Silent):
        def note(self, text: str) -> None:
            told.append(text)

    assert bench(
        BenchSpec(file=(f"{cnn_out}/model.qdq.onnx",), **QUICK), Told()
    ).rows  # what was measured is not lost with it
    assert "not in the history" in told[0]


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


# ---- startup and memory ------------------------------------------------------------------------


def test_a_file_leaves_the_page_cache(tmp_path):
    path = Path.cwd() / f".trtq-cold-{os.getpid()}"  # /tmp may be a file system in memory
    try:
        path.write_bytes(os.urandom(1 << 20))
        path.read_bytes()
        assert cached_share(path) > 0.5
        drop_from_cache(path)
        assert cached_share(path) == 0.0
    finally:
        path.unlink()
    (tmp_path / "empty").write_bytes(b"")
    assert cached_share(tmp_path / "empty") == 0.0


def test_a_process_that_cannot_load_says_why(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    with pytest.raises(BenchError, match="A new process cannot load bad.onnx"):
        measure_load(tmp_path / "bad.onnx", device="cpu", batch=1, processes=1)


def test_pain_35_an_engines_own_account():
    class Engine:
        device_memory_size_v2 = 4096

    class Old:
        device_memory_size = 512

    assert account_of(Engine()) == (None, 4096)
    assert account_of(Old()) == (None, 512)
    assert account_of(object()) == (None, None)
    assert status("Name:\tx\nVmHWM:\t  20 kB\nVmRSS:\t  10 kB\n") == {
        "VmRSS": 10240,
        "VmHWM": 20480,
    }


def test_pain_35_shared_memory_has_one_line_that_is_not_to_be_added(monkeypatch):
    from trtq.bench import startup_worker as fresh
    from trtq.bench.meters import jetson

    monkeypatch.setattr(jetson, "is_jetson", lambda *_: True)
    used = iter([10 << 20, 30 << 20])
    monkeypatch.setattr(fresh, "shared_memory_used", lambda: next(used))
    held = fresh.Memory("cuda:0")
    held.look("before")
    held.look("after")
    workload = type("W", (), {"io_bytes": 232})()
    made = held.account(workload)
    assert made["device"] == 20 << 20
    assert "GPU and CPU share this memory, the process is in it" in made["sources"]["device"]
    assert made["io"] == 232
    assert (
        shared_memory_used("MemTotal:  100 kB\nMemFree: 1 kB\nMemAvailable:   40 kB\n") == 60 * 1024
    )


# ---- meters ------------------------------------------------------------------------------------


def test_mean_power_of_a_counter_lies_between_its_ticks():
    times = [i * 0.01 for i in range(1001)]
    track = Track(times, [50.0 * (i // 10) * 0.1 for i in range(1001)])
    found = mean_power(track, counter=True, start=1.03, end=9.07)
    assert found.watts == pytest.approx(50.0, rel=1e-6)
    assert found.readings == pytest.approx(80, abs=1)


def test_mean_power_of_readings_is_the_trapezoid():
    times = [i * 0.01 for i in range(1001)]
    track = Track(times, [10.0 + t for t in times])
    assert mean_power(track, counter=False, start=2.0, end=6.0).watts == pytest.approx(14.0)


@pytest.mark.parametrize(
    ("track", "counter", "text"),
    [
        (Track([0, 1, 2, 3], [5, 6, 2, 7]), True, "went backwards"),
        (Track([0, 1, 2, 3], [5, 5, 5, 5]), True, "did not move"),
        (
            Track([0, 1, 2, 3], [5, 6, 7, 8], "the GPU has fallen off the bus"),
            True,
            "stopped in the middle.*fallen off the bus",
        ),
        (Track([0, 0.01, 2, 2.01], [5, 6, 7, 8]), False, "have a gap"),
        (Track([], []), False, "no readings"),
    ],
)
def test_meters_that_cannot_be_believed(track, counter, text):
    with pytest.raises(MeterError, match=text):
        mean_power(track, counter=counter, start=0.0, end=3.0)


def test_pain_10_a_square_wave_under_a_sensor_that_averages_a_second():
    """A load is on for half of each 0.4 s and seen through a 1 s average.

    A window of 10 s gives the right power; a short one is marked.
    """
    on, idle, period = 300.0, 60.0, 0.4

    def watts(t: float) -> float:
        return on if t > 0 and t % period < period / 2 else idle

    times = [i * 0.01 for i in range(1, 1300)]
    averaged = [float(np.mean([watts(t - k / 100) for k in range(100)])) for t in times]
    true = (on + idle) / 2
    assert mean_power(
        Track(times, averaged), counter=False, start=2.0, end=12.0
    ).watts == pytest.approx(true, rel=0.05)
    early = mean_power(Track(times, averaged), counter=False, start=0.0, end=0.5).watts
    assert abs(early - true) > 0.05 * true  # what the mark is for


@pytest.mark.parametrize("kind", ["counter", "power"])
def test_energy_of_a_known_load(tmp_path, kind):
    missing = [] if kind == "counter" else ["nvmlDeviceGetTotalEnergyConsumption"]
    gpu = Gpu(
        nvml=load_fake_nvml(write_fake_nvml(tmp_path, power_w=200.0, tick_s=0.02, missing=missing)),
        uuid="GPU-0",
    )
    meter = gpu.meter()
    assert isinstance(meter, NvmlCounter if kind == "counter" else NvmlPower)
    found = measure_energy(
        lambda: time.sleep(0.004),
        8,
        meter,
        EnergySettings(window_s=1.0, repeats=2, cooldown_s=0.0, settle_s=0.1),
    )
    assert found.power_w == pytest.approx(200.0, rel=0.05)
    assert found.gross_j == pytest.approx(200.0 / found.images_per_s, rel=0.05)
    assert found.net_j == pytest.approx(
        0.0, abs=0.1 * found.gross_j
    )  # the same power when idle: nothing is left
    assert found.load == "one request after another"
    assert not found.valid
    assert "too short to measure: windows of 1 s, the sensor needs 10 s" in found.reasons[0]
    assert any("within 5 %" in limit for limit in found.limits)


class Known:
    """Draws 60 W and 300 W more while it works; the reading is the mean of the last second."""

    name, scope, counter, min_window_s, limits = "a meter", "a thing", False, 10.0, []

    def __init__(self) -> None:
        self.worked: list[tuple[float, float]] = []

    def work(self) -> None:
        start = time.perf_counter()
        time.sleep(0.01)
        self.worked.append((start, time.perf_counter()))

    def read(self) -> float:
        now = time.perf_counter()
        busy = sum(max(0.0, min(b, now) - max(a, now - 1.0)) for a, b in list(self.worked)[-200:])
        return 60.0 + 300.0 * min(busy, 1.0)


def test_idle_power_is_that_without_the_load_before_it():
    meter = Known()
    found = measure_energy(
        meter.work, 1, meter, EnergySettings(window_s=1.0, repeats=1, cooldown_s=0.0, settle_s=1.3)
    )
    assert found.idle_w == pytest.approx(60.0, rel=0.02)
    assert found.power_w == pytest.approx(360.0, rel=0.05)
    assert found.net_j / found.gross_j == pytest.approx(300.0 / 360.0, rel=0.03)


@pytest.mark.slow
def test_energy_at_a_rate_counts_the_idle_time_between():
    meter = Known()
    found = measure_energy(
        meter.work,
        1,
        meter,
        EnergySettings(window_s=1.5, repeats=1, cooldown_s=0.0, settle_s=1.2, rate=20.0),
    )
    assert found.load == "20 requests a second"
    assert found.images_per_s == pytest.approx(20.0, rel=0.1)
    assert found.power_w == pytest.approx(60.0 + 300.0 * 0.2, rel=0.1)


def test_two_meters_that_disagree_are_not_believed(tmp_path):
    gpu = Gpu(
        nvml=load_fake_nvml(write_fake_nvml(tmp_path, power_w=200.0, tick_s=0.02)), uuid="GPU-0"
    )

    class Other(Known):
        def read(self) -> float:
            return 260.0

    found = measure_energy(
        lambda: time.sleep(0.002),
        1,
        gpu.meter(),
        EnergySettings(window_s=0.5, repeats=1, settle_s=0.1),
        check=Other(),
    )
    assert re.search(
        r"NVML energy counter and a meter are (2[5-9]|3[0-5])% apart", "; ".join(found.reasons)
    )


def test_a_sensor_that_looks_part_of_the_time_needs_longer_windows(tmp_path):
    module = load_fake_nvml(write_fake_nvml(tmp_path))
    assert Gpu(nvml=module, uuid="GPU-0").meter().min_window_s == 10.0
    module.nvmlDeviceGetName = lambda handle: "NVIDIA H200"
    assert Gpu(nvml=module, uuid="GPU-0").meter().min_window_s == 20.0


def test_a_meter_that_dies_in_the_middle(tmp_path):
    gpu = Gpu(nvml=load_fake_nvml(write_fake_nvml(tmp_path, dies_after=20)), uuid="GPU-0")
    with pytest.raises(MeterError, match="fallen off the bus"):
        measure_energy(
            lambda: time.sleep(0.002),
            1,
            gpu.meter(),
            EnergySettings(window_s=0.5, repeats=1, settle_s=0.0),
        )


def test_a_counter_that_goes_backwards(tmp_path):
    gpu = Gpu(
        nvml=load_fake_nvml(write_fake_nvml(tmp_path, backwards_at=10, tick_s=0.01)), uuid="GPU-0"
    )
    with Recorder(gpu.meter()) as recorder:
        time.sleep(0.5)
    with pytest.raises(MeterError, match="went backwards"):
        mean_power(recorder.track, counter=True, start=0.0, end=1e12)


def test_nvml_that_answers_not_supported(tmp_path):
    names = [
        "nvmlDeviceGetTotalEnergyConsumption",
        "nvmlDeviceGetPowerUsage",
        "nvmlDeviceGetFieldValues",
        "nvmlDeviceGetClockInfo",
    ]
    gpu = Gpu(nvml=load_fake_nvml(write_fake_nvml(tmp_path, missing=names)), uuid="GPU-0")
    state = gpu.state()
    assert state["sm_clock_mhz"] is None
    assert state["throttled_ns"] == {}
    assert gpu.missing["SM clock"] == "this board does not report it"
    assert state["temperature_c"] == 40  # each figure degrades alone
    with pytest.raises(MeterError, match="Cannot meter this GPU: this board does not report it"):
        gpu.meter()
    with pytest.raises(MeterError, match="MIG"):
        Gpu(nvml=load_fake_nvml(write_fake_nvml(tmp_path, mig=1)), uuid="GPU-0").meter()


def test_no_driver_and_the_wrong_package(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    if not Path("/dev/nvidiactl").exists():
        with pytest.raises(MeterError, match="management library was not found"):
            load_nvml()
    (tmp_path / "pynvml.py").write_text("def nvmlInit(): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("pynvml", None)
    with pytest.raises(MeterError, match="unofficial package pynvml shadows"):
        load_nvml()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(MeterError, match="nvidia-ml-py is not installed"):
        load_nvml()
    monkeypatch.delitem(sys.modules, "pynvml")


def rapl(root: Path, energy: int, *, wraps: int = 1_000_000) -> Path:
    zone = root / "sys/class/powercap/intel-rapl:0"
    (root / "sys/class/powercap/intel-rapl:0:0").mkdir(
        parents=True, exist_ok=True
    )  # a part of the package: not counted
    zone.mkdir(parents=True, exist_ok=True)
    (zone / "name").write_text("package-0\n")
    whole = (
        root / "sys/class/powercap/intel-rapl:1"
    )  # the platform, with the package in it: not counted either
    whole.mkdir(parents=True, exist_ok=True)
    (whole / "name").write_text("psys\n")
    (zone / "energy_uj").write_text(f"{energy}\n")
    (zone / "max_energy_range_uj").write_text(f"{wraps}\n")
    return zone


def test_rapl_counts_on_when_it_wraps_around(tmp_path):
    zone = rapl(tmp_path, 900_000)
    meter = Rapl(tmp_path)
    (zone / "energy_uj").write_text("950000")
    assert meter.read() == pytest.approx(0.05)
    (zone / "energy_uj").write_text("50000")
    assert meter.read() == pytest.approx(0.15)
    (zone / "energy_uj").write_text("x")
    with pytest.raises(MeterError, match="holds no number"):
        meter.read()
    with pytest.raises(MeterError, match="no RAPL counters"):
        Rapl(tmp_path / "none")


def hwmon(
    root: Path, number: int, rails: dict[str, tuple[int, int]], name: str = "ina3221"
) -> None:
    folder = root / f"sys/class/hwmon/hwmon{number}"
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    for i, (label, (mv, ma)) in enumerate(rails.items(), 1):
        (folder / f"in{i}_label").write_text(f"{label}\n")
        (folder / f"in{i}_input").write_text(f"{mv}\n")
        (folder / f"curr{i}_input").write_text(f"{ma}\n")


def test_rails_of_boards(tmp_path):
    hwmon(
        tmp_path / "orin-nx",
        3,
        {"VDD_IN": (5000, 1200), "VDD_CPU_GPU_CV": (5000, 400), "NC": (0, 0)},
    )
    hwmon(tmp_path / "orin-nx", 0, {"GPU": (1, 1)}, name="coretemp")
    meter = JetsonRails(tmp_path / "orin-nx")
    assert (meter.read(), meter.scope) == (6.0, "rail VDD_IN")
    hwmon(tmp_path / "xavier", 1, {"GPU": (19000, 100), "CPU": (19000, 50), "SOC": (19000, 60)})
    hwmon(tmp_path / "xavier", 2, {"CV": (19000, 0), "VDDRQ": (19000, 20), "SYS5V": (5000, 300)})
    meter = JetsonRails(tmp_path / "xavier")
    assert meter.scope.startswith("sum of monitored rails GPU + CPU")
    assert meter.read() == pytest.approx(1.9 + 0.95 + 1.14 + 0.38 + 1.5)
    nano = tmp_path / "nano/sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    nano.mkdir(parents=True)
    for i, (label, mw) in enumerate(
        {"POM_5V_IN": 2100, "POM_5V_GPU": 40, "POM_5V_CPU": 400}.items()
    ):
        (nano / f"rail_name_{i}").write_text(label)
        (nano / f"in_power{i}_input").write_text(str(mw))
    assert (JetsonRails(tmp_path / "nano").read(), JetsonRails(tmp_path / "nano").scope) == (
        2.1,
        "rail POM_5V_IN",
    )
    with pytest.raises(MeterError, match="no INA3221 monitors"):
        JetsonRails(tmp_path / "empty")
    hwmon(tmp_path / "odd", 0, {"SOMETHING": (5000, 10)})
    with pytest.raises(MeterError, match="no total among the rails SOMETHING"):
        JetsonRails(tmp_path / "odd")


# ---- the machine -------------------------------------------------------------------------------


def test_a_card_of_a_gpu_is_complete_also_where_the_board_is_silent(tmp_path):
    gpu = Gpu(
        nvml=load_fake_nvml(write_fake_nvml(tmp_path, missing=["nvmlDeviceGetEnforcedPowerLimit"])),
        uuid="GPU-0",
    )
    card = take_card("cuda:0", gpu=gpu)
    assert card["gpu"]["power_limit_w"] is None
    assert card["missing"]["power_limit_w"] == "this board does not report it"
    assert incomplete(card) == []
    assert incomplete({k: v for k, v in card.items() if k not in ("gpu", "missing")}) != []
    assert incomplete({}) == ["kind"]


def test_a_card_of_a_jetson(tmp_path, monkeypatch):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text("# R35 (release), REVISION: 4.1\nmore\n")
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_text("Jetson-AGX\0")
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "nvpmodel").write_text("#!/bin/sh\necho 'NV Power Mode: MAXN'\n")
    (tools / "nvpmodel").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    card = take_card("cuda:0", root=tmp_path)
    assert card["kind"] == "jetson"
    l4t = "# R35 (release), REVISION: 4.1"
    assert card["jetson"] == {
        "model": "Jetson-AGX",
        "l4t": l4t,
        "power_mode": "NV Power Mode: MAXN",
        "clocks": None,
    }
    assert "may need root" in card["missing"]["clocks"]
    assert incomplete(card) == []


def watched(tmp_path: Path, before: dict, after: dict) -> list[str]:
    held = write_fake_nvml(tmp_path, **before)
    watch = Watch("cuda:0", Gpu(nvml=load_fake_nvml(held), uuid="GPU-0"))
    held.write_text(json.dumps({**json.loads(held.read_text()), **after}))
    watch.look()
    watch.look()
    return watch.reasons()


def test_what_makes_a_run_not_valid(tmp_path):
    assert watched(tmp_path, {}, {}) == []
    assert watched(
        tmp_path, {"throttled_ns": {"269": 5}}, {"throttled_ns": {"269": 2_000_000_005}}
    ) == ["the GPU was slowed down for 2.00 s: software thermal limit"]
    assert watched(tmp_path, {}, {"reasons": 0x4 | 0x1}) == [
        "the GPU is being slowed down: power cap"
    ]
    assert watched(tmp_path, {}, {"processes": [os.getpid(), 4242]}) == [
        "1 other processes on the GPU"
    ]
    assert (
        watched(tmp_path, {}, {"processes": [4242]}) == []
    )  # in a container this process has another number there
    assert watched(tmp_path, {}, {"processes": [4242, 4243]}) == ["1 other processes on the GPU"]


def test_what_cannot_be_watched_is_said(tmp_path):
    missing = ["nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetClockInfo"]
    gpu = Gpu(nvml=load_fake_nvml(write_fake_nvml(tmp_path, missing=missing)), uuid="GPU-0")
    watch = Watch("cuda:0", gpu)
    found = watch.unwatched()
    assert found["watching the SM clock"] == "this board does not report it"
    assert "watching the clock event reasons" in found
    assert "watching the power cap" in found
    assert take_card("cuda:0", gpu=gpu)["missing"]["SM clock"] == "this board does not report it"


def test_clocks_that_move_and_a_machine_that_sleeps(tmp_path, monkeypatch):
    held = write_fake_nvml(tmp_path)
    watch = Watch("cuda:0", Gpu(nvml=load_fake_nvml(held), uuid="GPU-0"))
    for clock in (1980, 1500):
        held.write_text(json.dumps({**json.loads(held.read_text()), "clock": clock}))
        watch.between()
    watch.look()  # idle again: whatever the clock is now
    assert watch.reasons() == ["the SM clock moved between 1500 and 1980 MHz"]
    slept = iter([0.0, 30.0])
    monkeypatch.setattr(cards, "_slept", lambda: next(slept))
    watch = Watch("cpu")
    watch.look()
    assert watch.reasons()[0] == "the machine slept 30.0 s in the middle"


def test_work_of_others_is_noticed(tmp_path):
    (tmp_path / "proc").mkdir()
    stat = tmp_path / "proc/stat"
    stat.write_text("cpu  1000 0 0 9000 0 0 0 0 0 0\n")
    watch = Watch("cpu", root=tmp_path)
    watch.states[0]["at"] -= 10.0
    stat.write_text("cpu  2000 0 0 10000 0 0 0 0 0 0\n")
    watch.look()
    assert watch.others() == pytest.approx(0.5, abs=0.02)
    assert watch.reasons() == ["other processes used 50% of the CPU"]


def test_clocks_come_back_even_after_a_kill(tmp_path, monkeypatch):
    held = write_fake_nvml(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    gpu = Gpu(nvml=load_fake_nvml(held), uuid="GPU-0")
    with locked_clocks(gpu) as said:
        assert said == "locked at 1980 MHz"
        assert read(held)["locked"] == [1980, 1980]
    assert read(held)["locked"] is None
    code = (
        "import time\nfrom trtq.bench.clocks import locked_clocks\nfrom trtq.bench.meters.nvml "
        "import Gpu\n"
        "with locked_clocks(Gpu(uuid='GPU-0')) as said:\n    print(said, flush=True)\n    "
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout.readline() == "locked at 1980 MHz\n"
        assert read(held)["locked"] == [1980, 1980]
        os.killpg(process.pid, signal.SIGHUP)  # a closed terminal; the guardian is not in the group
        process.wait()
    until = time.monotonic() + 20
    while read(held)["locked"] is not None and time.monotonic() < until:
        time.sleep(0.05)
    assert read(held)["locked"] is None


def test_clocks_without_permission_stay_floating(tmp_path, monkeypatch):
    held = write_fake_nvml(tmp_path, denied=["nvmlDeviceSetGpuLockedClocks"])
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with locked_clocks(Gpu(nvml=load_fake_nvml(held), uuid="GPU-0")) as said:
        assert said == "floating: that needs root"


# ---- engines -----------------------------------------------------------------------------------


@pytest.fixture
def runner(cnn_out, tmp_path, monkeypatch):
    """An engine of the stand-in for TensorRT, on host memory."""
    folder = write_fake_tensorrt(tmp_path / "fake", "10.3.0")
    monkeypatch.syspath_prepend(str(folder))
    sys.modules.pop("tensorrt", None)
    from trtq.testing.tensorrt import MAGIC

    head = json.dumps({"version": "10.3.0", "shapes": {}, "report": "{}"}).encode()
    plan = MAGIC + head + b"\n" + (cnn_out / "model.fp32.onnx").read_bytes()
    yield EngineRunner(plan, "tensorrt", device="cpu", label="engine e")
    sys.modules.pop("tensorrt", None)


def test_three_times_of_an_engine_are_three_figures(runner):
    cuda = FakeCuda()
    workload = EngineWorkload(runner, 2, cuda=cuda)
    assert workload.settings["graph"] == "used"
    cuda.launch = lambda: workload.bound.launch(0)
    workload.call()
    gpu, enqueue = workload.split(20)
    assert gpu.shape == enqueue.shape == (20,)
    assert (gpu >= enqueue).mean() > 0.9  # events lie around the launch
    assert workload.answer()[0].shape == (2, 4)
    assert np.isfinite(workload.answer()[0]).all()


def test_a_graph_that_cannot_be_captured_is_said(runner):
    workload = EngineWorkload(
        runner, 1, cuda=FakeCuda(refuses="operation not permitted when stream is capturing")
    )
    assert (
        workload.settings["graph"] == "not used: operation not permitted when stream is capturing"
    )
    workload.call()
    assert (
        EngineWorkload(runner, 1, graph=False, cuda=FakeCuda()).settings["graph"]
        == "not used: not asked for"
    )


def test_answers_of_an_engine_are_those_of_its_model(runner, cnn_out):
    workload, plain = (
        EngineWorkload(runner, 1, cuda=FakeCuda(refuses="x")),
        open_workload(cnn_out / "model.fp32.onnx"),
    )
    workload.call()
    plain.call()
    np.testing.assert_allclose(workload.answer()[0], plain.answer()[0], atol=1e-5)


def test_layers_of_an_engine(runner):
    times = EngineWorkload(runner, 1, cuda=FakeCuda(refuses="x")).profile(4)
    assert "conv1/Conv" in times
    assert times["conv1/Conv"] == 2.0  # 0.5 ms, four times


def test_pain_12_an_enqueue_bound_engine_is_said(runner, cnn_out, monkeypatch, tmp_path):
    path = tmp_path / "e.engine"
    path.write_bytes(b"x")

    class Bound(EngineWorkload):
        def split(self, count):
            return np.full(count, 1_000_000), np.full(count, 900_000)

    monkeypatch.setattr(
        "trtq.bench.workload.open_workload",
        lambda *a, **k: Bound(runner, 1, cuda=FakeCuda(refuses="x")),
    )
    monkeypatch.setattr(harness, "open_gpu", lambda device: (None, "a test"))
    made = bench(BenchSpec(file=(str(path),), **QUICK))
    row = made.rows[0]
    assert (row.gpu.median.value, row.enqueue.median.value) == (1.0, 0.9)
    assert any("enqueue-bound" in n for n in row.notes)
    assert row.e2e.median.value not in (1.0, 0.9)
    assert "clocks, power and throttling are not watched: a test" in made.notes


@pytest.mark.parametrize(
    ("version", "graph", "words"),
    [
        ((8, 5), True, {"--useCudaGraph", "--useSpinWait"}),
        ((10, 16), False, {"--useSpinWait"}),
        ((11, 0), True, {"--includeDataTransfers"}),
        ((11, 1), False, {"--includeDataTransfers", "--noCudaGraph"}),
    ],
)
def test_trtexec_is_told_everything(version, graph, words):
    line = trtexec_command("trtexec", version, Path("e.engine"), graph=graph)
    assert set(line[1:]) - {"--loadEngine=e.engine", "--warmUp=1000", "--duration=5"} == words


@pytest.mark.parametrize("version", ["v8502", "v100300", "v110000"])
def test_a_second_opinion(tmp_path, monkeypatch, version, record):
    monkeypatch.setenv("TRTQ_TRTEXEC", str(write_fake_trtexec(tmp_path, version)))
    ours = msgspec.structs.replace(
        record[0].rows[0].e2e,
        median=msgspec.structs.replace(record[0].rows[0].e2e.median, value=1.6),
    )
    found = second_opinion(tmp_path / "e.engine", ours)
    assert (found.gpu_ms, found.latency_ms) == (2.0, 2.2)
    assert found.difference == pytest.approx(0.25)
    assert "--shapes" not in found.command
    assert (
        "--shapes=input:8x3x32x32"
        in second_opinion(tmp_path / "e.engine", ours, shapes="input:8x3x32x32").command
    )
    assert "--loadEngine=" in found.command


def test_no_second_opinion(tmp_path, monkeypatch, cnn_out):
    monkeypatch.setenv("TRTQ_TRTEXEC", str(tmp_path / "none"))
    monkeypatch.setenv("PATH", "/nowhere")
    row = bench(BenchSpec(file=(f"{cnn_out}/model.qdq.onnx",), trtexec=True, **QUICK)).rows[0]
    assert (
        row.unavailable["trtexec"]
        == "No second opinion: trtexec reads engines, this is an ONNX file"
    )


# ---- layers and verdicts -----------------------------------------------------------------------


def test_a_profile_leaves_the_first_runs_out():
    event = {
        "cat": "Node",
        "name": "conv1/Conv_kernel_time",
        "dur": 1000,
        "args": {"op_name": "Conv"},
    }
    events = [{**event, "dur": 9000}, event, event, {"cat": "Session", "name": "x", "dur": 5}]
    assert read_onnx_profile(events, 2, skip=1) == {"conv1/Conv": (1.0, "Conv")}


def layer(module: str, ms: float) -> LayerTime:
    return LayerTime(name=f"{module}/Conv", module=module, kind="Conv", ms=ms, share=0.0)


def test_what_ate_the_gain_is_sorted_by_loss():
    found = what_ate(
        [layer("a", 1.0), layer("b", 1.0)], [layer("a", 0.5), layer("b", 1.5), layer("new", 3.0)]
    )
    assert [(r.module, r.ms) for r in found] == [("new", 3.0), ("b", 0.5)]


def groups(rng: np.random.Generator, gap: float, *, n: int = 32) -> np.ndarray:
    """Return logarithms of ratios.

    Loads differ by 1 % each, turns differ by 0.4 %, and one of twelve has a burst of
    something else.
    """
    first, copy, second = rng.normal(0.0, 0.01, (3, n))
    noise, bursts = rng.normal(0.0, 0.004, (2, n)), (rng.random(n) < 0.08) * rng.normal(0.0, 0.1, n)
    return np.stack(
        [second + np.log1p(gap) - (first + copy) / 2 + noise[0] + bursts, copy - first + noise[1]],
        axis=1,
    )


def test_pain_13_equal_is_called_equal_and_a_gap_is_found():
    rng = np.random.default_rng(0)
    same = [judge(groups(rng, 0.0))[4] for _ in range(200)]
    slower = [judge(groups(rng, 0.05))[4] for _ in range(100)]
    small = [judge(groups(rng, 0.03))[4] for _ in range(100)]
    faster = [judge(groups(rng, -0.05))[4] for _ in range(100)]
    assert same.count("no measurable difference") >= 190
    assert slower.count("slower") >= 95
    assert small.count("slower") >= 90
    assert faster.count("faster") >= 95


def test_the_interval_of_the_ratio_holds_the_truth():
    rng = np.random.default_rng(1)
    found = [judge(groups(rng, 0.03, n=16)) for _ in range(400)]
    assert 0.92 <= np.mean([low <= 1.03 <= high for _, low, high, _, _ in found]) <= 0.995


def test_turns_find_a_planted_slowdown_by_a_simulated_clock():
    rng = np.random.default_rng(1)
    clock = Ticks(0)

    def opener(ms: float):
        def load():
            lies = rng.lognormal(0.0, 0.01)  # each load lies elsewhere in memory

            def run() -> None:
                clock.now += int(1e6 * ms * lies * rng.lognormal(0.0, 0.05))

            return run

        return load

    found = take_turns(opener(1.0), opener(1.03), TurnSettings(block_s=0.02), clock=clock)
    assert found.outcome == "slower"
    assert found.low <= 1.03 <= found.high
    assert found.ratio == pytest.approx(1.03, abs=0.01)
    assert (
        take_turns(opener(1.0), opener(1.0), TurnSettings(block_s=0.02), clock=clock).outcome
        == "no measurable difference"
    )


def test_a_request_that_fails_while_taking_turns():
    calls = iter(range(10_000))

    def fails() -> None:
        if next(calls) > 2000:
            raise RuntimeError("gone")

    with pytest.raises(BenchError, match="A request failed.*RuntimeError: gone"):
        take_turns(lambda: lambda: None, lambda: fails, TurnSettings(block_s=0.001))


def test_pain_1_int8_that_does_not_win_is_told_to_stay_float(cnn_out, tmp_path, monkeypatch):
    """The quantized file is its own baseline: no gain, so the advice is to keep the float one."""
    from trtq.bench import int8_verdict as verdict

    monkeypatch.setattr(verdict, "is_quantized", lambda path: path.name == "model.qdq.onnx")
    (tmp_path / "float.onnx").write_bytes((cnn_out / "model.qdq.onnx").read_bytes())
    files = (str(tmp_path / "float.onnx"), f"{cnn_out}/model.qdq.onnx")
    spec = CompareSpec(file=files, block=0.02, max_loads=8, margin=0.5, out=str(tmp_path))
    found = compare(spec).verdicts[0]
    assert found.outcome == "no measurable difference"
    assert found.advice.startswith("Keep the float file: INT8 does not win on this device")
    assert read(tmp_path / "compare.json")["verdicts"][0]["loads"] == 8


@pytest.mark.parametrize(
    ("noise", "half", "reasons"), [(0.001, 0.001, 0), (0.08, 0.001, 1), (0.001, 0.2, 1)]
)
def test_a_wide_margin_is_not_noise_and_a_wide_interval_is_no_answer(
    cnn_out, monkeypatch, noise, half, reasons
):
    from trtq.bench import int8_verdict as verdict
    from trtq.bench.interleaved import Turns

    turns = Turns(
        first_ms=1.0,
        second_ms=1.0,
        ratio=1.0,
        low=1.0 - half,
        high=1.0 + half,
        noise=noise,
        outcome="no measurable difference",
        groups=8,
        stopped="",
    )
    monkeypatch.setattr(verdict, "take_turns", lambda *_, **__: turns)
    monkeypatch.setattr(verdict.Watch, "reasons", lambda self: [])
    path = cnn_out / "model.fp32.onnx"
    found = verdict.judge_files(
        path, path, LoadOptions(), settings=TurnSettings(margin=0.08), profile=False
    )
    assert len(found.reasons) == reasons
    assert found.valid is (reasons == 0)


def test_bench_judges_a_quantized_file_against_the_float_one_beside_it(cnn_out, monkeypatch):
    from trtq.bench import int8_verdict as verdict

    seen = []
    real = verdict.judge_files

    def judge_files(a: Path, b: Path, options, **given):
        seen.append((a.name, b.name))
        return real(
            a, b, options, **{**given, "settings": TurnSettings(max_groups=8, block_s=0.02)}
        )

    monkeypatch.setattr(harness, "judge_files", judge_files)
    made = bench(BenchSpec(file=(f"{cnn_out}/model.qdq.onnx",), **{**QUICK, "verdict": True}))
    assert seen == [("model.fp32.onnx", "model.qdq.onnx")]
    assert made.verdicts[0].loads == 8
    assert "taking turns" in made.summary


def test_a_quantized_file_without_a_baseline_gets_no_verdict_and_the_reason(cnn_out, tmp_path):
    (tmp_path / "alone.onnx").write_bytes((cnn_out / "model.qdq.onnx").read_bytes())
    made = bench(BenchSpec(file=(str(tmp_path / "alone.onnx"),), **{**QUICK, "verdict": True}))
    assert made.verdicts == []
    assert made.notes == [
        "no verdict on alone.onnx: no model.fp32.onnx beside it; name one with --baseline"
    ]


def test_the_baseline_of_an_engine_is_the_fp16_one_for_the_same_target(tmp_path, cnn_out):
    pytest.importorskip("tensorrt_rtx")
    from trtq import BuildSpec, build
    from trtq.bench.int8_verdict import find_baseline, is_quantized

    build(
        BuildSpec(
            onnx=str(cnn_out / "model.qdq.onnx"),
            target="rtx3080",
            out=str(tmp_path / "made/e.engine"),
        )
    )
    whole = read(tmp_path / "made/e.engine.json")

    def put(name: str, quantized: int, precision: str, target: str) -> Path:
        path = tmp_path / f"{name}.engine"
        path.write_bytes(b"x")
        (tmp_path / f"{name}.engine.json").write_text(
            json.dumps(
                {
                    **whole,
                    "quantized_tensors": quantized,
                    "precision": precision,
                    "target": {**whole["target"], "name": target},
                    "spec": {**whole["spec"], "onnx": "out/model.qdq.onnx"},
                }
            )
        )
        return path

    int8 = put("int8", 8, "fp16", "rtx3080")
    put("other", 0, "fp16", "t4")
    put("full", 0, "fp32", "rtx3080")
    found, why = find_baseline(int8)
    assert found is None
    assert "trtq build out/model.fp32.onnx --target rtx3080 --precision fp16" in why
    cached = put("cached", 0, "fp16", "rtx3080")  # INT8 by a calibration cache is no float baseline
    held = read(Path(f"{cached}.json"))
    Path(f"{cached}.json").write_text(
        json.dumps({**held, "spec": {**held["spec"], "calibration": "c.cache"}})
    )
    assert is_quantized(cached)
    assert find_baseline(int8)[0] is None
    half = put("half", 0, "fp16", "rtx3080")
    assert find_baseline(int8) == (half, "")


# ---- compare records, gate ---------------------------------------------------------------------


def put(folder: Path, made, **changes) -> Path:
    folder.mkdir(exist_ok=True)
    rows = [msgspec.structs.replace(r, reasons=[], valid=True) for r in made.rows[:1]]
    value = msgspec.to_builtins(msgspec.structs.replace(made, rows=rows))
    median = {"q": 0.5, "value": 10.0, "low": 9.99, "high": 10.01, "needs": 6}
    value["rows"][0]["e2e"]["median"] = {**median, **changes.pop("median", {})}
    value["rows"][0] |= changes.pop("row", {})
    value["card"] |= changes.pop("card", {})
    path = folder / "bench.json"
    path.write_text(json.dumps({**value, **changes}))
    return path


def test_pain_9_records_without_a_card_are_refused_and_other_machines_are_named(record, tmp_path):
    a = put(tmp_path / "a", record[0], valid=True)
    held = read(a)
    del held["card"]["affinity"]
    (tmp_path / "bad.json").write_text(json.dumps(held))
    with pytest.raises(
        ArtifactError, match="cannot be compared: its machine card says nothing of affinity"
    ):
        compare(CompareSpec(file=(str(a), str(tmp_path / "bad.json"))))
    other = put(tmp_path / "b", record[0], card={"governor": "powersave", "cores": 64})
    found = compare(CompareSpec(file=(str(a), str(other))))
    assert not found.valid
    assert any("governor: None and powersave" in d for d in found.differences)
    assert compare(CompareSpec(file=(str(a), str(a)))).valid
    thrice = put(tmp_path / "thrice", record[0], valid=True, row={"batch": 3})
    with pytest.raises(
        UsageError,
        match="no latency of one kind, mode and batch in common: .* e2e of latency, batch 1.*, "
        "batch 3",
    ):
        compare(CompareSpec(file=(str(a), str(thrice))))
    later = put(
        tmp_path / "later", record[0], valid=True, row={"state": {"loop_overhead_us": 9.9}}
    )  # what a run was like is no setting
    assert compare(CompareSpec(file=(str(a), str(later)))).differences == []
    with pytest.raises(UsageError, match="Cannot compare records with files"):
        compare(CompareSpec(file=(str(a), "x.onnx")))
    with pytest.raises(UsageError, match="needs two files"):
        compare(CompareSpec(file=("x.onnx",)))
    assert differences({"load": [1]}, {"load": [2]}) == []


@pytest.mark.parametrize(
    ("median", "code", "text"),
    [
        ({}, 0, "passed"),
        ({"value": 10.2, "low": 10.19, "high": 10.21}, 0, "passed"),
        ({"value": 10.5, "low": 10.45, "high": 10.55}, 1, "failed"),
        ({"value": 10.3, "low": 10.0, "high": 10.6}, 3, "the limit lies inside the interval"),
        ({"value": None, "low": None, "high": None}, 3, "too few samples"),
    ],
)
def test_gate_exit_codes(record, tmp_path, median, code, text):
    base, new = put(tmp_path / "a", record[0]), put(tmp_path / "b", record[0], median=median)
    summary = tmp_path / "summary.md"
    done = run_cli("gate", str(new), "--baseline", str(base), "--summary", str(summary))
    assert done.returncode == code, done.stdout + done.stderr
    assert text in done.stdout
    assert summary.read_text().startswith("### trtq gate: ")


def test_gate_is_not_valid_on_another_machine_or_a_record_that_is_not(record, tmp_path):
    base = put(tmp_path / "a", record[0])
    made = gate(
        GateSpec(record=str(put(tmp_path / "b", record[0], card={"cores": 64})), baseline=str(base))
    )
    assert made.exit_code == 3
    assert any("the machines differ: cores" in r for r in made.reasons)
    bad = put(tmp_path / "c", record[0], row={"reasons": ["the machine was busy"], "valid": False})
    made = gate(GateSpec(record=str(bad), baseline=str(base)))
    assert made.exit_code == 3
    assert any("the machine was busy" in r for r in made.reasons)
    made = gate(
        GateSpec(record=str(put(tmp_path / "d", record[0], row={"batch": 7})), baseline=str(base))
    )
    assert made.exit_code == 3
    assert any(
        "the candidate has no row for model.fp32.onnx, latency, batch 1" in r for r in made.reasons
    )
    other = put(tmp_path / "e", record[0], row={"input_shape": [1, 3, 64, 64]})
    assert any(
        "input_shape" in r for r in gate(GateSpec(record=str(other), baseline=str(base))).reasons
    )
    held = read(base)["environment"]
    other = put(
        tmp_path / "f",
        record[0],
        environment={**held, "packages": {**held["packages"], "onnxruntime": "0.1"}},
    )
    assert any(
        "the packages differ: onnxruntime" in r
        for r in gate(GateSpec(record=str(other), baseline=str(base))).reasons
    )


def test_gate_holds_each_file_against_its_own_name(record, tmp_path):
    """INT8 got slower and the float file faster.

    A comparison in the order of the rows would see no change.
    """

    def two(folder: str, order: list[tuple[str, float]]) -> Path:
        path = put(tmp_path / folder, record[0])
        held = read(path)
        row = held["rows"][0]
        held["rows"] = []
        for name, ms in order:
            median = {**row["e2e"]["median"], "value": ms, "low": ms - 0.01, "high": ms + 0.01}
            held["rows"].append({**row, "file": name, "e2e": {**row["e2e"], "median": median}})
        path.write_text(json.dumps(held))
        return path

    base, new = (
        two("a", [("fp32.onnx", 10.0), ("int8.onnx", 5.0)]),
        two("b", [("int8.onnx", 9.0), ("fp32.onnx", 5.1)]),
    )
    made = gate(GateSpec(record=str(new), baseline=str(base)))
    assert [c.outcome for c in made.checks] == ["passed", "failed"]
    assert made.exit_code == 1


def test_gate_on_memory_energy_and_accuracy(record, tmp_path):
    base = put(tmp_path / "a", record[0])
    grown = read(base)["rows"][0]["memory"]
    more = put(
        tmp_path / "b", record[0], row={"memory": {**grown, "process": 2 * grown["process"]}}
    )
    assert gate(GateSpec(record=str(more), baseline=str(base), max_memory="10%")).exit_code == 1
    made = gate(GateSpec(record=str(base), baseline=str(base), max_energy="10%"))
    if record[0].rows[0].energy is None:
        assert made.exit_code == 3
        assert made.checks[-1].why == "the baseline has no energy"
    accuracy = tmp_path / "acc.json"
    for drop, code in ((0.4, 0), (0.6, 1)):
        accuracy.write_text(
            json.dumps({"top1": 80.0 - drop, "reference_top1": 80.0, "images": 500})
        )
        made = gate(
            GateSpec(
                record=str(base), baseline=str(base), accuracy=str(accuracy), max_accuracy_drop=0.5
            )
        )
        assert made.exit_code == code
    other = tmp_path / "old.json"
    other.write_text(json.dumps({"top1": 80.0, "images": 400}))
    made = gate(
        GateSpec(
            record=str(base),
            baseline=str(base),
            accuracy=str(accuracy),
            baseline_accuracy=str(other),
            max_accuracy_drop=5.0,
        )
    )
    assert made.checks[-1].why == "the two evaluations saw other images"
    with pytest.raises(UsageError, match="needs --accuracy"):
        gate(GateSpec(record=str(base), baseline=str(base), max_accuracy_drop=0.5))
    (tmp_path / "none.json").write_text("{}")
    with pytest.raises(ArtifactError, match="There is no accuracy"):
        gate(
            GateSpec(
                record=str(base),
                baseline=str(base),
                accuracy=str(tmp_path / "none.json"),
                max_accuracy_drop=0.5,
            )
        )


def test_gate_refuses_what_is_no_record(record, tmp_path):
    base = put(tmp_path / "a", record[0])
    (tmp_path / "x.json").write_text('{"verb": "quantize"}')
    with pytest.raises(ArtifactError, match="is no record of trtq bench"):
        gate(GateSpec(record=str(tmp_path / "x.json"), baseline=str(base)))
    (tmp_path / "x.json").write_text('{"verb": "bench"}')
    with pytest.raises(ArtifactError, match="Cannot read the bench record"):
        gate(GateSpec(record=str(tmp_path / "x.json"), baseline=str(base)))
    with pytest.raises(UsageError, match="Cannot read --max-slowdown 'much'"):
        gate(GateSpec(record=str(base), baseline=str(base), max_slowdown="much"))


@pytest.mark.gpu
def test_nvml_on_a_real_gpu():
    gpu = Gpu("cuda:0")
    assert gpu.card()["uuid"].startswith("GPU-")
    assert gpu.state()["temperature_c"] > 0
    assert gpu.meter().read() > 0
