"""Times, warm-up, and the cost of the measuring loop."""

from __future__ import annotations

import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from tests.support.bench import Ticks
from trtq.bench import latency, throughput
from trtq.bench.latency import last_level_cache
from trtq.bench.sampling import StopRule, Warmup, loop_overhead, sample, warm_up
from trtq.bench.system_info import Watch
from trtq.bench.throughput import offered

pytestmark = pytest.mark.alone


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


def test_last_level_cache_of_a_fake_tree(tmp_path):
    for i, size in enumerate(("32K", "1M", "36M")):
        folder = tmp_path / f"sys/devices/system/cpu/cpu0/cache/index{i}"
        folder.mkdir(parents=True)
        (folder / "size").write_text(f"{size}\n")
    assert last_level_cache(tmp_path) == 36 << 20
    assert last_level_cache(tmp_path / "none") == 64_000_000


def test_ctrl_c_between_paced_requests_keeps_what_was_measured(monkeypatch):
    pauses = iter(range(100))

    def sleep(seconds: float) -> None:
        if next(pauses) == 20:
            raise KeyboardInterrupt

    warm = Warmup(50, stable=True, call_s=1e-4)
    monkeypatch.setattr(latency, "warm_up", lambda _: warm)
    monkeypatch.setattr(latency.time, "sleep", sleep)
    work = SimpleNamespace(call=lambda: None)
    rule = StopRule(seconds=60.0, samples=1000)
    found, _, _ = latency.paced(work, 10.0, rule, Watch("cpu"))
    assert len(found.ns) == 21
    assert found.failed == "KeyboardInterrupt: interrupted"


def test_ctrl_c_before_the_first_rate_of_a_server_ends_it(monkeypatch):
    monkeypatch.setattr(throughput, "warm_up", lambda _: Warmup(50, stable=True, call_s=1e-3))
    flooded = ([0.0, 1.0], [1.0, 2.0], "KeyboardInterrupt: interrupted")
    monkeypatch.setattr(throughput, "_flood", lambda *_: flooded)
    found = throughput.measure_throughput(
        SimpleNamespace(call=None, shapes={"x": [4, 3]}), scenario="server", bound_ms=5.0, streams=1
    )
    assert found.failed == "KeyboardInterrupt: interrupted"
    assert (found.queries, found.images_per_s, found.met) == (2, 4.0, False)
    assert "a request failed after 2 good ones" in throughput.throughput_doubts(found)[0]
