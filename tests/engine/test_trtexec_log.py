"""What trtexec prints and exports, release by release.

The texts follow the sources of the tags (facts, section 2).
"""

from __future__ import annotations

import math

import pytest

from trtq.engine.trtexec_log import read_log, read_times
from trtq.errors import BenchError

AT = "[11/21/2026-10:00:00] [I] "


def row(label: str, percentiles: str, scale: float = 1.0) -> str:
    values = ", ".join(
        f"{k} = {v * scale:g} ms"
        for k, v in (("min", 1.0), ("max", 4.0), ("mean", 1.5), ("median", 1.25))
    )
    return f"{AT}{label}: {values}, {percentiles}"


def summary(
    version: str,
    digits: str,
    *,
    end_to_end: bool,
    percentiles: str,
    more: str = "",
    build: str = "",
) -> str:
    return "\n".join(
        [
            f"&&&& RUNNING TensorRT.trtexec [TensorRT {digits}]{build} # trtexec --onnx=m.onnx",
            f"{AT}=== Device Information ===",
            f"{AT}Selected Device: Orin",
            f"{AT}Compute Capability: 8.7",
            f"{AT}TensorRT version: {version}",
            f"{AT}Engine built in 12.5 sec.",
            "[11/21/2026-10:00:00] [W] [TRT] a warning",
            more,
            f"{AT}Warmup completed 12 queries over 200 ms",
            f"{AT}Timing trace has 1234 queries over 3.00187 s",
            f"{AT}=== Performance summary ===",
            f"{AT}Throughput: 411.077 qps",
            row("Latency", percentiles),
            *([row("End-to-End Host Latency", percentiles, 2.0)] if end_to_end else []),
            row("Enqueue Time", percentiles, 0.1),
            row("H2D Latency", percentiles, 0.01),
            row("GPU Compute Time", percentiles),
            row("D2H Latency", percentiles, 0.02),
            f"{AT}Total Host Walltime: 3.00187 s",
            f"{AT}Total GPU Compute Time: 1.23457e+00 s",
            f"{AT}* GPU compute time is unstable, with coefficient of variance = 2.6%.",
            "[11/21/2026-10:00:00] [V] === Explanations of the performance metrics ===",
            "[11/21/2026-10:00:00] [V] Latency: the summation of H2D Latency, GPU Compute Time, "
            "and D2H Latency.",
            f"&&&& PASSED TensorRT.trtexec [TensorRT {digits}]{build} # trtexec --onnx=m.onnx",
        ]
    )


