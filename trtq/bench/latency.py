"""Latency of an ONNX file in ONNX Runtime: warm up until stable, then enough calls for a median with an interval."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from trtq.artifact import SCHEMA, environment, sha256_file
from trtq.errors import BenchError, UsageError
from trtq.export.ort import input_shape, open_session, static_batch
from trtq.recipe import BenchSpec

MIN_WARMUP_CALLS, MAX_WARMUP_S, STABLE_WITHIN = 5, 10.0, 0.05
Z95 = 1.959963984540054


class BenchRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What ``trtq bench`` measured.

    Attributes:
        device: ``CPU (ONNX Runtime)`` or ``cuda:N (ONNX Runtime)``; never an engine's latency.
        median_ms, low_ms, high_ms: median of a call and its 95 % order-statistic interval, milliseconds.
        p95_ms: None below 72 samples, from which a two-sided interval for it exists (facts: order statistics).
        images_per_s: batch over median.
        samples, warmup_calls, warmup_stable: how it was taken.
        valid, reasons: False with the reasons when the numbers should not be used.
    """

    schema: int
    verb: str
    spec: dict[str, Any]
    file_sha256: str
    device: str
    batch: int
    input_shape: list[int]
    median_ms: float
    low_ms: float
    high_ms: float
    p95_ms: float | None
    min_ms: float
    max_ms: float
    images_per_s: float
    samples: int
    warmup_calls: int
    warmup_stable: bool
    valid: bool
    reasons: list[str]
    settings: dict[str, Any]
    environment: dict[str, Any]

    @property
    def summary(self) -> str:
        """One line for a person."""
        tail = "n/a (too few samples)" if self.p95_ms is None else f"{self.p95_ms:.3f} ms"
        verdict = "VALID" if self.valid else f"NOT VALID: {'; '.join(self.reasons)}"
        return (
            f"{self.device}, batch {self.batch}: median {self.median_ms:.3f} ms [{self.low_ms:.3f}, {self.high_ms:.3f}], p95 {tail}, "
            f"{self.images_per_s:.1f} images/s, {self.samples} samples, {verdict}"
        )


def median_interval(samples: Sequence[float]) -> tuple[float, float, float]:
    """Return the median and its 95 % order-statistic confidence interval (normal approximation to the binomial ranks).

    >>> median_interval(list(range(1, 101)))
    (50.5, 40, 61)
    """
    ordered = sorted(samples)
    n = len(ordered)
    half = Z95 * math.sqrt(n) / 2.0
    low = max(0, math.floor(n / 2.0 - half) - 1)
    high = min(n - 1, math.ceil(n / 2.0 + half))
    return float(np.median(ordered)), ordered[low], ordered[high]


def bench(spec: BenchSpec) -> BenchRecord:
    """Measure the latency of one call on random input.

    Raises:
        UsageError: unknown device.
        BenchError: an engine file, which needs its GPU.
        ExportError: the file cannot be loaded, or the device is not there.
    """
    path = Path(spec.file)
    provider, index, device = _device(spec.device)
    if path.suffix == ".engine":
        from trtq.engine.manifest import read_manifest

        manifest = read_manifest(path)
        raise BenchError(
            f"Cannot run the engine {path.name} here",
            f"it was built for {manifest.target['device']} (compute capability {manifest.target['capability']}), and trtq does not "
            "run engines on a GPU yet",
            f"Time the ONNX file on this CPU instead, as a CPU latency: trtq bench {manifest.spec['onnx']}",
        )
    session = open_session(path, as_written=False, provider=provider, device_id=index)
    fixed = static_batch(session)
    if fixed is not None and fixed != spec.batch:
        raise UsageError(f"Cannot run {path.name} with --batch {spec.batch}", f"its batch is fixed at {fixed}", f"Use --batch {fixed}")
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type != "tensor(float)" or not all(isinstance(v, int) for v in inputs[0].shape[1:]):
        found = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
        raise BenchError(f"Cannot make input for {path.name}", f"expected one float32 image input with a fixed size, found {found}")
    shape = [spec.batch, *[int(v) for v in input_shape(session)[1:]]]
    data = {session.get_inputs()[0].name: np.random.default_rng(0).standard_normal(shape, dtype=np.float32)}
    warmup, stable = _warm_up(lambda: session.run(None, data))
    samples = _sample(lambda: session.run(None, data), spec.seconds, spec.min_samples)
    median, low, high = median_interval(samples)
    reasons = [] if stable else [f"latency did not settle within {STABLE_WITHIN:.0%} in {MAX_WARMUP_S:g} s of warm-up"]
    if (high - low) / median > 0.1:
        reasons.append(f"the 95 % interval of the median is {(high - low) / median:.0%} wide: the machine was busy")
    return BenchRecord(
        schema=SCHEMA, verb="bench", spec=msgspec.to_builtins(spec), file_sha256=sha256_file(path), device=device, batch=spec.batch,
        input_shape=shape, median_ms=median, low_ms=low, high_ms=high,
        p95_ms=float(np.quantile(samples, 0.95)) if len(samples) >= 72 else None, min_ms=min(samples), max_ms=max(samples),
        images_per_s=1e3 * spec.batch / median, samples=len(samples), warmup_calls=warmup, warmup_stable=stable, valid=not reasons,
        reasons=reasons, settings={"runtime": "ONNX Runtime, its own graph optimisation and integer kernels", "copies": "inside"},
        environment=environment(),
    )  # fmt: skip


def _device(text: str) -> tuple[str, int, str]:
    if text == "cpu":
        return "CPU", 0, "CPU (ONNX Runtime)"
    name, _, index = text.partition(":")
    if name == "cuda" and (index or "0").isdigit():
        return "CUDA", int(index or 0), f"cuda:{index or 0} (ONNX Runtime)"
    raise UsageError(f"Unknown device {text!r}", mend="Use cpu or cuda:N")


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / 1e6


def _warm_up(call: Callable[[], object]) -> tuple[int, bool]:
    """Call until the medians of two consecutive windows agree, at most ``MAX_WARMUP_S`` seconds."""
    times: list[float] = []
    start = time.perf_counter()
    while time.perf_counter() - start < MAX_WARMUP_S:
        times.append(_timed(call))
        half = len(times) // 2
        if half >= MIN_WARMUP_CALLS and len(times) % 2 == 0:
            window = max(MIN_WARMUP_CALLS, half // 2)
            late, before = np.median(times[-window:]), np.median(times[-2 * window : -window])
            if abs(late - before) <= STABLE_WITHIN * before:
                return len(times), True
    return len(times), False


def _sample(call: Callable[[], object], seconds: float, min_samples: int) -> list[float]:
    samples: list[float] = []
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(samples) < min_samples:
        samples.append(_timed(call))
    return samples
