"""Measure latency, one request at a time.

GPU time, launch time and end-to-end time are three separate figures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trtq.bench.record import Timing
from trtq.bench.sampling import (
    BLOCK_S,
    Samples,
    StopRule,
    Warmup,
    quiet_interpreter,
    said,
    sample,
    warm_up,
)
from trtq.bench.statistics import Values, drift, effective_samples, outliers, quantile
from trtq.bench.system_info import Watch
from trtq.bench.workload import Workload

PERCENTILES = (0.5, 0.9, 0.95, 0.99)
ENOUGH = 50  # independent samples: under it the interval itself is not to be trusted
WIDE = 0.10
COLD_BLOCK = 25


def summarize(kind: str, samples: Samples, percentiles: Sequence[float] = PERCENTILES) -> Timing:
    """Summarize single times, without excluding any.

    Args:
        kind: ``e2e``, ``gpu`` or ``enqueue``.
        samples: at least one.
        percentiles: 0 to 1.
    """
    ms: Values = samples.ms
    return Timing(
        kind=kind,
        median=quantile(ms, 0.5),
        percentiles=[quantile(ms, q) for q in percentiles],
        min=float(ms.min()),
        max=float(ms.max()),
        mean=float(ms.mean()),
        samples=len(ms),
        effective=effective_samples(ms),
        outliers=outliers(ms),
        drift=drift(samples.block_medians()),
        blocks=samples.block_medians(),
        stopped=samples.stopped,
    )


def doubts(timing: Timing, warmup: Warmup, samples: Samples) -> list[str]:
    """Return why a timing should not be used; empty for a good one.

    Args:
        timing: summary of the samples.
        warmup: before them.
        samples: themselves; they say whether a request failed.
    """
    reasons = []
    if samples.failed:
        reasons.append(
            f"a request failed after {len(samples.ns)} good ones ({samples.failed}): what was "
            "measured until then is kept"
        )
    if not warmup.stable:
        reasons.append(
            f"the time of a request did not settle within 1 % in {warmup.calls} requests of warm-up"
        )
    middle = timing.median
    if middle.value is None or middle.low is None or middle.high is None:
        reasons.append(f"{timing.samples} samples are too few for an interval of the median")
    elif (middle.high - middle.low) / middle.value > WIDE:
        reasons.append(
            "the 95 % interval of the median is "
            f"{(middle.high - middle.low) / middle.value:.0%} wide: the machine was busy"
        )
    if timing.drift.found:
        reasons.append(
            f"the time drifted by {timing.drift.change:+.1%} over the run (Mann-Kendall p = "
            f"{timing.drift.p:.3f})"
        )
    if timing.samples >= ENOUGH > timing.effective:
        reasons.append(
            f"{timing.samples} samples tell as much as {timing.effective} independent ones: "
            "measure longer (--duration)"
        )
    return reasons


def measure_latency(
    workload: Workload, rule: StopRule, watch: Watch
) -> tuple[dict[str, Samples], Warmup]:
    """Return the times of single requests by kind, and the warm-up.

    The kinds are ``e2e``, and ``gpu`` and ``enqueue`` when the device can separate them. A request
    that fails ends the run: its kind has what was measured until then, and later kinds are left
    out.

    Args:
        workload: the model.
        rule: when to stop; it applies to each kind.
        watch: looks at the machine between blocks.
    """
    warmup = warm_up(workload.call)
    watch.look()
    if warmup.failed:
        return {"e2e": nothing(warmup)}, warmup
    samples = {"e2e": sample(workload.call, warmup.call_s, rule, between=watch.between)}
    watch.look()
    if workload.apart and not samples["e2e"].failed:
        samples |= _apart(workload, rule, warmup, watch)
        watch.look()
    return samples, warmup


def nothing(warmup: Warmup) -> Samples:
    """Return the samples of a run whose warm-up failed: none, and why."""
    return Samples(
        np.zeros(0, dtype=np.int64),
        [],
        "a call failed",
        f"in the warm-up, after {warmup.calls} good requests: {warmup.failed}",
    )


def _apart(workload: Workload, rule: StopRule, warmup: Warmup, watch: Watch) -> dict[str, Samples]:
    """Return GPU time and enqueue time of launches without copies.

    Blocks are measured until ``rule`` is met.
    """
    gpu, enqueue, blocks = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), list[int]()
    per_block = max(1, round(BLOCK_S / max(warmup.call_s, 1e-6)))
    began, stopped, failed = time.perf_counter(), "", ""
    with quiet_interpreter():
        while not stopped:
            try:
                times = workload.split(per_block)
            except (Exception, KeyboardInterrupt) as exc:
                failed, stopped = said(exc), "a call failed"
                break
            blocks.append(len(gpu))
            gpu, enqueue = np.concatenate([gpu, times[0]]), np.concatenate([enqueue, times[1]])
            watch.between()
            seconds = time.perf_counter() - began
            if seconds >= rule.limit_s:
                stopped = f"{rule.limit_s:g} s had passed"
            elif seconds >= rule.seconds and len(gpu) >= rule.samples:
                stopped = "enough samples and time"
    return {
        k: Samples(v, list(blocks), stopped, failed)
        for k, v in (("gpu", gpu), ("enqueue", enqueue))
    }


def paced(
    workload: Workload, rate: float, rule: StopRule, watch: Watch
) -> tuple[Samples, Warmup, float]:
    """Serve ``rate`` requests a second with idle time between them, as a camera does.

    A request that is late starts at once, and the ones behind it keep their times.

    Args:
        workload: the model.
        rate: requests a second.
        rule: when to stop.
        watch: looks at the machine about twice a second.

    Returns:
        the times of requests, the warm-up, and the share of requests that were due before the one
        before them had ended.
    """
    warmup = warm_up(workload.call)
    if warmup.failed:
        return nothing(warmup), warmup, 0.0
    due, late = time.perf_counter(), 0

    def wait() -> None:
        nonlocal due, late
        remaining = due - time.perf_counter()
        if remaining > 0:
            time.sleep(remaining)
        else:
            late += 1
        due += 1.0 / rate

    samples = _one_by_one(workload, rule, watch, wait, max(1, round(BLOCK_S * rate)))
    return samples, warmup, max(0, late - 1) / max(1, len(samples.ns))


def cold(
    workload: Workload, rule: StopRule, watch: Watch, *, cache_bytes: int | None = None
) -> tuple[Samples, Warmup, str]:
    """Time requests with the cache emptied before each.

    The cache is the last-level cache of a CPU or the L2 of a GPU.

    Args:
        workload: the model.
        rule: when to stop.
        watch: looks at the machine every 25 requests.
        cache_bytes: size of the cache, of which twice as much is written; None asks the device.

    Returns:
        the times, the warm-up, and what was emptied.
    """
    warmup = warm_up(workload.call)
    if warmup.failed:
        return nothing(warmup), warmup, "nothing"
    empty, what = _emptier(workload, cache_bytes)
    return _one_by_one(workload, rule, watch, empty, COLD_BLOCK), warmup, what


def _one_by_one(
    workload: Workload, rule: StopRule, watch: Watch, before: Callable[[], object], per_block: int
) -> Samples:
    """Time single requests until ``rule`` is met or a request fails.

    ``before`` is called before each request and is not timed.
    """
    times: list[int] = []
    began, failed = time.perf_counter(), ""
    while (
        time.perf_counter() - began < rule.seconds or len(times) < rule.samples
    ) and time.perf_counter() - began < rule.limit_s:
        try:
            before()
            start = time.perf_counter_ns()
            workload.call()
        except (Exception, KeyboardInterrupt) as exc:
            failed = said(exc)
            break
        times.append(time.perf_counter_ns() - start)
        if len(times) % per_block == 0:
            watch.between()
    watch.between()
    stopped = (
        "a call failed"
        if failed
        else "enough samples and time"
        if time.perf_counter() - began < rule.limit_s
        else "time had passed"
    )
    return Samples(
        np.asarray(times, dtype=np.int64), list(range(0, len(times), per_block)), stopped, failed
    )


def _emptier(workload: Workload, cache_bytes: int | None) -> tuple[Callable[[], Any], str]:
    """Return a function that empties the cache of the workload's device, and what it does."""
    if workload.device.startswith("cuda"):
        import torch

        size = cache_bytes or int(torch.cuda.get_device_properties(workload.device).L2_cache_size)
        scratch = torch.empty(2 * size, dtype=torch.uint8, device=workload.device)

        def flush() -> None:
            scratch.zero_()
            torch.cuda.synchronize(workload.device)

        return flush, f"L2 of the GPU, by writing {2 * size / 1e6:.0f} MB"
    size = cache_bytes or last_level_cache()
    values = np.zeros(2 * size, dtype=np.uint8)
    what = f"last-level cache of the CPU, by writing {2 * size / 1e6:.0f} MB"
    return lambda: values.__iadd__(1), what


def last_level_cache(root: Path = Path("/")) -> int:
    """Return the size of the CPU's largest cache, bytes; 64 MB when unknown.

    Args:
        root: of the file system; another one in tests.
    """
    sizes = [64_000_000]
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    known = []
    for path in (root / "sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text(errors="replace").strip()
        if text[:-1].isdigit() and text[-1:] in units:
            known.append(int(text[:-1]) * units[text[-1]])
    return max(known or sizes)
