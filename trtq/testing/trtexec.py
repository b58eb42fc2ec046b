"""A stand-in for trtexec where there is none.

It reads the flags of the release it plays and writes a plan that is no engine.

``write_fake_trtexec(folder, "v8502", sm="8.7")`` puts an executable called ``trtexec`` there. It
accepts the build flags that release accepts, prints its first and last line and its device section,
and fails on a flag of another release as trtexec does. Given an engine to load it prints a
performance summary: 2 ms of GPU time, 0.1 ms of copies each way where they are asked for. What a
real one would stumble over is in the model's ``doc_string``: ``refuse-me``, ``memory:N``
(killed above a workspace of N MiB), ``no-kernel:NODE`` (while NODE reads a dequantized tensor),
``layers:FILE`` (the layer report to give), ``seconds:N`` (how long it takes), ``megabytes:N`` (of
the engine). ``write_board_trtexec`` puts a copy onto a stand-in board, for any Python 3 and without
trtq; while it runs, the board's rails and memory show the load.
"""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import sys
import time
from pathlib import Path

# Independent of trtq.platform on purpose: from facts, the flags a build may use, by the
# digits of the version.
ALWAYS = (
    "onnx saveEngine loadEngine minShapes optShapes maxShapes shapes timingCacheFile useDLACore "
    "allowGPUFallback warmUp duration iterations exportTimes loadInputs"
)
WEAK = "fp16 int8 calib useCudaGraph useSpinWait noDataTransfers"
STRONG = "noCudaGraph noSpinWait includeDataTransfers"
OLD, LATER = f"{WEAK} buildOnly workspace", "profilingVerbosity exportLayerInfo memPoolSize"
NEW = f"skipInference {LATER} builderOptimizationLevel versionCompatible hardwareCompatibilityLevel"
TYPED = "stronglyTyped profile"
DLA = "adjustForDLA"
BY_LAYER = "precisionConstraints layerPrecisions layerOutputTypes"
ACCEPTED = {
    version: f"{ALWAYS} {more}"
    for version, more in {
        "v8001": OLD,
        "v8201": f"{OLD} profilingVerbosity exportLayerInfo precisionConstraints",
        "v8401": f"{OLD} {LATER} {BY_LAYER}",
        "v8502": f"{OLD} {LATER} {BY_LAYER}",
        "v8601": f"{OLD} {NEW} {BY_LAYER}",
        "v9300": f"{OLD} {NEW} {BY_LAYER} {TYPED}",
        "v100000": f"{WEAK} {NEW} {BY_LAYER} {TYPED} stripWeights",
        "v100300": f"{WEAK} {NEW} {BY_LAYER} {TYPED} stripWeights",
        "v100700": f"{WEAK} {NEW} {BY_LAYER} {TYPED} stripWeights",
        "v101300": f"{WEAK} {NEW} {BY_LAYER} {TYPED} stripWeights",
        "v101600": f"{WEAK} {NEW} {BY_LAYER} {TYPED} stripWeights {DLA}",
        "v110000": f"{STRONG} {NEW} {TYPED} stripWeights {DLA}",
        "v110100": f"{STRONG} {NEW} {TYPED} stripWeights {DLA}",
        "v110500": f"{STRONG} {NEW} {TYPED} stripWeights {DLA} independentWeightLayouts",
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
    path.write_text(
        f"#!{sys.executable}\nfrom trtq.testing.trtexec import main\nraise "
        f"SystemExit(main({version!r}, {sm!r}))\n"
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def write_board_trtexec(path: Path, version: str, *, sm: str) -> Path:
    """Write a copy that needs neither trtq nor its environment; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"#!/usr/bin/python3\n{Path(__file__).read_text()}\n\nraise "
        f"SystemExit(main({version!r}, {sm!r}))\n"
    )
    path.chmod(0o755)
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
        print(
            "=== Model Options ===\n"
            + "\n".join(f"Unknown option: {u}" for u in unknown)
            + f"\n&&&& FAILED {tail}"
        )
        return 1
    print("[11/21/2026-10:00:00] [I] === Device Information ===")
    print(f"[11/21/2026-10:00:00] [I] Compute Capability: {sm}", flush=True)
    print("[11/21/2026-10:00:00] [W] [TRT] a warning of the library", file=sys.stderr)
    if "loadEngine" in given:
        error = _misfit(given)
        if error:
            print(f"[11/21/2026-10:00:01] [E] {error}", file=sys.stderr)
            print(f"&&&& FAILED {tail}")
            return 1
        with _Busy():
            _time(given, version)
        print(f"&&&& PASSED {tail}")
        return 0
    if b"QuantizeLinear" in Path(given["onnx"]).read_bytes() and sm in ("5.3", "6.2"):
        message = (
            "Networks with QuantizeLayer/DequantizeLayer layers require hardware with Int8 support."
        )
        print(
            f"[11/21/2026-10:00:01] [E] Error[9]: Error Code 9: Internal Error ({message})",
            file=sys.stderr,
        )
        print(f"&&&& FAILED {tail}")
        return 1
    error, layers = trouble(Path(given["onnx"]).read_bytes(), _workspace(given))
    error = error or _misasked(given, version, sm)
    if error:
        print(f"[11/21/2026-10:00:01] [E] {error}", file=sys.stderr)
        print(f"&&&& FAILED {tail}")
        return 1
    if layers is not None and "exportLayerInfo" in given:
        Path(given["exportLayerInfo"]).write_bytes(layers)
    if "timingCacheFile" in given:
        with Path(given["timingCacheFile"]).open("ab") as cache:
            cache.write(b"timings ")
    large = re.search(rb"megabytes:(\d+)", Path(given["onnx"]).read_bytes())
    try:
        with Path(given["saveEngine"]).open("wb") as engine:
            engine.write(
                b"not an engine: "
                + " ".join(sorted(given)).encode()
                + b" \0" * (500_000 * int(large.group(1)) if large else 0)
            )
    except OSError:
        print("[11/21/2026-10:00:02] [E] Saving engine to file failed.", file=sys.stderr)
        print(f"&&&& FAILED {tail}")
        return 1
    print(f"&&&& PASSED {tail}")
    return 0


def _misfit(given: dict[str, str]) -> str:
    """Return why a board's engine cannot be loaded, "" where it can."""
    if "TRTQ_ROOT" not in os.environ:
        return ""
    engine = Path(given["loadEngine"]).read_bytes()
    if not engine.startswith(b"not an engine"):
        return "[TRT] 1: [stdArchiveReader.cpp] Magic tag does not match"
    wanted = b"useDLACore" in engine
    return (
        ""
        if wanted == ("useDLACore" in given)
        else "[TRT] 3: Cannot deserialize engine with DLA core on a runtime without it"
    )


def _misasked(given: dict[str, str], version: str, sm: str) -> str:
    """Return why a DLA or a calibration cache cannot be had, "" where nothing is wrong."""
    if "useDLACore" in given:
        if sm not in ("7.2", "8.7"):
            return "Cannot create DLA engine, 0 not available"
        if b"QuantizeLinear" in Path(given["onnx"]).read_bytes():
            return "[TRT] 4: Q/DQ layers are not supported on DLA"
        if not {"int8", "fp16"} & set(given):
            return "[TRT] 4: Default DLA is enabled but neither FP16 nor INT8 mode is enabled"
    if "calib" in given:  # the real one says nothing and draws random ranges; this one is stricter
        head = Path(given["calib"]).read_text().splitlines()[0]
        if head != f"TRT-{version[1:]}-EntropyCalibration2":
            return f"the calibration cache is of {head}"
    return ""


class _Busy:
    """Makes a stand-in board's sensors show the load.

    It writes a file that tegrastats looks at, and the board's files of the rails and the memory.
    """

    def __enter__(self) -> None:
        self.root = os.environ.get("TRTQ_ROOT")
        if self.root is None:
            return
        self.quiet = {}
        table = Path(self.root) / "busy.json"
        for name, text in (json.loads(table.read_text()) if table.exists() else {}).items():
            path = Path(self.root) / name
            self.quiet[path] = path.read_text()
            _replace(path, text)
        (Path(self.root) / "busy").write_text("")

    def __exit__(self, *_: object) -> None:
        if self.root is not None:
            for path, text in self.quiet.items():
                _replace(path, text)
            (Path(self.root) / "busy").unlink()


def _replace(path: Path, text: str) -> None:
    beside = path.with_name(path.name + ".new")
    beside.write_text(text)
    beside.replace(path)


def _time(given: dict[str, str], version: str) -> None:
    """Run for as long as asked and print a performance summary in the form of the release."""
    number = int(version[1:])
    strong = version.startswith("v11")
    copies = "includeDataTransfers" in given if strong else "noDataTransfers" not in given
    graph = "noCudaGraph" not in given if strong else "useCudaGraph" in given
    copy = 0.1 if copies else 0.0
    info = "[11/21/2026-10:00:00] [I] "
    warmup, seconds, least = (
        float(given.get("warmUp", 200)) / 1e3,
        float(given.get("duration", 3)),
        int(given.get("iterations", 10)),
    )
    count = max(least, int(seconds / 0.002))
    print(f"{info}Engine loaded in 0.05 sec.", flush=True)
    if number >= 8400:
        print(f"{info}Engine deserialized in 0.02 sec.")
    if graph and number >= 10000:
        print(f"{info}Successfully captured CUDA graph for the current execution context")
    print(f"{info}Starting inference", flush=True)
    if "TRTQ_ROOT" in os.environ:
        time.sleep(0.1 * warmup + seconds)
    print(f"{info}Warmup completed {int(warmup / 0.002)} queries over {1e3 * warmup:g} ms")
    print(f"{info}Timing trace has {count} queries over {seconds:g} s")
    print(
        f"{info}=== Performance summary ===\n{info}Throughput: {1 / (0.002 + 2 * copy / 1e3):g} qps"
    )
    rows = {
        "Latency": 2.0 + 2 * copy,
        "H2D Latency": copy,
        "GPU Compute Time": 2.0,
        "D2H Latency": copy,
    }
    if number < 8400:
        rows["End-to-End Host Latency"] = 3.9
    shown = (99,) if number < 8500 else (90, 95, 99)
    for name, ms in rows.items():
        tail = ", ".join(f"percentile({p}%) = {ms} ms" for p in shown)
        print(
            f"{info}{name}: min = {ms} ms, max = {ms} ms, mean = {ms} ms, median = {ms} ms, {tail}"
        )
    if "exportTimes" in given:
        before = int(warmup / 0.002) if number < 8500 else 0  # the warm-up is in the file up to 8.4
        records = [
            {
                "startComputeMs": round(i * 2.0, 3),
                "computeMs": 2.0 + 0.01 * ((i * 7919) % 13),
                "latencyMs": 2.0 + 2 * copy,
            }
            for i in range(before + count)
        ]
        Path(given["exportTimes"]).write_text(json.dumps(records))


def _workspace(given: dict[str, str]) -> int:
    pools = dict(p.split(":") for p in given.get("memPoolSize", "").split(",") if p)
    return int(given.get("workspace") or pools.get("workspace") or DEFAULT_WORKSPACE)


def trouble(model: bytes, workspace: int) -> tuple[str, bytes | None]:
    """Return the error that a builder has with a model ("" for none).

    Return with it the layer report that the model asks for.

    The process is killed where the model asks for that.
    """
    try:
        import onnx

        graph = onnx.load_from_string(model)
        instructions = graph.doc_string
    except ImportError:  # on a stand-in board: the file has a doc_string as it is
        graph, instructions = None, model.decode("latin-1")
    if "refuse-me" in instructions:
        return "[TRT] ModelImporter.cpp:726: While parsing node number 0 [Conv -> 'x']: no", None
    slow = re.search(r"seconds:(\d+(?:\.\d+)?)", instructions)
    if slow is not None:
        time.sleep(float(slow.group(1)))
    most = re.search(r"memory:(\d+)", instructions)
    if most is not None and workspace > int(most.group(1)):
        os.kill(os.getpid(), signal.SIGKILL)
    if "starved:" in instructions:
        return (
            "Error Code 10: Could not find any implementation for node conv1/Conv due to "
            "insufficient workspace. See verbose log",
            None,
        )
    if graph is not None:
        pair_outputs = {n.output[0] for n in graph.graph.node if n.op_type == "DequantizeLinear"}
        for name in re.findall(r"no-kernel:(\S+)", instructions):
            node = next(n for n in graph.graph.node if n.name == name)
            if set(node.input) & pair_outputs:
                return (
                    "Error Code 10: Internal Error (Could not find any implementation for node "
                    f"{name} + relu.)",
                    None,
                )
    report = re.search(r"layers:(\S+)", instructions)
    return "", Path(report.group(1)).read_bytes() if report is not None else None
