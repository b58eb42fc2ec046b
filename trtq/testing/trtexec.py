"""A stand-in for trtexec where there is none: it reads the flags of the release it plays and writes a plan that is no engine.

``write_fake_trtexec(folder, "v8502", sm="8.7")`` puts an executable called ``trtexec`` there. It accepts the build flags that
release accepts, prints its first and last line and its device section, and fails on a flag of another release as trtexec does.
Given an engine to load it prints a performance summary: 2 ms of GPU time, 0.1 ms of copies each way where they are asked for.
What a real one would stumble over stands in the model's ``doc_string``: ``refuse-me``, ``memory:N`` (killed above a workspace of N MiB),
``no-kernel:NODE`` (while NODE reads a dequantized tensor), ``layers:FILE`` (the layer report to give).
"""

from __future__ import annotations

import os
import re
import signal
import stat
import sys
from pathlib import Path

# Independent of trtq.engine.versions on purpose: from facts, the flags a build may use, by the digits of the version.
ALWAYS = "onnx saveEngine loadEngine minShapes optShapes maxShapes shapes timingCacheFile useDLACore allowGPUFallback warmUp duration"
WEAK = "fp16 int8 calib useCudaGraph useSpinWait noDataTransfers"
STRONG = "noCudaGraph noSpinWait includeDataTransfers"
OLD, LATER = f"{WEAK} buildOnly workspace", "profilingVerbosity exportLayerInfo memPoolSize"
NEW = f"skipInference {LATER} builderOptimizationLevel versionCompatible hardwareCompatibilityLevel"
BY_LAYER = "precisionConstraints layerPrecisions layerOutputTypes"
ACCEPTED = {
    version: f"{ALWAYS} {more}"
    for version, more in {
        "v8001": OLD,
        "v8201": f"{OLD} profilingVerbosity exportLayerInfo precisionConstraints",
        "v8401": f"{OLD} {LATER} {BY_LAYER}",
        "v8502": f"{OLD} {LATER} {BY_LAYER}",
        "v8601": f"{OLD} {NEW} {BY_LAYER}",
        "v9300": f"{OLD} {NEW} {BY_LAYER} stronglyTyped",
        "v100000": f"{WEAK} {NEW} {BY_LAYER} stronglyTyped stripWeights",
        "v100300": f"{WEAK} {NEW} {BY_LAYER} stronglyTyped stripWeights",
        "v100700": f"{WEAK} {NEW} {BY_LAYER} stronglyTyped stripWeights",
        "v101300": f"{WEAK} {NEW} {BY_LAYER} stronglyTyped stripWeights",
        "v101600": f"{WEAK} {NEW} {BY_LAYER} stronglyTyped stripWeights",
        "v110000": f"{STRONG} {NEW} stronglyTyped stripWeights",
        "v110100": f"{STRONG} {NEW} stronglyTyped stripWeights",
    }.items()
}
DEFAULT_WORKSPACE = 8192


def write_fake_trtexec(folder: Path, version: str, *, sm: str = "8.7") -> Path:
    """Write the executable and return its path.

    Args:
        folder: where.
        version: a key of ``ACCEPTED``.
        sm: the compute capability of the device it claims to run on.
    """
    path = folder / "trtexec"
    path.write_text(f"#!{sys.executable}\nfrom trtq.testing.trtexec import main\nraise SystemExit(main({version!r}, {sm!r}))\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def main(version: str, sm: str) -> int:
    """Play trtexec with the arguments of this process."""
    tail = f"TensorRT.trtexec [TensorRT {version}] # {' '.join(sys.argv)}"
    print(f"&&&& RUNNING {tail}")
    if sys.argv[1:] == ["--help"]:
        print("=== Model Options ===")
        return 0
    given = dict(a.removeprefix("--").partition("=")[::2] for a in sys.argv[1:])
    unknown = [f"--{k} {v}" for k, v in given.items() if k not in ACCEPTED[version].split()]
    if unknown:
        print("=== Model Options ===\n" + "\n".join(f"Unknown option: {u}" for u in unknown) + f"\n&&&& FAILED {tail}")
        return 1
    print("[11/21/2026-10:00:00] [I] === Device Information ===")
    print(f"[11/21/2026-10:00:00] [I] Compute Capability: {sm}", flush=True)
    print("[11/21/2026-10:00:00] [W] [TRT] a warning of the library", file=sys.stderr)
    if "loadEngine" in given:
        _time(given, strong=version.startswith("v11"))
        print(f"&&&& PASSED {tail}")
        return 0
    error, layers = trouble(Path(given["onnx"]).read_bytes(), _workspace(given))
    if error:
        print(f"[11/21/2026-10:00:01] [E] {error}", file=sys.stderr)
        print(f"&&&& FAILED {tail}")
        return 1
    if layers is not None and "exportLayerInfo" in given:
        Path(given["exportLayerInfo"]).write_bytes(layers)
    if "timingCacheFile" in given:
        with Path(given["timingCacheFile"]).open("ab") as cache:
            cache.write(b"timings ")
    Path(given["saveEngine"]).write_bytes(b"not an engine: " + " ".join(sorted(given)).encode())
    print(f"&&&& PASSED {tail}")
    return 0


def _time(given: dict[str, str], *, strong: bool) -> None:
    """Print a performance summary as releases from 8.4 on do."""
    copies = "includeDataTransfers" in given if strong else "noDataTransfers" not in given
    graph = "noCudaGraph" not in given if strong else "useCudaGraph" in given
    copy = 0.1 if copies else 0.0
    if graph:
        print("[11/21/2026-10:00:00] [I] Successfully captured CUDA graph for the current execution context")
    rows = {"Latency": 2.0 + 2 * copy, "H2D Latency": copy, "GPU Compute Time": 2.0, "D2H Latency": copy}
    for name, ms in rows.items():
        tail = f"percentile(90%) = {ms} ms, percentile(95%) = {ms} ms, percentile(99%) = {ms} ms"
        print(f"[11/21/2026-10:00:00] [I] {name}: min = {ms} ms, max = {ms} ms, mean = {ms} ms, median = {ms} ms, {tail}")


def _workspace(given: dict[str, str]) -> int:
    pools = dict(p.split(":") for p in given.get("memPoolSize", "").split(",") if p)
    return int(given.get("workspace") or pools.get("workspace") or DEFAULT_WORKSPACE)


def trouble(model: bytes, workspace: int) -> tuple[str, bytes | None]:
    """Return the error that a builder has with a model ("" for none), and the layer report that it asks for.

    The process is killed where the model asks for that.
    """
    import onnx

    graph = onnx.load_from_string(model)
    asked = graph.doc_string
    if "refuse-me" in asked:
        return "[TRT] ModelImporter.cpp:726: While parsing node number 0 [Conv -> 'x']: no", None
    most = re.search(r"memory:(\d+)", asked)
    if most is not None and workspace > int(most.group(1)):
        os.kill(os.getpid(), signal.SIGKILL)
    if "starved:" in asked:
        return "Error Code 10: Could not find any implementation for node conv1/Conv due to insufficient workspace. See verbose log", None
    made = {n.output[0] for n in graph.graph.node if n.op_type == "DequantizeLinear"}
    for name in re.findall(r"no-kernel:(\S+)", asked):
        node = next(n for n in graph.graph.node if n.name == name)
        if set(node.input) & made:
            return f"Error Code 10: Internal Error (Could not find any implementation for node {name} + relu.)", None
    report = re.search(r"layers:(\S+)", asked)
    return "", Path(report.group(1)).read_bytes() if report is not None else None