ONE, THREE = (
    "percentile(99%) = 3.5 ms",
    "percentile(90%) = 2 ms, percentile(95%) = 2.5 ms, percentile(99.9%) = 3.5 ms",
)
PERSISTENT = f"{AT}[TRT] Total Host Persistent Memory: 1024\n{AT}[TRT] Total Scratch Memory: 512"
LATER = (
    f"{AT}[TRT] Total Host Persistent Memory: 1024 bytes\n{AT}[TRT] Max Scratch Memory: 512 "
    f"bytes\n{AT}Engine deserialized in 0.01 sec.\n"
    f"{AT}Created engine with size: 11.5 MiB\n{AT}[TRT] Total Weights Memory: 4096 bytes\n"
    f"{AT}Created execution context with device memory size: 2.5 MiB\n"
    f"{AT}Successfully captured CUDA graph for the current execution context"
)
VERSIONS = {
    "8.0.1": summary("8.0.1", "v8001", end_to_end=True, percentiles=ONE, more=PERSISTENT),
    "8.2.1": summary("8.2.1", "v8201", end_to_end=True, percentiles=ONE, more=PERSISTENT),
    "8.4.1": summary("8.4.1", "v8401", end_to_end=False, percentiles=ONE, more=PERSISTENT),
    "8.5.2": summary("8.5.2", "v8502", end_to_end=False, percentiles=THREE, more=PERSISTENT),
    "8.6.1": summary("8.6.1", "v8601", end_to_end=False, percentiles=THREE, more=PERSISTENT),
    "9.3.0": summary("9.3.0", "v9300", end_to_end=False, percentiles=THREE, more=LATER),
    "10.3.0": summary("10.3.0", "v100300", end_to_end=False, percentiles=THREE, more=LATER),
    "10.13.3": summary(
        "10.13.3", "v101303", end_to_end=False, percentiles=THREE, more=LATER, build=" [b9]"
    ),
    "11.1.0": summary(
        "11.1.0", "v110100", end_to_end=False, percentiles=THREE, more=LATER, build=" [b7]"
    ),
}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_summary_of_every_release(version):
    log = read_log(VERSIONS[version])
    old = version < "8.5" and not version.startswith("1")
    assert log.passed
    assert log.version == version
    assert (log.device, log.capability) == ("Orin", "8.7")
    assert log.numbers["throughput_qps"] == 411.077
    assert log.numbers["queries"] == 1234
    assert log.numbers["built_s"] == 12.5
    assert log.numbers["compute_s"] == 1.23457
    assert ("end_to_end" in log.rows) == (version in ("8.0.1", "8.2.1"))
    assert set(log.rows) - {"end_to_end"} == {"latency", "enqueue", "h2d", "gpu_compute", "d2h"}
    latency = log.rows["latency"]
    assert (latency.min, latency.max, latency.mean, latency.median) == (1.0, 4.0, 1.5, 1.25)
    assert latency.percentiles == ({"99": 3.5} if old else {"90": 2.0, "95": 2.5, "99.9": 3.5})
    assert log.rows["enqueue"].median == 0.125
    assert log.transfers is True
    assert log.advice == ["GPU compute time is unstable, with coefficient of variance = 2.6%."]
    assert log.warnings == ["[TRT] a warning"]
    assert log.numbers["host_persistent_bytes"] == 1024
    assert log.numbers["scratch_bytes"] == 512
    if (not old and version >= "9") or version.startswith("1"):
        assert log.numbers["engine_bytes"] == 11.5 * 2**20
        assert log.numbers["weights_bytes"] == 4096
        assert log.numbers["context_bytes"] == 2.5 * 2**20
        assert log.cuda_graph


def test_a_run_that_failed_or_measured_nothing():
    head = "TensorRT.trtexec [TensorRT v8201]"
    log = read_log(f"&&&& RUNNING {head} # trtexec\nUnknown option: --x 1\n&&&& FAILED {head}")
    assert (log.passed, log.rows, log.numbers, log.transfers, log.version) == (
        False,
        {},
        {},
        None,
        "8.2.1",
    )
    log = read_log(
        "[11/21/2026-10:00:00] [E] Engine could not be created\n[11/21/2026-10:00:00] [F] worse"
    )
    assert log.errors == ["Engine could not be created", "worse"]
    assert log.version is None
    odd = read_log(
        f"{AT}Latency: min = nan ms, max = 1e+06 ms, mean = 2 ms, median = 2 ms, "
        "percentile(99%) = inf ms"
    )
    assert math.isnan(odd.rows["latency"].min)
    assert odd.rows["latency"].max == 1e6


def test_without_copies():
    quiet = VERSIONS["11.1.0"]
    for label, scale in (("H2D Latency", 0.01), ("D2H Latency", 0.02)):
        quiet = quiet.replace(
            row(label, THREE, scale),
            f"{AT}{label}: min = 0 ms, max = 0 ms, mean = 0 ms, median = 0 ms",
        )
    assert read_log(quiet).transfers is False


TIMES = (
    '[\n  { "startEnqMs" : 0.1, "startComputeMs" : 1, "computeMs" : 9.5, "latencyMs" : 9.75 }\n'
    ', { "startEnqMs" : 210, "startComputeMs" : 210.5, "computeMs" : 1.5, "latencyMs" : 1.75 }\n]\n'
)


@pytest.mark.parametrize(
    ("version", "kept"),
    [((8, 0), 1), ((8, 2), 1), ((8, 4), 1), ((8, 5), 2), ((10, 3), 2), ((11, 1), 2)],
)
def test_exported_times_hold_the_warm_up_up_to_8_4(version, kept):
    times = read_times(TIMES, version)
    assert times.compute == [9.5, 1.5][-kept:]
    assert times.latency == [9.75, 1.75][-kept:]
    assert times.left_out == 2 - kept


def test_what_is_no_export():
    with pytest.raises(BenchError, match="no file of trtexec --exportTimes"):
        read_times("not json", (10, 3))
    with pytest.raises(BenchError, match="expected a list of records with computeMs, latencyMs"):
        read_times('[{"a": 1}]', (10, 3))
